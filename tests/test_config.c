/* configs/: the option table, the parser and its messages, overrides, write and read back, the comparison on resume,
 * and what happens to damaged files. */
#include <ctype.h>
#include <glob.h>
#include <math.h>
#include <string.h>

#include "configs/config.h"
#include "configs/yaml.h"
#include "data/loader.h"
#include "model/core/file.h"
#include "model/core/philox.h"
#include "model/shape.h"
#include "optim/optimizer.h"
#include "tests/check_main.h"

static Config *fresh(void) {
    Config *config;
    CHECK_OK(config_new(&config));
    return config;
}

static int parse(Config *config, const char *yaml) {
    return config_parse(config, "a.yaml", yaml, strlen(yaml));
}

/* The text is refused, and the message contains `part`. */
static void refuses(const char *yaml, const char *part) {
    Config *config = fresh();
    CHECK_ERROR(parse(config, yaml), ERR_USAGE, part);
    config_free(config);
}

static char *written(const Config *config) {
    Text text = {0};
    CHECK_OK(config_write(config, "sft", &text));
    return text.bytes;
}

START_TEST(every_row_of_the_table_makes_sense) {
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const Option *option = &option_table[i];
        ck_assert_msg(*option->key && *option->help, "row %zu", i);
        for (size_t j = 0; j < i; j++) ck_assert_str_ne(option->key, option_table[j].key);
        size_t section = strcspn(option->key, ".");
        bool is_number = option->type == OPTION_INT || option->type == OPTION_REAL;
        bool found = false;
        for (double value = -1; value <= 1e7; value = value < 0 ? 0 : value < 1e-9 ? 1e-9 : value * 10)
            found |= option_in_range(option, value);
        if (is_number) ck_assert_msg(found, "%s: no number is in range '%s'", option->key, option->range);
        if (option->type == OPTION_CHOICE) ck_assert_int_ge(option_choice_index(option, option->default_text), 0);
        ck_assert_msg(section > 0 && strlen(option->help) < 100, "%s", option->key);
        ck_assert_msg(option->help[strlen(option->help) - 1] != '.', "%s", option->key);
    }
}
END_TEST

START_TEST(fields_are_named_after_their_keys) {
    static const char *const fields[] = {
#define OPTION(field, ...) #field,
#include "configs/all_options.def"
#undef OPTION
    };
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s", option_table[i].key);
        for (char *at = name; *at; at++)
            if (*at == '.') *at = '_';
        char *scaling = strstr(name, "_scaling"); /* rope_scaling.x is field rope_x */
        if (scaling) memmove(scaling, scaling + strlen("_scaling"), strlen(scaling + strlen("_scaling")) + 1);
        ck_assert_str_eq(fields[i], name);
    }
}
END_TEST

START_TEST(choices_are_in_the_order_of_the_enums_they_become) {
    const Option *schedule = &option_table[OPTION_optim_schedule], *packing = &option_table[OPTION_data_packing];
    ck_assert_int_eq(option_choice_index(schedule, "constant"), SCHEDULE_CONSTANT);
    ck_assert_int_eq(option_choice_index(schedule, "linear"), SCHEDULE_LINEAR);
    ck_assert_int_eq(option_choice_index(schedule, "cosine"), SCHEDULE_COSINE);
    ck_assert_int_eq(option_choice_index(schedule, "wsd"), SCHEDULE_WSD);
    ck_assert_int_eq(option_choice_index(schedule, "cos"), -1);
    ck_assert_int_eq(option_choice_index(packing, "stream"), PACKING_STREAM);
    ck_assert_int_eq(option_choice_index(packing, "best-fit"), PACKING_BEST_FIT);
}
END_TEST

START_TEST(defaults_are_the_tables) {
    Config *config = fresh();
    ck_assert(config->optim_lr == 3.0e-4 && config->optim_beta2 == 0.95 && config->optim_eps == 1e-8);
    ck_assert(config->train_tokens_per_batch == 65536 && config->data_document_mask);
    ck_assert_str_eq(config->output, "");
    ck_assert(config->data_train.n == 0 && config->data_validation.share == 0.01);
    ck_assert(!config_is_set(config, OPTION_optim_lr));
    ck_assert_str_eq(config_where(config, OPTION_optim_lr), "default");
    config_free(config);
}
END_TEST

START_TEST(a_file_fills_fields_of_every_type) {
    Config *config = fresh();
    CHECK_OK(parse(config, "output: runs/a\n"
                           "seed: 7 # comment\n"
                           "model: {dim: 64, rope_scaling: {factor: 8}, tie_embeddings: true}\n"
                           "data:\n"
                           "  train:\n"
                           "    - a.txt\n"
                           "    - {path: 'b.jsonl.gz', name: b, field: body, weight: 2.5}\n"
                           "    - path: \"c.txt\"\n"
                           "      separator: \"\\n\\n\"\n"
                           "  validation: 0.05\n"
                           "  document_mask: false\n"
                           "optim: {lr: 1.0e-3, schedule: wsd}\n"
                           "train: {tokens_per_batch: 64k, steps: 1e3, context: 1_024}\n"
                           "generate: {stop: [END, \"\\n\"]}\n"));
    ck_assert_str_eq(config->output, "runs/a");
    ck_assert(config->seed == 7 && config->model_dim == 64 && config->model_rope_factor == 8.0);
    ck_assert_int_eq(config->model_tie_embeddings, 1);
    ck_assert_uint_eq(config->data_train.n, 3);
    const ConfigSource *source = config->data_train.items;
    ck_assert_str_eq(source[0].path, "a.txt");
    ck_assert_str_eq(source[0].field, "text");
    ck_assert_str_eq(source[1].field, "body");
    ck_assert(source[0].weight == 1.0 && source[1].weight == 2.5);
    ck_assert_str_eq(source[2].separator, "\n\n");
    ck_assert(config->data_validation.n == 0 && config->data_validation.share == 0.05);
    ck_assert(!config->data_document_mask && config->optim_lr == 1e-3 && config->optim_schedule == SCHEDULE_WSD);
    ck_assert(config->train_tokens_per_batch == 65536 && config->train_steps == 1000 && config->train_context == 1024);
    ck_assert(config->generate_stop.n == 2 && strcmp(config->generate_stop.items[1], "\n") == 0);
    ck_assert_str_eq(config_where(config, OPTION_optim_lr), "a.yaml:12:13");
    CHECK_OK(parse(config, "data: {train: one.txt, validation: [v.txt]}"));
    ck_assert(config->data_train.n == 1 && config->data_validation.n == 1);
    ck_assert_str_eq(config->data_validation.items[0].path, "v.txt");
    config_free(config);
}
END_TEST

START_TEST(an_empty_file_is_all_defaults) {
    static const char *const empty[] = {"", "\n", "# nothing\n", "---\n", "model:\n", "{}"};
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        Config *config = fresh(), *defaults = fresh();
        CHECK_OK(parse(config, empty[i]));
        char *a = written(config), *b = written(defaults);
        ck_assert_str_eq(a, b);
        free(a);
        free(b);
        config_free(config);
        config_free(defaults);
    }
}
END_TEST

START_TEST(errors_name_line_column_key_and_what_was_expected) {
    refuses("seed: 1\noptim:\n  lr: fast\n", "a.yaml:3:7: optim.lr: found 'fast', expected a number > 0");
    refuses("optim: {lr: 0}", "a.yaml:1:13: optim.lr: found '0', expected a number > 0");
    refuses("optim: {beta1: 1}", "expected a number >= 0 and < 1");
    refuses("optim: {lr: .nan}", "optim.lr: found '.nan'");
    refuses("optim: {lr: nan}", "optim.lr: found 'nan'");
    refuses("optim: {lr: inf}", "optim.lr: found 'inf'");
    refuses("optim: {lr: 1e999}", "optim.lr");
    refuses("optim: {lr: \"3\"}", "optim.lr");
    refuses("optim: {lr: }", "optim.lr: found nothing");
    refuses("optim: {lr: [1]}", "optim.lr: found a list of 1");
    refuses("optim: {lr: {a: 1}}", "optim.lr: found a section with 1 keys");
    refuses("train: {steps: 1.5}", "train.steps: found '1.5', expected a whole number >= 0, in steps");
    refuses("train: {steps: 99999999999999999999}", "train.steps");
    refuses("data: {document_mask: yes}", "data.document_mask: found 'yes', expected true or false");
    refuses("optim: {schedule: cosin}", "did you mean 'cosine'?");
    refuses("optim: {schedule: xyzzy}", "expected one of constant, linear, cosine, wsd");
    refuses("model: 3", "'model' is a section, not '3' (model has: base, preset, dim");
    refuses("- a\n- b\n", "this is a list");
    refuses("hello", "this is a single text");
}
END_TEST

START_TEST(an_unknown_key_is_refused_with_the_nearest) {
    refuses("optmi: {lr: 1}", "a.yaml:1:1: there is no option 'optmi'; did you mean 'optim'?");
    refuses("optim:\n  lr: 1e-3\n  weigth_decay: 0\n",
            "a.yaml:3:3: there is no option 'optim.weigth_decay'; did you mean 'optim.weight_decay'?");
    refuses("lr: 1e-3", "did you mean 'optim.lr'?");
    refuses("train: {zzzzzzzzzzzzzzzzzz: 1}", "(train has: steps, epochs");
    refuses("data: {train: [{pth: a}]}", "did you mean 'path'?");
    refuses("data: {train: [{weight: 1}]}", "a source needs a path");
    refuses("data: {train: [{path: a, weight: -1}]}", "weight: found '-1', expected a number > 0");
    refuses("data: {train: [[a]]}", "a source needs a path");
    refuses("data: {train: 0.5}", "data.train: found '0.5'");
    refuses("data: {validation: 1.5}", "expected a share >= 0 and < 1, or a path");
    refuses("generate: {stop: [[a]]}", "generate.stop");
}
END_TEST

START_TEST(yaml_that_cannot_be_trusted_is_refused_where_it_stands) {
    refuses("seed: 1\nseed: 2\n", "a.yaml:2:1: 'seed' is given twice; the first is in line 1");
    refuses("optim: {lr: 1}\noptim: {lr: 2}\n", "a.yaml:2:1: 'optim' is given twice");
    refuses("optim: {lr: 1, lr: 2}", "'optim.lr' is given twice");
    refuses("data: {train: [{path: a, path: b}]}", "'path' is given twice");
    refuses("optim:\n\tlr: 1\n", "a.yaml:2:1: the line is indented with a tab");
    refuses("model: &a {dim: 1}\noptim: *a\n", "anchors and aliases");
    refuses("seed: *x", "anchors and aliases");
    refuses("model: {<<: {dim: 1}}", "merge keys");
    refuses("seed: !!int 3", "tags");
    refuses("seed: 1\n---\nseed: 2\n", "a.yaml:2:1: a second document");
    refuses("optim: {lr: 1", "a.yaml:");
    refuses("output: \"abc", "a.yaml:");
    refuses("optim: [1, 2", "a.yaml:");
    refuses("output: a\xff", "a.yaml:1:10: byte 0xff is not valid UTF-8");
    refuses("output: \"a\\0b\"", "NUL");
    refuses("output: a\x01", "control character");
    refuses("? [a]\n: b\n", "a key must be a plain word");
    refuses("\"a\\nb\": 1\n", "a.yaml:1:1: a key must be a plain word");
    refuses("output: '''''''''a'", "double quotes");
    refuses("seed: \"1\\n2\"\n", "a.yaml:1:7: seed: found '1 2', expected");
    Config *config = fresh();
    CHECK_ERROR(config_parse(config, "a.yaml", "seed: 1\0\n", 9), ERR_USAGE, "a.yaml:1:8: control character");
    CHECK_ERROR(config_load(config, "/nonexistent.yaml"), ERR_USAGE, "/nonexistent.yaml");
    CHECK_ERROR(config_load(config, "/tmp"), ERR_USAGE, "/tmp");
    CHECK_ERROR(config_load(config, "/dev/zero"), ERR_USAGE, "/dev/zero");
    config_free(config);
}
END_TEST

START_TEST(depth_and_size_are_bounded) {
    enum { N = 400000 };
    char *deep = malloc(N + 1);
    static const char *const units[] = {"[", "{a: ", "- ", "? ", "a: &a [*a, ", "{", "[[],", "!", "\"\\u", "'"};
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t n = strlen(units[u]);
        for (size_t i = 0; i < N; i++) deep[i] = units[u][i % n];
        deep[N] = '\0';
        Config *config = fresh();
        ck_assert_int_eq(config_parse(config, "deep.yaml", deep, N), ERR_USAGE);
        ck_assert_msg(strncmp(error_text(), "deep.yaml:", 10) == 0, "%s: %s", units[u], error_text());
        config_free(config);
    }
    free(deep);
    char *large = calloc(YAML_MAX_BYTES + 1, 1);
    Config *config = fresh();
    CHECK_ERROR(config_parse(config, "a.yaml", large, YAML_MAX_BYTES + 1), ERR_USAGE, "Is this the right file?");
    config_free(config);
    free(large);
}
END_TEST

static int override(Config *config, const char *argument) {
    char copy[256], *args[] = {copy};
    snprintf(copy, sizeof copy, "%s", argument);
    return config_override(config, args, 1, 3);
}

START_TEST(arguments_override_the_file_and_name_their_position) {
    Config *config = fresh();
    CHECK_OK(parse(config, "optim: {lr: 1.0e-3}\noutput: a\n"));
    CHECK_OK(override(config, "optim.lr=2e-3"));
    CHECK_OK(override(config, "output=a=b: c"));
    CHECK_OK(override(config, "tokenizer.path="));
    CHECK_OK(override(config, "data.train=[x.txt, {path: y.txt, weight: 3}]"));
    CHECK_OK(override(config, "data.validation=0.25"));
    CHECK_OK(override(config, "generate.stop=a, b"));
    ck_assert(config->optim_lr == 2e-3 && config->data_validation.share == 0.25);
    ck_assert_str_eq(config->output, "a=b: c");
    ck_assert(config->data_train.n == 2 && config->data_train.items[1].weight == 3.0);
    ck_assert(config->generate_stop.n == 1 && strcmp(config->generate_stop.items[0], "a, b") == 0);
    CHECK_OK(override(config, "generate.stop=[\"\\n\", b]"));
    ck_assert(config->generate_stop.n == 2 && strcmp(config->generate_stop.items[0], "\n") == 0);
    ck_assert_str_eq(config_where(config, OPTION_optim_lr), "argument 3 (optim.lr=2e-3)");
    CHECK_ERROR(override(config, "optim.lr=x"), ERR_USAGE,
                "argument 3 (optim.lr=x): optim.lr: found 'x', expected a number");
    CHECK_ERROR(override(config, "optim.lrr=1"), ERR_USAGE, "did you mean 'optim.lr'?");
    CHECK_ERROR(override(config, "optim=1"), ERR_USAGE, "is a section");
    CHECK_ERROR(override(config, "fast"), ERR_USAGE, "argument 3 (fast): expected key=value");
    CHECK_ERROR(override(config, "output=\xff"), ERR_USAGE, "not valid UTF-8");
    CHECK_ERROR(override(config, "generate.stop=[a"), ERR_USAGE, "argument 3");
    CHECK_ERROR(override(config, "data.train=[]]"), ERR_USAGE, "argument 3");
    CHECK_ERROR(override(config, "=1"), ERR_USAGE, "argument 3");
    config_free(config);
}
END_TEST

START_TEST(a_written_config_reads_back_the_same) {
    Config *config = fresh(), *again = fresh();
    CHECK_OK(parse(config, "output: \"a \\\"q\\\" \\\\ \\n \\t \\x01 \\u2028 \\ufeff é 🦙 # no: comment\"\n"
                           "seed: 9223372036854775807\n"
                           "tokenizer: {path: 'null'}\n"
                           "data: {train: [a, {path: b, separator: \"\\n\\n\", weight: 0.1}], validation: [v]}\n"
                           "optim: {lr: 0.1234567890123456789, eps: 2.3e-308, clip: 1.7976931348623157e308}\n"
                           "train: {sample_prompt: ''}\n"
                           "generate: {stop: ['', '~', 'a: b', \"\\n\"]}\n"));
    char *text = written(config);
    CHECK_OK(parse(again, text));
    size_t n_fixed;
    Text changed = {0}, fixed = {0};
    CHECK_OK(config_diff(config, again, &changed, &fixed, &n_fixed));
    ck_assert_msg(n_fixed == 0 && changed.length == 0, "%s%s", changed.bytes ? changed.bytes : "",
                  fixed.bytes ? fixed.bytes : "");
    ck_assert(memcmp(&config->optim_lr, &again->optim_lr, sizeof(double)) == 0);
    ck_assert_str_eq(config->output, again->output);
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const char *last = strrchr(option_table[i].key, '.');
        ck_assert_ptr_nonnull(strstr(text, last ? last + 1 : option_table[i].key));
        ck_assert_msg(config_is_set(again, (OptionId)i), "%s is not in the written config", option_table[i].key);
    }
    char *twice = written(again);
    ck_assert_str_eq(text, twice);
    free(text);
    free(twice);
    config_free(config);
    config_free(again);
}
END_TEST

START_TEST(a_resume_may_change_a_short_list_only) {
    Config *before = fresh(), *now = fresh();
    CHECK_OK(parse(now, "optim: {lr: 1.0e-5}\ntrain: {steps: 10, threads: 3}\n"));
    CHECK_OK(config_check_resume(before, now));
    size_t n_fixed;
    Text changed = {0}, fixed = {0};
    CHECK_OK(parse(now, "seed: 5\nmodel: {dim: 32}\n"));
    CHECK_OK(config_diff(before, now, &changed, &fixed, &n_fixed));
    ck_assert_uint_eq(n_fixed, 2);
    ck_assert_str_eq(fixed.bytes, "seed: 1 before, 5 now\nmodel.dim: 0 before, 32 now\n");
    ck_assert_ptr_nonnull(strstr(changed.bytes, "optim.lr: 0.0003 before, 1e-05 now\n"));
    CHECK_ERROR(config_check_resume(before, now), ERR_USAGE, "model.dim: 0 before, 32 now");
    text_free(&changed);
    text_free(&fixed);
    config_free(before);
    config_free(now);
}
END_TEST

START_TEST(rules_between_keys_are_checked) {
    static const char *const wrong[][2] = {
        {"train: {steps: 1, tokens: 5}", "already given by train.steps"},
        {"train: {context: 8192}", "a micro-batch must hold one sequence"},
        {"train: {context: 64, tokens_per_batch: 32}", "a.yaml:1:40: train.tokens_per_batch"},
        {"model: {base: a, preset: b}", "already gives the shape"},
        {"model: {n_heads: 8, n_kv_heads: 3}", "3 does not divide"},
        {"model: {max_context: 8}", "train.context"},
        {"tokenizer: {path: from-model}", "needs model.base"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        Config *config = fresh();
        CHECK_OK(config_check(config));
        CHECK_OK(parse(config, wrong[i][0]));
        CHECK_ERROR(config_check(config), ERR_USAGE, wrong[i][1]);
        config_free(config);
    }
    Config *config = fresh();
    CHECK_ERROR(config_require(config, OPTION_output), ERR_USAGE, "output is needed");
    CHECK_ERROR(config_require(config, OPTION_data_train), ERR_USAGE, "data.train is needed");
    CHECK_OK(config_set_text(config, OPTION_output, "x"));
    CHECK_OK(config_require(config, OPTION_output));
    config_free(config);
}
END_TEST

START_TEST(help_mentions_every_key_with_its_default) {
    Text all = {0}, some = {0};
    config_help(&all, NULL);
    config_help(&some, "output optim");
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        char line[128];
        snprintf(line, sizeof line, "\n  %s: ", option_table[i].key);
        const char *at = strstr(all.bytes, line);
        ck_assert_msg(at != NULL, "%s is not in the help", option_table[i].key);
        ck_assert_ptr_nonnull(strstr(at, option_table[i].help));
        ck_assert_ptr_nonnull(strstr(at, option_table[i].default_text));
        bool wanted = strcmp(option_table[i].key, "output") == 0 || strncmp(option_table[i].key, "optim.", 6) == 0;
        ck_assert_int_eq(strstr(some.bytes, line) != NULL, wanted);
    }
    for (size_t i = 0; i < source_table_length; i++) ck_assert_ptr_nonnull(strstr(all.bytes, source_table[i].help));
    text_free(&all);
    text_free(&some);
}
END_TEST

START_TEST(every_recipe_parses_and_passes_the_rules) {
    glob_t found;
    ck_assert_int_eq(glob("configs/*.yaml", 0, NULL, &found), 0);
    ck_assert_uint_ge(found.gl_pathc, 6);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        if (strstr(found.gl_pathv[i], "/rounds_")) continue; /* they have stages: test_rounds.c */
        Config *config = fresh();
        CHECK_OK(config_load(config, found.gl_pathv[i]));
        CHECK_OK(config_check(config));
        CHECK_OK(config_require(config, OPTION_output));
        CHECK_OK(config_require(config, OPTION_data_train));
        if (!*config->model_base) CHECK_OK(config_require(config, OPTION_tokenizer_path)); /* else it has one inside */
        config_free(config);
    }
    globfree(&found);
}
END_TEST

START_TEST(recipes_have_the_published_shapes) {
    static const char *const pairs[][2] = {{"configs/pretrain_15m.yaml", "15m"},
                                           {"configs/pretrain_42m.yaml", "42m"},
                                           {"configs/pretrain_110m.yaml", "110m"},
                                           {"configs/llama2_7b.yaml", "llama2-7b"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        Config *config = fresh();
        LlamaShape shape;
        CHECK_OK(config_load(config, pairs[i][0]));
        CHECK_OK(llama_preset(&shape, pairs[i][1]));
        ck_assert(config->model_dim == shape.dim && config->model_n_layers == shape.n_layers);
        ck_assert(config->model_n_heads == shape.n_heads && config->model_ffn_dim == shape.ffn_dim);
        ck_assert_int_eq(config->train_context, shape.max_context);
        ck_assert_int_eq(config->model_tie_embeddings == 1, shape.tied);
        config_free(config);
    }
}
END_TEST

/* A copy of `text` with one to four random changes: a bit flipped, a byte replaced by one of YAML's own, a piece cut
 * out or doubled, the end cut off. */
static size_t mutate(char *out, const char *text, size_t size, uint64_t number) {
    static const char special[] = "{}[]:,-?&*!|>'\"%@`#\n\t \\~<=0";
    PhiloxKey key = philox_key(number, PHILOX_TEST, 0, 0);
    memcpy(out, text, size);
    uint64_t draw = 0, changes = 1 + philox_below(key, draw++, 4);
    for (; changes > 0 && size > 1; changes--) {
        size_t at = philox_below(key, draw++, size), n = 1 + philox_below(key, draw++, 24);
        if (n > size - at) n = size - at;
        switch (philox_below(key, draw++, 5)) {
        case 0:
            out[at] = (char)(out[at] ^ (1 << philox_below(key, draw++, 8)));
            break;
        case 1:
            out[at] = special[philox_below(key, draw++, sizeof special - 1)];
            break;
        case 2:
            memmove(out + at, out + at + n, size - at - n);
            size -= n;
            break;
        case 3:
            memmove(out + at + n, out + at, size - at);
            size += n;
            break;
        default:
            size = at;
        }
    }
    return size;
}

START_TEST(damaged_files_give_an_error_or_a_config_and_never_a_crash) {
    const int rounds = check_rounds(3000);
    Config *source = fresh();
    CHECK_OK(parse(source, "output: \"a\\n b\"\ndata: {train: [a, {path: b}], validation: [v]}\n"
                           "generate: {stop: [a, b]}\n"));
    char *text = written(source);
    size_t size = strlen(text), refused = 0;
    char *damaged = malloc(size + 4 * 24 + 1);
    for (uint64_t i = 0; i < (uint64_t)rounds; i++) {
        size_t n = mutate(damaged, text, size, i);
        Config *config = fresh();
        error_clear();
        int rc = config_parse(config, "damaged.yaml", damaged, n);
        ck_assert(rc == OK || rc == ERR_USAGE);
        if (rc != OK) ck_assert_msg(strncmp(error_text(), "damaged.yaml:", 13) == 0, "%s", error_text());
        refused += rc != OK;
        config_free(config);
    }
    ck_assert_msg(refused > (size_t)rounds / 2, "only %zu of %d were refused", refused, rounds);
    for (size_t n = 0; n < size; n += 7) { /* truncated everywhere */
        Config *config = fresh();
        int rc = config_parse(config, "damaged.yaml", text, n);
        ck_assert(rc == OK || rc == ERR_USAGE);
        config_free(config);
    }
    free(damaged);
    free(text);
    config_free(source);
}
END_TEST

CHECK_MAIN("config", every_row_of_the_table_makes_sense, fields_are_named_after_their_keys,
           choices_are_in_the_order_of_the_enums_they_become, defaults_are_the_tables,
           a_file_fills_fields_of_every_type, an_empty_file_is_all_defaults,
           errors_name_line_column_key_and_what_was_expected, an_unknown_key_is_refused_with_the_nearest,
           yaml_that_cannot_be_trusted_is_refused_where_it_stands, depth_and_size_are_bounded,
           arguments_override_the_file_and_name_their_position, a_written_config_reads_back_the_same,
           a_resume_may_change_a_short_list_only, rules_between_keys_are_checked,
           help_mentions_every_key_with_its_default, every_recipe_parses_and_passes_the_rules,
           recipes_have_the_published_shapes, damaged_files_give_an_error_or_a_config_and_never_a_crash)
