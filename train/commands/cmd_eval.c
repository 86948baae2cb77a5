/* cria eval: figures of a model. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "eval/loss.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "train/console/cli.h"
#include "train/commands/cmd_eval.h"
#include "train/commands.h"
#include "train/files/model_file.h"
#include "train/console/progress.h"

static void show_progress(void *context, uint64_t done, uint64_t total) {
    Progress *progress = context;
    progress->total = (int64_t)total;
    progress_update(progress, (int64_t)done, "");
}

static int print_loss(const LossResult *r, bool json) {
    if (!json) {
        printf("loss %.6f  perplexity %.6g  bits per byte %.4f  accuracy %.2f %%  tokens %llu\n", r->loss,
               r->perplexity, r->bits_per_byte, 100 * r->accuracy, (unsigned long long)r->tokens);
        return OK;
    }
    json_t *root =
        json_pack("{s:f, s:f, s:I, s:f, s:f}", "loss", r->loss, "perplexity", r->perplexity, "tokens",
                  (json_int_t)r->tokens, "bits_per_byte", r->bits_per_byte, "mean_token_accuracy", r->accuracy);
    if (!root) FAIL(ERR_FAILED, "out of memory");
    json_dumpf(root, stdout, 0);
    printf("\n");
    json_decref(root);
    return OK;
}

static int eval_text(const char *model, const char *base, const char *path, const char *tokenizer, int64_t window,
                     ScoreMode mode, bool json) {
    int rc = OK;
    ModelFile file = {0};
    char *text = NULL;
    size_t size;
    LossResult result;
    Progress progress;
    TRY_TO(done, file_read(&text, &size, path, 0));
    TRY_TO(done, model_file_open(&file, model,
                                 (ModelFileOptions){.tokenizer = tokenizer, .need_tokenizer = true, .base = base}));
    if (window == 0) window = file.model->shape.max_context < 2048 ? file.model->shape.max_context : 2048;
    progress_begin(&progress, "scoring", "tokens", 0, 0);
    rc = eval_loss(file.model, file.tokenizer, text, size, (int)window, mode, show_progress, &progress, &result);
    progress_end(&progress);
    if (rc == OK) rc = print_loss(&result, json);
done:
    model_file_close(&file);
    free(text);
    return rc;
}

static int eval_loss_command(int argc, char **argv) {
    const char *tokenizer = NULL, *base = NULL, *score = "all";
    int64_t window = 0;
    bool json = false;
    const Flag flags[] = {
        {"window", 'w', FLAG_INT, &window, "N", ">= 2",
         "tokens of context at most (the model's context, at most 2,048)"},
        {"score", 0, FLAG_TEXT, &score, "WHAT", "",
         "all (every token once), or last-half (of each window, as llama.cpp)"},
        {"tokenizer", 't', FLAG_TEXT, &tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"json", 0, FLAG_SWITCH, &json, "", "", "print one JSON object"},
    };
    CliResult cli;
    CliSpec spec = {.usage = "MODEL FILE [flags]",
                    .about = "Mean negative log-likelihood of a text's tokens, perplexity, bits per byte.",
                    .flags = flags,
                    .n_flags = sizeof flags / sizeof *flags,
                    .min_words = 2,
                    .max_words = 2};
    TRY(cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) return OK;
    bool half = strcmp(score, "last-half") == 0;
    if (!half && strcmp(score, "all") != 0) FAIL(ERR_USAGE, "--score is '%s'; all or last-half is expected", score);
    return eval_text(cli.words[0], base, cli.words[1], tokenizer, window, half ? SCORE_LAST_HALF : SCORE_ALL, json);
}

int command_eval(int argc, char **argv) {
    static const char help[] =
        "usage: cria eval loss MODEL FILE [flags]         loss and perplexity of a language model on a text\n"
        "       cria eval pairs MODEL PAIRS... [flags]    how often it finds the better answer more likely\n"
        "       cria eval policy MODEL PROMPTS [flags]    what its answers are worth, and their KL to a reference\n"
        "       cria eval reward MODEL PAIRS... [flags]   a reward model's report card on preferences\n\n"
        "'cria eval loss --help' and so on explain the flags.\n";
    static const CliVerb verbs[] = {{"loss", eval_loss_command},
                                    {"pairs", eval_pairs_command},
                                    {"policy", eval_policy_command},
                                    {"reward", eval_reward_command}};
    return cli_run_verb(verbs, sizeof verbs / sizeof *verbs, help, argc, argv);
}
