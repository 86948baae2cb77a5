/* cria eval policy: what a model's answers to prompts are worth, and how far it has gone from a reference. */
#include <math.h>
#include <stdio.h>

#include <jansson.h>

#include "model/core/error.h"
#include "train/commands/cmd_eval.h"
#include "train/console/cli.h"
#include "train/setup.h"
#include "train/sampling/policy_card.h"

typedef struct {
    const char *reference, *tokenizer, *base, *columns;
    bool json, chat;
} Arguments;

typedef struct {
    const Arguments *arguments;
    Config *config;
    Mesh *mesh;
    Answering answering;
    ModelFile reference;
    Scorer *scorer;
} Evaluation;

/* ---- printing ---- */

static void print_figure(const char *name, PolicyFigure f, const char *unit) {
    printf("%-10s %8.4f", name, f.mean);
    if (isfinite(f.error)) printf(" ± %.4f", f.error);
    printf("%s\n", unit);
}

static void print_card(const PolicyCard *card, bool has_reference) {
    const RolloutFigures *all = &card->all;
    printf("%d answers to %d prompts (± is the standard error over prompts)\n", card->answers, card->prompts);
    print_figure("reward", card->reward, "");
    if (has_reference) {
        print_figure("KL", card->kl, " nats an answer");
        printf("%-10s %8.4f nats\n", "  a token", all->token_kl);
    }
    printf("%-10s %8.4f nats an answer\n", "entropy", all->entropy);
    printf("%-10s %8.1f tokens, %.0f to %.0f; %.1f %% did not end by themselves\n", "length", all->length.mean,
           all->length.least, all->length.most, 100 * all->cut_off);
    if (isfinite(card->length_correlation)) printf("reward goes with length by %.2f\n", card->length_correlation);
}

static json_t *number_or_null(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

/* Names as those of the held-out prompts of cria ppo. */
static int print_json(const PolicyCard *card, bool has_reference) {
    const RolloutFigures *all = &card->all;
    json_t *root = json_pack("{s:i, s:i, s:f, s:o, s:f, s:f, s:f, s:f, s:o}", "prompts", card->prompts, "answers",
                             card->answers, "reward", card->reward.mean, "reward_error",
                             number_or_null(card->reward.error), "reward_std", all->reward_std, "objective/entropy",
                             all->entropy, "completions/mean_length", all->length.mean, "completions/clipped_ratio",
                             all->cut_off, "length_correlation", number_or_null(card->length_correlation));
    if (!root) FAIL(ERR_FAILED, "out of memory");
    if (has_reference) {
        json_object_set_new(root, "objective/kl", json_real(card->kl.mean));
        json_object_set_new(root, "objective/kl_error", number_or_null(card->kl.error));
        json_object_set_new(root, "kl", json_real(all->token_kl));
    }
    json_dumpf(root, stdout, JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(root);
    return OK;
}

/* ---- the measurement ---- */

static int open_reference(Evaluation *e) {
    const char *path = e->arguments->reference;
    const ModelFile *own = &e->answering.file;
    TRY(model_file_open(&e->reference, path,
                        (ModelFileOptions){.need_tokenizer = true, .inference = setup_inference(e->config)}));
    int wanted = tokenizer_vocab_size(own->tokenizer);
    int id = tokenizer_first_difference(e->reference.tokenizer, own->tokenizer);
    if (e->reference.model->shape.vocab_size < wanted || id >= 0)
        FAIL(ERR_REFUSED,
             "--reference: %s has other tokens than %s (the first that differs is %d): their log-probabilities "
             "cannot be compared",
             path, own->path, id >= 0 ? id : e->reference.model->shape.vocab_size);
    if (e->reference.model->rotary.n_positions < own->model->rotary.n_positions)
        FAIL(ERR_REFUSED, "--reference: %s was made for %d tokens at most, %s for %d", path,
             e->reference.model->rotary.n_positions, own->path, own->model->rotary.n_positions);
    return OK;
}

static int evaluate(Evaluation *e, char *const *words) {
    const Arguments *a = e->arguments;
    Config *config = e->config;
    PolicyCard card;
    TRY(policy_card_sampling(config));
    TRY(answering_scorer(&e->scorer, config));
    TRY(answering_open(&e->answering, config,
                       &(AnsweringOptions){.model = words[0],
                                           .tokenizer = a->tokenizer,
                                           .base = a->base,
                                           .chat = a->chat ? ANSWER_CHAT : (AnswerChat)config->rejection_chat,
                                           .columns = a->columns ? a->columns : "",
                                           .chat_option = "give --chat"}));
    TRY(prompts_read(&e->answering.prompts, &e->answering.how, words[1]));
    if (a->reference) TRY(open_reference(e));
    TRY(policy_card(&card,
                    &(PolicyCardOptions){.answering = &e->answering,
                                         .reference = e->reference.model,
                                         .scorer = e->scorer,
                                         .samples = (int)config->rejection_samples,
                                         .max_batch = (int)config->rejection_max_batch,
                                         .how = answering_generate_options(&e->answering, config)},
                    e->mesh));
    if (a->json) return print_json(&card, a->reference != NULL);
    print_card(&card, a->reference != NULL);
    return OK;
}

int eval_policy_command(int argc, char **argv) {
    int rc = OK;
    Arguments arguments = {0};
    CliResult cli;
    Evaluation e = {.arguments = &arguments};
    const Flag flags[] = {
        {"reference", 0, FLAG_TEXT, &arguments.reference, "MODEL", "", "measure the KL divergence from this one"},
        {"columns", 0, FLAG_TEXT, &arguments.columns, "LIST", "", "other names in records: prompt=question"},
        {"tokenizer", 't', FLAG_TEXT, &arguments.tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &arguments.base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"chat", 0, FLAG_SWITCH, &arguments.chat, "", "", "as rejection.chat=yes"},
        {"json", 0, FLAG_SWITCH, &arguments.json, "", "", "print one JSON object"},
    };
    TRY(config_new(&e.config));
    CliSpec spec = {
        .usage = "MODEL PROMPTS --reward KIND [--reference MODEL] [flags] [key=value ...]",
        .about = "Samples answers to prompts (a text a line, or records), scores them (--reward contains --word cat,\n"
                 "as for cria rejection), and tells how many nats of KL divergence an answer is from a reference:\n"
                 "policies made in any way are measured alike. The distribution is the whole one, at temperature 1\n"
                 "where generate.temperature does not say otherwise.",
        .flags = flags,
        .n_flags = sizeof flags / sizeof *flags,
        .min_words = 2,
        .max_words = 2,
        .config = e.config,
        .section = "rejection",
        .sections = "rejection generate template"};
    TRY_TO(done, cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) goto done;
    TRY_TO(done, mesh_init(&e.mesh, NULL, NULL));
    rc = evaluate(&e, cli.words);
done:
    scorer_free(e.scorer);
    model_file_close(&e.reference);
    answering_close(&e.answering);
    config_free(e.config);
    if (e.mesh) mesh_finalize(e.mesh);
    return rc;
}
