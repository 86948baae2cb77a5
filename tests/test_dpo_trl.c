/* cria dpo against TRL: the same policy and reference, the same pairs, 20 AdamW steps of every loss
 * (tests/golden/dpo_trl.py). The program itself runs, from records to checkpoint. Bounds: every metric at step 0 and
 * its gradient within 1e-5 of their size; losses of 20 steps within 1e-6 of theirs, or of 1; the parameters' change
 * within 1e-3 of its norm, and every metric with it. */
#include "model/formats/safetensors.h"
#include "tests/trl_golden.h"

#define GOLDEN "tests/golden/dpo_trl"
enum { STEPS = 20, PARAMETERS = 20 };

static const char recipe[] = "precision: fp32\nmodel: {base: " GOLDEN "}\n"
                             "tokenizer: {path: tests/golden/tokenizer_chat.json}\ntemplate: {name: llama3}\n"
                             "data: {train: [{path: " GOLDEN "/records.jsonl}], validation: 0}\n"
                             "preferences: {per_batch: 8}\n"
                             "optim: {lr: 2.0e-3, schedule: constant, warmup: 0, weight_decay: 0.1, beta2: 0.95}\n"
                             "train: {steps: 20, context: 128, tokens_per_microbatch: 1024}\n";

static const struct {
    const char *name, *options;
    bool other_reference;
} runs[] = {{"sigmoid", "", false},
            {"sigmoid_nll", "dpo.nll=0.2", true},
            {"ipo", "dpo.loss=ipo", true},
            {"hinge", "dpo.loss=hinge", true},
            {"robust", "dpo.loss=robust dpo.label_smoothing=0.1", true},
            {"sigmoid_norm", "dpo.length_normalised=true", true}};
enum { N_RUNS = sizeof runs / sizeof *runs };

static const char *config;

static void copy_file(const char *from, const char *to) {
    char *bytes;
    size_t size;
    CHECK_OK(file_read(&bytes, &size, from, 0));
    fixture_write(to, bytes, size);
    free(bytes);
}

/* The reference as a model's directory. */
static void setup(void) {
    fixture_setup();
    config = fixture_text("dpo.yaml", recipe);
    copy_file(GOLDEN "/config.json", "reference/config.json");
    copy_file(GOLDEN "/reference.safetensors", "reference/model.safetensors");
    copy_file("tests/golden/tokenizer_chat.json", "reference/tokenizer.json");
}

static const char *run(int i, const char *name, const char *more) {
    const char *output = fixture_path(name);
    char *options;
    int n = asprintf(&options, "%s %s%s %s", runs[i].options, runs[i].other_reference ? "dpo.reference=" : "",
                     runs[i].other_reference ? fixture_path("reference") : "", more);
    ck_assert(n > 0);
    trl_run("dpo", config, output, options);
    free(options);
    return output;
}

static void check_metrics(const char *name, const char *output, const json_t *rows, size_t n_metrics) {
    const char *metric;
    json_t *value;
    ck_assert_uint_eq(json_array_size(rows), STEPS);
    size_t checked = 0;
    json_object_foreach(json_array_get(rows, 0), metric, value) {
        double first = trl_metric_distance(output, rows, metric, 1, STEPS),
               all = trl_metric_distance(output, rows, metric, STEPS, STEPS);
        ck_assert_msg(first <= 1e-5, "%s, step 0: %s differs by %g", name, metric, first);
        /* an answer whose two best tokens are near a tie may be right here and wrong there */
        double bound = strcmp(metric, "loss") == 0 ? 1e-6 : 1e-3;
        ck_assert_msg(all <= bound, "%s: %s differs by %g", name, metric, all);
        checked++;
    }
    ck_assert_uint_eq(checked, n_metrics);
}

START_TEST(every_loss_gives_what_trl_gives) {
    setup();
    json_t *golden = json_load_file(GOLDEN "/expected.json", 0, NULL);
    ck_assert_ptr_nonnull(golden);
    for (int i = 0; i < N_RUNS; i++) {
        char expected[256], name[64];
        const json_t *rows = json_object_get(json_object_get(golden, "runs"), runs[i].name);
        snprintf(expected, sizeof expected, GOLDEN "/%s.safetensors", runs[i].name);
        const char *output = run(i, runs[i].name, "");
        double change = trl_compare(output, GOLDEN "/model.safetensors", expected, 0, PARAMETERS);
        double loss = trl_metric_distance(output, rows, "loss", STEPS, STEPS);
        snprintf(name, sizeof name, "%s-gradient", runs[i].name);
        output = run(i, name, TRL_GRADIENT_STEP);
        double gradient = trl_compare(output, GOLDEN "/model.safetensors", expected, TRL_GRADIENT_SCALE, PARAMETERS);
        printf("%-13s gradient %.1e; 20 steps: losses %.1e, change %.1e\n", runs[i].name, gradient, loss, change);
        check_metrics(runs[i].name, fixture_path(runs[i].name), rows, 13);
        ck_assert_msg(gradient <= 1e-5, "%s: gradient %g", runs[i].name, gradient);
        ck_assert_msg(change <= 1e-3, "%s: change %g", runs[i].name, change);
    }
    json_decref(golden);
    fixture_teardown();
}
END_TEST

START_TEST(the_result_does_not_depend_on_micro_batches) {
    setup();
    for (int i = 1; i < 3; i++) {
        const char *whole = run(i, i == 1 ? "whole1" : "whole2", "");
        const char *parts =
            run(i, i == 1 ? "parts1" : "parts2", "train.tokens_per_microbatch=256 train.recompute=layer");
        double *a = trl_metric(whole, "loss", STEPS), *b = trl_metric(parts, "loss", STEPS);
        for (int step = 0; step < STEPS; step++)
            ck_assert_msg(fabs(a[step] - b[step]) <= 1e-6 * fmax(1, a[step]), "%s, step %d: %.9g, %.9g", runs[i].name,
                          step, a[step], b[step]);
        free(a);
        free(b);
        char path[256];
        snprintf(path, sizeof path, GOLDEN "/%s.safetensors", runs[i].name);
        ck_assert(trl_compare(parts, GOLDEN "/model.safetensors", path, 0, PARAMETERS) <= 1e-3);
    }
    fixture_teardown();
}
END_TEST

/* ---- KTO ---- */

#define KTO "tests/golden/kto_trl"

static const char *run_kto(const char *name, const char *more) {
    const char *output = fixture_path(name);
    char *options;
    int n = asprintf(&options,
                     "dpo.loss=kto dpo.undesirable_weight=1.5 dpo.reference=%s data.train=" KTO "/records.jsonl %s",
                     fixture_path("reference"), more);
    ck_assert(n > 0);
    trl_run("dpo", config, output, options);
    free(options);
    return output;
}

START_TEST(kto_gives_what_trl_gives_for_a_step_in_one_batch) {
    setup();
    json_t *golden = json_load_file(KTO "/expected.json", 0, NULL);
    const json_t *whole = json_object_get(json_object_get(golden, "runs"), "whole");
    const json_t *halves = json_object_get(json_object_get(golden, "runs"), "halves");
    const char *output = run_kto("kto", "");
    double change = trl_compare(output, GOLDEN "/model.safetensors", KTO "/whole.safetensors", 0, PARAMETERS);
    double gradient = trl_compare(run_kto("kto-gradient", TRL_GRADIENT_STEP), GOLDEN "/model.safetensors",
                                  KTO "/whole.safetensors", TRL_GRADIENT_SCALE, PARAMETERS);
    printf("kto           gradient %.1e; 20 steps: losses %.1e, change %.1e\n", gradient,
           trl_metric_distance(output, whole, "loss", STEPS, STEPS), change);
    check_metrics("kto", output, whole, 12);
    ck_assert_msg(gradient <= 1e-5, "gradient %g", gradient);
    ck_assert_msg(change <= 1e-3, "change %g", change);
    /* however a step is cut, the estimate of the divergence is the whole step's; TRL's is each part's */
    const char *parts = run_kto("kto-parts", "train.tokens_per_microbatch=256");
    double same = trl_metric_distance(parts, whole, "loss", STEPS, STEPS),
           kl = trl_metric_distance(parts, whole, "kl", STEPS, STEPS);
    double other = trl_metric_distance(parts, halves, "loss", STEPS, STEPS),
           other_kl = trl_metric_distance(parts, halves, "kl", STEPS, STEPS);
    printf("kto in parts  losses %.1e, kl %.1e from TRL's in one batch; %.1e, %.1e from TRL's in two\n", same, kl,
           other, other_kl);
    ck_assert(same <= 1e-6 && kl <= 1e-3);
    ck_assert(other > 1e-3 && other_kl > 1e-2);
    json_decref(golden);
    fixture_teardown();
}
END_TEST

/* ---- the first step ---- */

/* Writes the run's reference again with one number moved, and everything that vouches for it right. */
static void move_reference(const char *path, double by) {
    NamedFile *file;
    char key[32], crc[16];
    size_t n;
    CHECK_OK(safetensors_open(&file, path));
    float *logps = trl_array(file, "logps", &n);
    snprintf(key, sizeof key, "%s", named_text(file, "key"));
    named_close(file);
    logps[3] += (float)by;
    snprintf(crc, sizeof crc, "%08x", crc32c(0, logps, n * sizeof *logps));
    NamedSource source = {
        .array = {.name = "logps", .dtype = DTYPE_F32, .n_dims = 2, .dims = {(int64_t)n / 2, 2}, .data = logps}};
    CHECK_OK(safetensors_write(path, &source, 1, (NamedText[]){{"key", key}, {"crc32c", crc}}, 2));
    free(logps);
}

static int begin_again(const char *output, const char *log) {
    char *line, *checkpoints = path_join(output, "checkpoints");
    const char *cria = getenv("CRIA");
    CHECK_OK(directory_remove(checkpoints));
    free(checkpoints);
    int n = asprintf(&line, "%s dpo %s output=%s train.steps=1 train.threads=1 2>%s", cria ? cria : "build/cria",
                     config, output, log);
    ck_assert(n > 0);
    int status = system(line);
    free(line);
    return status;
}

START_TEST(a_run_whose_policy_is_not_its_reference_stops_before_its_first_update) {
    setup();
    const char *output = run(0, "first", "train.steps=1"), *log = fixture_path("first-again.log");
    char *path = path_join(output, "reference.safetensors"), *said;
    size_t size;
    move_reference(path, 1e-4); /* of some 78 nats: within the bound, 1e-5 of them */
    ck_assert_int_eq(begin_again(output, log), 0);
    move_reference(path, 1e-2);
    ck_assert_int_ne(begin_again(output, log), 0);
    CHECK_OK(file_read(&said, &size, log, 0));
    ck_assert_msg(strstr(said, "every reward is 0 and the loss 0.693147") != NULL, "%s", said);
    ck_assert_msg(strstr(said, "the rejected answer of sample 0:") != NULL, "%s", said);
    free(said);
    free(path);
    fixture_teardown();
}
END_TEST

START_TEST(another_beta_weight_or_mask_is_noticed) {
    static const char *const wrong[] = {"dpo.beta=0.11", "dpo.nll=0.1", "preferences.mask_stop=true",
                                        "dpo.label_smoothing=0.1"};
    setup();
    for (int i = 0; i < 4; i++) {
        char name[24];
        snprintf(name, sizeof name, "wrong%d", i);
        const char *output = run(1, name, wrong[i]);
        double change =
            trl_compare(output, GOLDEN "/model.safetensors", GOLDEN "/sigmoid_nll.safetensors", 0, PARAMETERS);
        ck_assert_msg(change > 3e-3, "%s passes: %g", wrong[i], change);
    }
    fixture_teardown();
}
END_TEST

CHECK_MAIN("dpo and TRL", every_loss_gives_what_trl_gives, kto_gives_what_trl_gives_for_a_step_in_one_batch,
           the_result_does_not_depend_on_micro_batches,
           a_run_whose_policy_is_not_its_reference_stops_before_its_first_update,
           another_beta_weight_or_mask_is_noticed)
