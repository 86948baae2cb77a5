/* Adapters trained by cria sft against TRL and PEFT: the same base, the same adapter to begin from, the same
 * conversations, 20 AdamW steps (tests/golden/sft_lora_trl.py). The first step's gradients are read from the first
 * moment, which after one step is (1 - β1) times them. Bounds as in test_sft_trl.c and test_lora_golden.c. */
#include "tests/sft_trl.h"

static const struct {
    const char *name, *config;
    size_t n_parameters;
} kinds[] = {
    {"lora", "lora: {rank: 4, alpha: 8}", 28},
    {"rslora", "lora: {rank: 3, alpha: 5, rslora: true}", 28},
    {"dora", "lora: {rank: 4, alpha: 6, dora: true, targets: \"q, v, o, up\"}", 24},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static NamedFile *open_file(const char *kind, const char *name) {
    NamedFile *file;
    char path[256];
    snprintf(path, sizeof path, GOLDEN "/%s/%s", kind, name);
    CHECK_OK(named_open(&file, path));
    return file;
}

static NamedFile *open_checkpoint(const char *output, const char *name) {
    NamedFile *file;
    char *folder;
    CHECK_OK(checkpoint_resolve(&folder, output));
    CHECK_OK(checkpoint_open_arrays(&file, folder, name));
    free(folder);
    return file;
}

/* The largest relative distance of arrays "PREFIX.NAME" that are expected from FACTOR times those named "OWN NAME". */
static double compare_arrays(const NamedFile *expected, const char *prefix, const NamedFile *found, const char *own,
                             float factor, const NamedFile *from, size_t n_wanted) {
    double worst = 0;
    size_t n_found = 0;
    for (size_t i = 0; i < named_count(expected); i++) {
        const char *name = named_at(expected, i)->name;
        char key[256];
        size_t n, m;
        if (strncmp(name, prefix, strlen(prefix)) != 0) continue;
        snprintf(key, sizeof key, "%s%s", own, name + strlen(prefix));
        float *to = trl_array(expected, name, &n), *is = trl_array(found, key, &m);
        float *start = from ? trl_array(from, name + strlen(prefix), &m) : calloc(n, sizeof *start);
        ck_assert_uint_eq(n, m);
        for (size_t e = 0; e < n; e++) is[e] *= factor;
        double relative = trl_distance(start, is, to, 0, n);
        if (!(relative <= worst)) worst = relative;
        n_found++;
        free(to);
        free(is);
        free(start);
    }
    ck_assert_uint_eq(n_found, n_wanted);
    return worst;
}

static double gradients_of_one_step(const char *config, const char *output, int kind, const char *way,
                                    const char *more) {
    const float beta1 = 0.9f;
    char one[256];
    snprintf(one, sizeof one, "train.steps=1 %s", more);
    run_cria(config, output, way, one);
    NamedFile *expected = open_file(kinds[kind].name, "expected.safetensors");
    NamedFile *found = open_checkpoint(output, "optimizer.h5");
    double worst = compare_arrays(expected, "grad.", found, "m.", 1 / (1 - beta1), NULL, kinds[kind].n_parameters);
    named_close(expected);
    named_close(found);
    return worst;
}

typedef struct {
    double loss, norm, change;
} Distance;

static Distance twenty_steps(const char *config, const char *output, int kind, const char *way, const char *more) {
    char path[256];
    snprintf(path, sizeof path, GOLDEN "/%s/expected.json", kinds[kind].name);
    json_t *golden = json_load_file(path, 0, NULL);
    ck_assert_ptr_nonnull(golden);
    run_cria(config, output, way, more);
    NamedFile *expected = open_file(kinds[kind].name, "expected.safetensors");
    NamedFile *start = open_file(kinds[kind].name, "adapter_model.safetensors");
    NamedFile *found = open_checkpoint(output, CHECKPOINT_MODEL);
    Distance d = {compare_metric(output, "loss", json_object_get(golden, "losses"), false),
                  compare_metric(output, "grad_norm", json_object_get(golden, "grad_norms"), true),
                  compare_arrays(expected, "theta.", found, "", 1, start, kinds[kind].n_parameters)};
    named_close(expected);
    named_close(start);
    named_close(found);
    json_decref(golden);
    return d;
}

static const char *config_of(int kind) {
    char text[2048], name[32];
    snprintf(name, sizeof name, "%s.yaml", kinds[kind].name);
    snprintf(text, sizeof text, "%s%s\n", recipe, kinds[kind].config);
    return fixture_text(name, text);
}

static const char *start_of(int kind) {
    static char text[128];
    snprintf(text, sizeof text, "lora.init=" GOLDEN "/%s", kinds[kind].name);
    return text;
}

START_TEST(gradients_and_twenty_steps_are_those_of_trl_and_peft_however_records_are_cut) {
    fixture_setup();
    for (int kind = 0; kind < N_KINDS; kind++) {
        const char *config = config_of(kind);
        for (int way = 0; way < N_WAYS; way++) {
            char name[32];
            snprintf(name, sizeof name, "%s%d", kinds[kind].name, way);
            const char *output = fixture_path(name);
            double gradient = gradients_of_one_step(config, output, kind, ways[way], start_of(kind));
            Distance d = twenty_steps(config, output, kind, ways[way], start_of(kind));
            printf("%s, %s\n  gradients %.1e, losses %.1e, norms %.1e, change %.1e\n", kinds[kind].name, ways[way],
                   gradient, d.loss, d.norm, d.change);
            ck_assert_msg(gradient <= 1e-5, "gradient: %g", gradient);
            ck_assert_msg(d.loss <= 1e-6, "loss: %g", d.loss);
            ck_assert_msg(d.norm <= 1e-5, "norm: %g", d.norm);
            ck_assert_msg(d.change <= 5e-5, "change: %g", d.change);
        }
    }
    fixture_teardown();
}
END_TEST

START_TEST(another_decay_ratio_or_mask_is_noticed) {
    static const char *const wrong[] = {"optim.weight_decay=0", "lora.plus_ratio=1.05", "sft.train_on=all"};
    fixture_setup();
    const char *config = config_of(0);
    for (int i = 0; i < 3; i++) {
        char name[32], more[256];
        snprintf(name, sizeof name, "wrong%d", i);
        const char *output = fixture_path(name);
        snprintf(more, sizeof more, "%s %s", start_of(0), wrong[i]);
        Distance d = twenty_steps(config, output, 0, ways[0], more);
        ck_assert_msg(d.change > 1e-3, "%s passes: change %g", wrong[i], d.change);
    }
    fixture_teardown();
}
END_TEST

CHECK_MAIN("sft of adapters and TRL", gradients_and_twenty_steps_are_those_of_trl_and_peft_however_records_are_cut,
           another_decay_ratio_or_mask_is_noticed)
