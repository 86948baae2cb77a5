/* cria eval pairs: how often a model prefers the better answers. */
#include <stdio.h>

#include <jansson.h>

#include "eval/proportion.h"
#include "model/core/error.h"
#include "train/commands/chat_input.h"
#include "train/commands/cmd_eval.h"
#include "train/answers/eval_pairs.h"
#include "train/files/model_file.h"
#include "train/console/progress.h"

static void show_progress(void *context, uint64_t records) {
    progress_update(context, (int64_t)records, "");
}

static void print_share(const char *label, uint64_t right, uint64_t n) {
    Proportion p = proportion((int64_t)right, (int64_t)n);
    printf("%-24s %5.1f %%  (%llu of %llu; 95 %% between %.1f and %.1f)\n", label, 100 * p.share,
           (unsigned long long)right, (unsigned long long)n, 100 * p.low, 100 * p.high);
}

static void print_text(const PairEvaluation *r, bool has_reference) {
    print_share(has_reference ? "by reward" : "by log-probability", r->right, r->pairs);
    print_share("  a token", r->right_by_token, r->pairs);
    for (int s = N_STRENGTHS - 1; s > STRENGTH_UNKNOWN; s--)
        if (r->strength_pairs[s] > 0)
            print_share(strength_name((Strength)s), r->strength_right[s], r->strength_pairs[s]);
    printf("mean margin %.4g nats%s; %llu pairs of equal answers, %llu records too long\n", r->margin,
           has_reference ? " of log-ratio" : "", (unsigned long long)r->equal, (unsigned long long)r->overlong);
}

static int print_json(const PairEvaluation *r) {
    double n = (double)r->pairs;
    Proportion p = proportion((int64_t)r->right, (int64_t)r->pairs);
    json_t *strengths = json_object();
    for (int s = STRENGTH_NEGLIGIBLE; s < N_STRENGTHS; s++)
        if (r->strength_pairs[s] > 0)
            json_object_set_new(strengths, strength_name((Strength)s),
                                json_pack("{s:I, s:f}", "pairs", (json_int_t)r->strength_pairs[s], "accuracy",
                                          (double)r->strength_right[s] / (double)r->strength_pairs[s]));
    json_t *root = json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:o}", "pairs", (json_int_t)r->pairs, "accuracy",
                             p.share, "accuracy_low", p.low, "accuracy_high", p.high, "accuracy_by_token",
                             (double)r->right_by_token / n, "margin", r->margin, "equal", (json_int_t)r->equal,
                             "overlong", (json_int_t)r->overlong, "strengths", strengths);
    if (!root) FAIL(ERR_FAILED, "out of memory");
    json_dumpf(root, stdout, 0);
    printf("\n");
    json_decref(root);
    return OK;
}

static int evaluate(ChatInput *input, const char *model, const char *reference, bool json) {
    int rc = OK;
    ModelFile file = {0}, other = {0};
    Progress progress;
    PairEvaluation result;
    TRY_TO(done, model_file_open(&file, model, (ModelFileOptions){.need_tokenizer = true}));
    if (reference) TRY_TO(done, model_file_open(&other, reference, (ModelFileOptions){.need_tokenizer = true}));
    int wanted = tokenizer_vocab_size(input->tokenizer);
    if (file.model->shape.vocab_size < wanted || (reference && other.model->shape.vocab_size < wanted))
        FAIL_TO(done, ERR_REFUSED,
                "the template needs a vocabulary of %d tokens, and %s has %d: it was not trained on this template",
                wanted, file.model->shape.vocab_size < wanted ? model : reference,
                file.model->shape.vocab_size < wanted ? file.model->shape.vocab_size : other.model->shape.vocab_size);
    progress_begin(&progress, "scoring", "records", 0, 0);
    rc = eval_pairs(&(EvalPairsOptions){.model = file.model,
                                        .reference = other.model,
                                        .chat = input->chat,
                                        .columns = &input->renamed,
                                        .paths = input->paths,
                                        .n_paths = input->n_paths,
                                        .context = (size_t)input->context,
                                        .overlong = input->policy,
                                        .progress = show_progress,
                                        .progress_context = &progress},
                    &result);
    progress_end(&progress);
    if (rc == OK && json) rc = print_json(&result);
    if (rc == OK && !json) print_text(&result, reference != NULL);
done:
    model_file_close(&file);
    model_file_close(&other);
    return rc;
}

int eval_pairs_command(int argc, char **argv) {
    ChatInput input = {0};
    const char *reference = NULL;
    bool json = false;
    Flag flags[CHAT_INPUT_FLAGS + 2] = {
        {"reference", 0, FLAG_TEXT, &reference, "MODEL", "", "judge by the ratio to this model's probabilities"},
        {"json", 0, FLAG_SWITCH, &json, "", "", "print one JSON object"},
    };
    chat_input_flags(&input, flags + 2);
    CliResult cli;
    TRY(cli_parse(&cli,
                  &(CliSpec){.usage = "MODEL FILE... [--reference MODEL] [flags]",
                             .about = "How often a model finds the better answer of a pair more likely (records of\n"
                                      "chosen and rejected, as for cria dpo), with a 95 % confidence interval.",
                             .flags = flags,
                             .n_flags = sizeof flags / sizeof *flags,
                             .min_words = 2,
                             .max_words = 1 << 20},
                  argc, argv));
    if (cli.helped) return OK;
    int rc = chat_input_open(&input, cli.words, cli.n_words);
    if (rc == OK) rc = evaluate(&input, cli.words[0], reference, json);
    chat_input_close(&input);
    return rc;
}
