/* PEFT's adapters: its files are read, written and read again as they were; what is not implemented is refused by its
 * key; damage is an error. */
#include "model/lora_peft.h"
#include "tests/formats_scratch.h"
#include "tests/golden_llama.h"

static const struct {
    const char *name, *base;
    int rank;
    double alpha;
    bool rslora, dora;
    unsigned targets;
} adapters[] = {
    {"plain", "gqa", 3, 6, false, false, (1u << LORA_LM_HEAD) - 1},
    {"rslora", "tied", 3, 5, true, false, (1u << LORA_LM_HEAD) - 1},
    {"subset", "packed", 3, 7, false, false, 1u << LORA_Q | 1u << LORA_V},
    {"dora", "odd_heads", 4, 6, false, true, (1u << LORA_LM_HEAD) - 1},
    {"dora_fresh", "gqa", 2, 4, false, true, 1u << LORA_V | 1u << LORA_O | 1u << LORA_GATE},
};
enum { N_ADAPTERS = sizeof adapters / sizeof *adapters };

static void open_pair(int c, Golden *golden, PeftAdapter *peft) {
    char path[128];
    golden_open(golden, adapters[c].base);
    snprintf(path, sizeof path, "tests/golden/lora_%s", adapters[c].name);
    ck_assert(peft_is_adapter(path));
    CHECK_OK(peft_open(peft, path));
}

START_TEST(adapters_of_peft_are_read) {
    if (!golden_select("auto")) return;
    for (int c = 0; c < N_ADAPTERS; c++) {
        Golden golden;
        PeftAdapter peft;
        Lora *lora;
        char base[64];
        open_pair(c, &golden, &peft);
        snprintf(base, sizeof base, "tests/golden/llama_%s", adapters[c].base);
        ck_assert_str_eq(peft.config.base, base);
        CHECK_OK(lora_from_peft(&lora, golden.model, &peft, (LlamaOptions){0}));
        ck_assert_int_eq(lora->options.rank, adapters[c].rank);
        ck_assert(fabs(lora->options.alpha - adapters[c].alpha) <= 0);
        ck_assert_int_eq(lora->options.rank_stabilised, adapters[c].rslora);
        ck_assert_int_eq(lora->options.magnitudes, adapters[c].dora);
        ck_assert_uint_eq(lora->options.targets, adapters[c].targets);
        lora_free(lora);
        peft_close(&peft);
        golden_close(&golden);
    }
}
END_TEST

START_TEST(what_is_written_is_read_again_to_the_bit) {
    if (!golden_select("auto")) return;
    for (int c = 0; c < N_ADAPTERS; c++) {
        Golden golden;
        PeftAdapter peft, again;
        Lora *lora;
        LoraOptions options;
        char directory[SCRATCH_NAME];
        open_pair(c, &golden, &peft);
        CHECK_OK(lora_from_peft(&lora, golden.model, &peft, (LlamaOptions){0}));
        lora->options.dropout = 0.05;
        CHECK_OK(lora_write_peft(lora, scratch(directory), "my/base"));
        CHECK_OK(peft_open(&again, directory));
        ck_assert_str_eq(again.config.base, "my/base");
        CHECK_OK(lora_options_from_peft(&options, &again));
        ck_assert(options.rank == lora->options.rank && options.targets == lora->options.targets &&
                  options.rank_stabilised == lora->options.rank_stabilised &&
                  options.magnitudes == lora->options.magnitudes);
        ck_assert(fabs(options.alpha - lora->options.alpha) <= 0 && fabs(options.dropout - 0.05) <= 0);
        ck_assert_uint_eq(named_count(again.arrays), named_count(peft.arrays));
        for (size_t i = 0; i < named_count(peft.arrays); i++) {
            const NamedArray *before = named_at(peft.arrays, i), *after = NULL;
            CHECK_OK(named_get(&after, again.arrays, before->name));
            ck_assert_uint_eq(named_bytes(before), named_bytes(after));
            ck_assert(memcmp(before->data, after->data, named_bytes(before)) == 0);
        }
        CHECK_OK(directory_remove(directory));
        lora_free(lora);
        peft_close(&peft);
        peft_close(&again);
        golden_close(&golden);
    }
}
END_TEST

/* ---- refusals ---- */

static int parse(const char *json) {
    PeftConfig config;
    int rc = peft_config_parse(&config, json, strlen(json), "adapter_config.json");
    free((char *)(uintptr_t)config.base);
    return rc;
}

START_TEST(what_is_not_implemented_is_refused_by_its_key) {
    static const char *const refused[][2] = {
        {"{\"r\": 8}", "'peft_type' is ''"},
        {"{\"peft_type\": \"IA3\"}", "'peft_type' is 'IA3'"},
        {"{\"peft_type\": \"LORA\", \"task_type\": \"SEQ_2_SEQ_LM\"}", "'task_type'"},
        {"{\"peft_type\": \"LORA\", \"bias\": \"all\"}", "'bias' is 'all'"},
        {"{\"peft_type\": \"LORA\", \"rank_pattern\": {\"q_proj\": 4}}", "'rank_pattern'"},
        {"{\"peft_type\": \"LORA\", \"alpha_pattern\": {\"q_proj\": 4}}", "'alpha_pattern'"},
        {"{\"peft_type\": \"LORA\", \"modules_to_save\": [\"lm_head\", \"q_proj\"]}", "'modules_to_save' has 'q_proj'"},
        {"{\"peft_type\": \"LORA\", \"modules_to_save\": \"lm_head\"}", "'modules_to_save'"},
        {"{\"peft_type\": \"LORA\", \"modules_to_save\": [3]}", "'modules_to_save'"},
        {"{\"peft_type\": \"LORA\", \"ensure_weight_tying\": 1}", "'ensure_weight_tying'"},
        {"{\"peft_type\": \"LORA\", \"task_type\": \"SEQ_CLS\", \"modules_to_save\": [\"score\", \"lm_head\"]}",
         "'modules_to_save'"},
        {"{\"peft_type\": \"LORA\", \"modules_to_save\": [\"score\"]}", "'modules_to_save'"},
        {"{\"peft_type\": \"LORA\", \"trainable_token_indices\": [1]}", "'trainable_token_indices'"},
        {"{\"peft_type\": \"LORA\", \"lora_bias\": true}", "'lora_bias'"},
        {"{\"peft_type\": \"LORA\", \"fan_in_fan_out\": true}", "'fan_in_fan_out'"},
        {"{\"peft_type\": \"LORA\", \"layer_replication\": [[0, 2]]}", "'layer_replication'"},
        {"{\"peft_type\": \"LORA\", \"init_lora_weights\": \"pissa_niter_16\"}", "pissa_niter_16"},
        {"{\"peft_type\": \"LORA\", \"r\": 0}", "'r' is 0"},
        {"{\"peft_type\": \"LORA\", \"r\": 4.5}", "'r' is a number"},
        {"{\"peft_type\": \"LORA\", \"r\": 99999999999}", "'r' is 99999999999"},
        {"{\"peft_type\": \"LORA\", \"lora_alpha\": -1}", "'lora_alpha'"},
        {"{\"peft_type\": \"LORA\", \"lora_dropout\": 1}", "'lora_dropout'"},
        {"{\"peft_type\": \"LORA\", \"use_dora\": \"yes\"}", "'use_dora'"},
        {"[1]", "object"},
        {"{", "adapter_config.json:1"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        CHECK_ERROR(parse(refused[i][0]), ERR_REFUSED, refused[i][1]);
    CHECK_OK(parse(
        "{\"peft_type\": \"LORA\", \"task_type\": \"SEQ_CLS\", \"modules_to_save\": [\"classifier\", \"score\"]}"));
    CHECK_OK(parse("{\"peft_type\": \"LORA\", \"modules_to_save\": [\"embed_tokens\", \"model.embed_tokens\"], "
                   "\"ensure_weight_tying\": true}"));
    CHECK_OK(parse("{\"peft_type\": \"LORA\", \"modules_to_save\": [], \"rank_pattern\": {}, \"bias\": null, "
                   "\"init_lora_weights\": \"gaussian\", \"qalora_group_size\": 16}"));
}
END_TEST

START_TEST(an_adapter_of_another_model_is_refused_by_its_array) {
    Golden golden, other;
    PeftAdapter peft;
    Lora *lora;
    if (!golden_select("auto")) return;
    open_pair(0, &golden, &peft);
    golden_open(&other, "tied");
    CHECK_ERROR(lora_from_peft(&lora, other.model, &peft, (LlamaOptions){0}), ERR_REFUSED, "lora_A.weight");
    peft_close(&peft);
    golden_close(&other);
    golden_close(&golden);
}
END_TEST

/* Files with flipped bits: refused or read, never a crash (meant for ASan). */
START_TEST(damaged_files_do_not_crash) {
    static const char *const names[] = {PEFT_CONFIG, PEFT_ARRAYS};
    Golden golden;
    char directory[SCRATCH_NAME];
    if (!golden_select("auto")) return;
    golden_open(&golden, "odd_heads");
    scratch(directory);
    for (int f = 0; f < 2; f++) {
        char *bytes[2];
        size_t size[2];
        for (int g = 0; g < 2; g++) {
            char *from = in("tests/golden/lora_dora", names[g]), *to = in(directory, names[g]);
            CHECK_OK(file_read(&bytes[g], &size[g], from, 0));
            overwrite(to, bytes[g], size[g]);
            free(from);
            free(to);
        }
        char *path = in(directory, names[f]);
        PhiloxKey key = philox_key(9, PHILOX_TEST, (uint32_t)f, 0);
        int refused = 0, rounds = check_rounds(300);
        for (int i = 0; i < rounds; i++) {
            size_t span = size[f] < 4000 ? size[f] : 4000, bit = (size_t)philox_below(key, (uint64_t)i, 8 * span);
            size_t kept = i % 3 ? size[f] : (size_t)philox_below(key, (uint64_t)i + 1000000, size[f]);
            PeftAdapter peft;
            Lora *lora = NULL;
            bytes[f][bit / 8] = (char)(bytes[f][bit / 8] ^ 1 << bit % 8);
            overwrite(path, bytes[f], kept);
            bytes[f][bit / 8] = (char)(bytes[f][bit / 8] ^ 1 << bit % 8);
            int rc = peft_open(&peft, directory);
            if (rc == OK) {
                rc = lora_from_peft(&lora, golden.model, &peft, (LlamaOptions){0});
                peft_close(&peft);
            }
            if (rc == OK) lora_free(lora);
            refused += rc != OK;
        }
        ck_assert_int_gt(refused, rounds / 4);
        free(path);
        for (int g = 0; g < 2; g++) free(bytes[g]);
    }
    CHECK_OK(directory_remove(directory));
    golden_close(&golden);
}
END_TEST

/* ---- several ---- */

/* Rows of every matrix after merging the adapters one after the other equal those of the combined one. */
START_TEST(a_combined_adapter_adds_what_its_parts_add) {
    Golden golden;
    PeftAdapter parts[3];
    Lora *lora;
    const double weights[] = {0.5, -2, 1};
    if (!golden_select("auto")) return;
    golden_open(&golden, "gqa");
    CHECK_OK(peft_open(&parts[0], "tests/golden/lora_plain"));
    char directory[SCRATCH_NAME];
    LoraOptions options = {.rank = 5, .alpha = 3, .rank_stabilised = true, .targets = 1u << LORA_K | 1u << LORA_DOWN};
    CHECK_OK(lora_new(&lora, golden.model, options, (LlamaOptions){.training = true}));
    CHECK_OK(lora_init(lora, 3));
    for (int i = 0; i < lora->n_weights; i++)
        philox_fill_normal(lora->weights[i]->value, 0, weight_elements(lora->weights[i]),
                           philox_key(4, PHILOX_TEST, (uint32_t)i, 0), 0, 0.1f);
    CHECK_OK(lora_write_peft(lora, scratch(directory), ""));
    lora_free(lora);
    CHECK_OK(peft_open(&parts[1], directory));
    CHECK_OK(peft_open(&parts[2], "tests/golden/lora_plain"));
    Worst worst = {0};
    for (int i = 0; i < golden.model->n_weights; i++) {
        const Weight *w = golden.model->weights[i];
        for (int v = 0; w->n_dims == 2 && v < w->n_views; v++) {
            size_t n = (size_t)w->views[v].rows * (size_t)w->cols;
            float *together = arena_alloc(&golden.arena, n * sizeof(float));
            float *expected = arena_alloc(&golden.arena, n * sizeof(float));
            float *one = arena_alloc(&golden.arena, n * sizeof(float));
            bool adapted = false;
            for (int p = 0; p < 3; p++) {
                CHECK_OK(lora_from_peft(&lora, golden.model, &parts[p], (LlamaOptions){0}));
                memset(one, 0, n * sizeof(float));
                adapted = lora_merge(lora, w->views[v].name, 0, w->views[v].rows, one) || adapted;
                for (size_t e = 0; e < n; e++) expected[e] += (float)weights[p] * one[e];
                lora_free(lora);
            }
            CHECK_OK(lora_combine(&lora, golden.model, parts, weights, 3, (LlamaOptions){0}));
            ck_assert_int_eq(lora->options.rank, 11);
            ck_assert(lora_merge(lora, w->views[v].name, 0, w->views[v].rows, together) == adapted);
            lora_free(lora);
            worst_of(&worst, relative_distance(together, expected, NULL, n), w->views[v].name, "", "");
        }
    }
    ck_assert_msg(worst.value > 0 && worst.value < 1e-6, "%g, %s", worst.value, worst.where);
    for (int p = 0; p < 3; p++) peft_close(&parts[p]);
    CHECK_OK(peft_open(&parts[0], "tests/golden/lora_dora_fresh"));
    CHECK_ERROR(lora_combine(&lora, golden.model, parts, weights, 1, (LlamaOptions){0}), ERR_REFUSED, "magnitudes");
    peft_close(&parts[0]);
    CHECK_OK(directory_remove(directory));
    golden_close(&golden);
}
END_TEST

START_TEST(targets_are_read_as_people_write_them) {
    unsigned targets;
    CHECK_OK(lora_parse_targets(&targets, "all-linear"));
    ck_assert_uint_eq(targets, LORA_ALL);
    CHECK_OK(lora_parse_targets(&targets, "q,v"));
    ck_assert_uint_eq(targets, 1u << LORA_Q | 1u << LORA_V);
    CHECK_OK(lora_parse_targets(&targets, "gate_proj, down_proj"));
    ck_assert_uint_eq(targets, 1u << LORA_GATE | 1u << LORA_DOWN);
    CHECK_ERROR(lora_parse_targets(&targets, "q,w"), ERR_USAGE, "found 'w'");
    CHECK_ERROR(lora_parse_targets(&targets, ""), ERR_USAGE, "empty");
    CHECK_ERROR(lora_parse_targets(&targets, " ,"), ERR_USAGE, "empty");
}
END_TEST

CHECK_MAIN("peft", adapters_of_peft_are_read, what_is_written_is_read_again_to_the_bit,
           what_is_not_implemented_is_refused_by_its_key, an_adapter_of_another_model_is_refused_by_its_array,
           damaged_files_do_not_crash, a_combined_adapter_adds_what_its_parts_add,
           targets_are_read_as_people_write_them)
