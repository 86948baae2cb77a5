/* cria reward against TRL: the same base with a score head, the same pairs, 20 AdamW steps of every form of the loss
 * (tests/golden/reward_trl.py), and of a head with two rows, each pair about one (tests/golden/reward_heads_trl.py).
 * The program itself runs, from records to checkpoint. Bounds: every metric at step 0 and its gradient within 1e-5 of
 * their size; losses of 20 steps within 1e-6 of theirs, or of 1; the parameters' change within 1e-3 of its norm, and
 * every metric with it. */
#include "tests/trl_golden.h"
#include "train/objectives/reward_loss.h"

#define GOLDEN "tests/golden/reward_trl"
#define HEADS "tests/golden/reward_heads_trl"
enum { STEPS = 20, PARAMETERS = 21, METRICS = 8, OBJECTIVE_METRICS = 6 };

static const char recipe[] = "precision: fp32\nmodel: {base: " GOLDEN "}\n"
                             "tokenizer: {path: tests/golden/tokenizer_chat.json}\ntemplate: {name: llama3}\n"
                             "data: {train: [{path: " GOLDEN "/records.jsonl}], validation: 0}\n"
                             "preferences: {per_batch: 8}\n"
                             "optim: {lr: 2.0e-3, schedule: constant, warmup: 0, weight_decay: 0.1, beta2: 0.95}\n"
                             "train: {steps: 20, context: 128, tokens_per_microbatch: 1024}\n";

/* The records' margins are those of the small table, so the two ways to give them must agree. */
typedef struct {
    const char *name, *golden, *options;
} Trial;
static const Trial runs[] = {{"plain", "plain", "reward.margin=none"},
                             {"margin", "margin", ""},
                             {"strength", "margin", "reward.margin=llama2-small"},
                             {"centred", "centred", "reward.margin=none reward.center_coefficient=0.05"},
                             {"both", "both", "reward.center_coefficient=0.05"}};
enum { N_RUNS = sizeof runs / sizeof *runs };

/* The base's head has two rows with names, and records say which they are about. */
#define HEADS_DATA " model.base=" HEADS " data.train=" HEADS "/records.jsonl"
static const Trial heads[] = {{"two-plain", "plain", "reward.margin=none" HEADS_DATA},
                              {"two-both", "both", "reward.center_coefficient=0.05" HEADS_DATA}};

static const char *config;

static void setup(void) {
    fixture_setup();
    config = fixture_text("reward.yaml", recipe);
}

static const char *run(const char *name, const char *options, const char *more) {
    const char *output = fixture_path(name);
    char all[512];
    snprintf(all, sizeof all, "%s %s", options, more);
    trl_run("reward", config, output, all);
    return output;
}

static void check_metrics(const char *name, const char *output, const json_t *rows, size_t n_metrics) {
    const char *metric;
    json_t *value;
    size_t checked = 0;
    ck_assert_uint_eq(json_array_size(rows), STEPS);
    json_object_foreach(json_array_get(rows, 0), metric, value) {
        double first = trl_metric_distance(output, rows, metric, 1, STEPS);
        double all = trl_metric_distance(output, rows, metric, STEPS, STEPS);
        ck_assert_msg(first <= 1e-5, "%s, step 0: %s differs by %g", name, metric, first);
        double bound = strcmp(metric, "loss") == 0 ? 1e-6 : 1e-4;
        ck_assert_msg(all <= bound, "%s: %s differs by %g", name, metric, all);
        checked++;
    }
    ck_assert_uint_eq(checked, n_metrics);
}

/* The largest difference of a held-out reward from TRL's. */
static double reward_distance(const char *output, const char *golden, const json_t *expected) {
    char *line, *text, *rest;
    size_t size, n = 0;
    double worst = 0;
    const char *cria = getenv("CRIA");
    int written = asprintf(&line, "%s eval reward %s %s/held_out.jsonl -n 0 -o %s.scores >/dev/null 2>%s.log",
                           cria ? cria : "build/cria", output, golden, output, output);
    ck_assert(written > 0);
    ck_assert_msg(system(line) == 0, "%s", line);
    free(line);
    ck_assert(asprintf(&line, "%s.scores", output) > 0);
    CHECK_OK(file_read(&text, &size, line, 0));
    for (char *row = strtok_r(text, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest), n++) {
        json_t *scores = json_loads(row, 0, NULL);
        for (size_t i = 0; i < 2; i++) {
            double wanted = json_number_value(json_array_get(json_array_get(expected, n), i));
            double d = fabs(json_number_value(json_object_get(scores, i ? "rejected" : "chosen")) - wanted);
            if (!(d <= worst)) worst = d;
        }
        json_decref(scores);
    }
    ck_assert_uint_eq(n, json_array_size(expected));
    ck_assert_uint_gt(n, 0);
    free(text);
    free(line);
    return worst;
}

/* Runs it, and once more for the gradient of its first step. */
static void check_trial(const Trial *trial, const char *folder, const json_t *golden, size_t n_metrics) {
    char base[128], expected[256], name[64];
    const json_t *rows = json_object_get(json_object_get(golden, "runs"), trial->golden);
    const json_t *held_out = json_object_get(json_object_get(golden, "held_out"), trial->golden);
    snprintf(base, sizeof base, "%s/model.safetensors", folder);
    snprintf(expected, sizeof expected, "%s/%s.safetensors", folder, trial->golden);
    const char *output = run(trial->name, trial->options, "");
    double change = trl_compare(output, base, expected, 0, PARAMETERS);
    double loss = trl_metric_distance(output, rows, "loss", STEPS, STEPS);
    double rewards = reward_distance(output, folder, held_out);
    check_metrics(trial->name, output, rows, n_metrics);
    snprintf(name, sizeof name, "%s-gradient", trial->name);
    output = run(name, trial->options, TRL_GRADIENT_STEP);
    double gradient = trl_compare(output, base, expected, TRL_GRADIENT_SCALE, PARAMETERS);
    printf("%-9s gradient %.1e; 20 steps: losses %.1e, change %.1e, held-out rewards %.1e\n", trial->name, gradient,
           loss, change, rewards);
    ck_assert_msg(rewards <= 1e-4, "%s: held-out rewards differ by %g", trial->name, rewards);
    ck_assert_msg(gradient <= 1e-5, "%s: gradient %g", trial->name, gradient);
    ck_assert_msg(change <= 1e-3, "%s: change %g", trial->name, change);
}

START_TEST(every_form_of_the_loss_gives_what_trl_gives) {
    setup();
    json_t *golden = json_load_file(GOLDEN "/expected.json", 0, NULL);
    ck_assert_ptr_nonnull(golden);
    for (int i = 0; i < N_RUNS; i++) check_trial(&runs[i], GOLDEN, golden, METRICS);
    json_decref(golden);
    fixture_teardown();
}
END_TEST

START_TEST(each_pair_trains_its_own_row_as_trl_trains_its_only_one) {
    setup();
    json_t *golden = json_load_file(HEADS "/expected.json", 0, NULL);
    ck_assert_ptr_nonnull(golden);
    for (int i = 0; i < 2; i++) check_trial(&heads[i], HEADS, golden, METRICS + 2 * OBJECTIVE_METRICS);
    json_decref(golden);
    fixture_teardown();
}
END_TEST

/* Pairs that are about the other row are noticed. */
START_TEST(another_objective_is_noticed) {
    setup();
    const char *swapped = fixture_text("swapped.jsonl", "");
    char *line, *options;
    ck_assert(asprintf(&line,
                       "sed 's/\"objective\": \"safety\"/\"objective\": \"helpfulness\"/' " HEADS "/records.jsonl >%s",
                       swapped) > 0);
    ck_assert_int_eq(system(line), 0);
    free(line);
    ck_assert(asprintf(&options, "data.train=%s", swapped) > 0);
    const char *output = run("other", heads[1].options, options);
    free(options);
    double change = trl_compare(output, HEADS "/model.safetensors", HEADS "/both.safetensors", 0, PARAMETERS);
    ck_assert_msg(change > 3e-3, "it passes: %g", change);
    fixture_teardown();
}
END_TEST

START_TEST(the_result_does_not_depend_on_micro_batches) {
    setup();
    const char *options = runs[N_RUNS - 1].options;
    const char *whole = run("whole", options, ""),
               *parts = run("parts", options, "train.tokens_per_microbatch=256 train.recompute=layer");
    static const char *const metrics[] = {"loss",       "grad_norm",  "accuracy",   "margin",
                                          "min_reward", "max_reward", "mean_reward"};
    for (size_t m = 0; m < sizeof metrics / sizeof *metrics; m++) {
        double *a = trl_metric(whole, metrics[m], STEPS), *b = trl_metric(parts, metrics[m], STEPS);
        double bound = m == 0 ? 1e-6 : 1e-4;
        for (int step = 0; step < STEPS; step++)
            ck_assert_msg(fabs(a[step] - b[step]) <= bound * fmax(1, fabs(a[step])), "step %d, %s: %.9g, %.9g", step,
                          metrics[m], a[step], b[step]);
        free(a);
        free(b);
    }
    ck_assert(trl_compare(parts, GOLDEN "/model.safetensors", GOLDEN "/both.safetensors", 0, PARAMETERS) <= 1e-3);
    fixture_teardown();
}
END_TEST

START_TEST(another_margin_coefficient_or_decay_is_noticed) {
    static const char *const wrong[] = {"reward.margin=llama2-large", "reward.margin=none",
                                        "reward.center_coefficient=0.06", "optim.weight_decay=0"};
    setup();
    for (int i = 0; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "wrong%d", i);
        const char *output = run(name, runs[N_RUNS - 1].options, wrong[i]);
        double change = trl_compare(output, GOLDEN "/model.safetensors", GOLDEN "/both.safetensors", 0, PARAMETERS);
        ck_assert_msg(change > 3e-3, "%s passes: %g", wrong[i], change);
    }
    fixture_teardown();
}
END_TEST

/* ---- the loss alone ---- */

START_TEST(derivatives_are_those_of_the_loss) {
    static const double rewards[] = {-60, -3, -0.4, 0, 0.7, 5, 80}, margins[] = {0, 1.0 / 3, 3}, centers[] = {0, 0.01};
    enum { N = sizeof rewards / sizeof *rewards };
    const double h = 1e-5;
    for (int i = 0; i < N * N * 3 * 2; i++) {
        double c = rewards[i % N], r = rewards[i / N % N], m = margins[i / N / N % 3], k = centers[i / N / N / 3];
        RewardLoss loss = reward_loss(c, r, m, k);
        double by_chosen = (reward_loss(c + h, r, m, k).value - reward_loss(c - h, r, m, k).value) / (2 * h);
        double by_rejected = (reward_loss(c, r + h, m, k).value - reward_loss(c, r - h, m, k).value) / (2 * h);
        ck_assert(isfinite(loss.value) && loss.value >= 0);
        ck_assert_double_eq_tol(loss.by_chosen, by_chosen, 1e-8);
        ck_assert_double_eq_tol(loss.by_rejected, by_rejected, 1e-8);
    }
    ck_assert_double_eq_tol(reward_loss(1.5, 1.5, 0, 0).value, log(2), 1e-15);
    ck_assert_double_eq_tol(reward_loss(0, 800, 0, 0).value, 800, 1e-12);
    ck_assert(reward_loss(800, 0, 0, 0).value == 0);
}
END_TEST

START_TEST(margins_are_those_of_the_paper) {
    static const double small[N_STRENGTHS] = {0, 0, 1.0 / 3, 2.0 / 3, 1}, large[N_STRENGTHS] = {0, 0, 1, 2, 3};
    for (uint8_t s = 0; s < N_STRENGTHS; s++) {
        SampleMark mark = {.margin = NAN, .strength = s};
        ck_assert_double_eq(reward_margin(MARGIN_LLAMA2_SMALL, mark), small[s]);
        ck_assert_double_eq(reward_margin(MARGIN_LLAMA2_LARGE, mark), large[s]);
        ck_assert_double_eq(reward_margin(MARGIN_RECORD, mark), 0);
        mark.margin = 0.25f;
        ck_assert_double_eq(reward_margin(MARGIN_RECORD, mark), 0.25);
        ck_assert_double_eq(reward_margin(MARGIN_NONE, mark), 0);
    }
}
END_TEST

CHECK_MAIN("reward and TRL", every_form_of_the_loss_gives_what_trl_gives,
           each_pair_trains_its_own_row_as_trl_trains_its_only_one, another_objective_is_noticed,
           the_result_does_not_depend_on_micro_batches, another_margin_coefficient_or_decay_is_noticed,
           derivatives_are_those_of_the_loss, margins_are_those_of_the_paper)
