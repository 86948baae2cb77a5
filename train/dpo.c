/* cria dpo: a model learns from preferences (Rafailov et al. 2023). The data are pairs of answers, or labelled ones;
 * rendered with the model's chat template. The reference's log-probabilities are computed before the first step. */
#include <stdlib.h>
#include <string.h>

#include "data/estimate.h"
#include "model/core/error.h"
#include "model/formats/checkpoint.h"
#include "train/chat_stage.h"
#include "train/commands.h"
#include "train/objectives/dpo_objective.h"
#include "train/other_model.h"
#include "train/objectives/kto_objective.h"
#include "train/setup.h"

enum { USUAL_PAIRS = 64 /* of a step, where the config does not say */ };

typedef struct {
    ChatStage chat;
    PreferenceLoss loss;
    Reference reference;
} Dpo;

static void free_own(Run *run) {
    Dpo *dpo = run->own;
    if (!dpo) return;
    reference_free(&dpo->reference);
    chat_stage_free(&dpo->chat);
    free(dpo);
}

static void about(Text *out) {
    text_printf(out,
                "Trains model.base on preferences (data.train: JSONL or JSON arrays of prompt, chosen and rejected;\n"
                "of chosen and rejected conversations; hh-rlhf's texts; ranked answers; with dpo.loss=kto of prompt,\n"
                "completion and label). A step is preferences.per_batch pairs (%d where it is 0). The reference is\n"
                "what training begins from, or dpo.reference. The same command on the same output resumes.",
                USUAL_PAIRS);
}

static int defaults(Config *config) {
    TRY(chat_stage_defaults(config));
    if (config->preferences_per_batch == 0) config->preferences_per_batch = USUAL_PAIRS;
    if (config->dpo_loss == DPO_KTO && config->dpo_nll > 0)
        return config_fail(config, OPTION_dpo_nll, "there is no chosen answer in dpo.loss: kto; leave it 0");
    bool no_smoothing = config->dpo_loss == DPO_IPO || config->dpo_loss == DPO_HINGE || config->dpo_loss == DPO_KTO;
    if (no_smoothing && config->dpo_label_smoothing > 0)
        return config_fail(config, OPTION_dpo_label_smoothing,
                           "this dpo.loss has none: it is of sigmoid, robust and simpo; leave it 0");
    if (config->dpo_loss == DPO_SIMPO && *config->dpo_reference)
        return config_fail(config, OPTION_dpo_reference, "dpo.loss: simpo compares with no reference; leave it empty");
    int64_t pair = 2 * config->train_context;
    if (config->train_tokens_per_microbatch < pair)
        return config_fail(config, OPTION_train_tokens_per_microbatch,
                           "both answers of a pair are computed at once, each up to train.context tokens: at least "
                           "%lld",
                           (long long)pair);
    return OK;
}

static PreferenceLoss loss_options(const Config *config) {
    return (PreferenceLoss){.loss = (DpoLoss)config->dpo_loss,
                            .beta = config->dpo_beta,
                            .label_smoothing = config->dpo_label_smoothing,
                            .gamma = config->dpo_gamma,
                            .length_normalised = config->dpo_length_normalised,
                            .desirable = config->dpo_desirable_weight,
                            .undesirable = config->dpo_undesirable_weight};
}

static int prepare(Run *run) {
    Dpo *dpo = calloc(1, sizeof *dpo);
    if (!dpo) FAIL(ERR_FAILED, "out of memory");
    run->own = dpo;
    dpo->loss = loss_options(run->config);
    run->stops_masked = run->config->preferences_mask_stop;
    return chat_stage_prepare(run);
}

static int make_encoder(const RecordEncoder **encoder, Run *run, const ConfigSource *source,
                        const ChatColumns *columns) {
    (void)source;
    const Dpo *dpo = run->own;
    return chat_stage_pair_encoder(encoder, run, columns, (PairObjectives){.n = 0},
                                   dpo->loss.loss == DPO_KTO ? SAMPLE_LABELLED : SAMPLE_PAIR);
}

static int data(Run *run, LoaderOptions *options) {
    return chat_stage_data(run, options, make_encoder);
}

/* ---- the reference ---- */

static int open_reference(Run *run, ModelFile *file) {
    const Config *config = run->config;
    TRY(model_file_open(file, config->dpo_reference,
                        (ModelFileOptions){.need_tokenizer = true, .precision = setup_precision(config)}));
    return other_model_check(run, OPTION_dpo_reference, file);
}

static int has_checkpoint(const Run *run, bool *found) {
    char *folder = NULL;
    *found = false;
    if (mesh_rank(run->mesh) != 0) return OK;
    int rc = checkpoint_newest(&folder, NULL, run->config->output);
    *found = rc == OK && folder;
    free(folder);
    return rc;
}

static int ready(Run *run) {
    Dpo *dpo = run->own;
    const Config *config = run->config;
    ModelFile other = {0};
    bool is_other = *config->dpo_reference != '\0', resuming;
    if (!preference_has_reference(&dpo->loss)) return OK;
    TRY(mesh_agree(run->mesh, has_checkpoint(run, &resuming)));
    int rc = mesh_agree(run->mesh, is_other ? open_reference(run, &other) : OK);
    if (rc == OK)
        rc = reference_make(&dpo->reference,
                            &(ReferenceOptions){.folder = config->output,
                                                .name = is_other ? config->dpo_reference : config->model_base,
                                                .model = is_other ? other.model : run->model,
                                                .loader = run->loader,
                                                .mesh = run->mesh,
                                                .precision = setup_precision(config),
                                                .tokens_per_microbatch = setup_microbatch(config, mesh_size(run->mesh)),
                                                .must_match = resuming});
    model_file_close(&other);
    return rc;
}

static int objective(Objective **out, Run *run, int capacity) {
    const Dpo *dpo = run->own;
    const Config *config = run->config;
    bool has_reference = preference_has_reference(&dpo->loss);
    const Reference *reference = has_reference ? &dpo->reference : NULL;
    bool begins = has_reference && *config->dpo_reference == '\0' && run->state.step == 0;
    if (dpo->loss.loss == DPO_KTO)
        return kto_objective_new(
            out, capacity, &(KtoOptions){.loss = dpo->loss, .reference = reference, .begins_at_reference = begins});
    return dpo_objective_new(
        out, capacity,
        &(DpoOptions){
            .loss = dpo->loss, .nll = config->dpo_nll, .reference = reference, .begins_at_reference = begins});
}

const Stage stage_dpo = {
    .name = "dpo",
    .about = about,
    .sections =
        "output seed precision model tokenizer data template lora preferences dpo optim train generate parallel",
    .defaults = defaults,
    .prepare = prepare,
    .new_rows = chat_stage_new_rows,
    .data = data,
    .data_opened = chat_stage_data_opened,
    .ready = ready,
    .objective = objective,
    .sample = chat_stage_sample,
    .free = free_own};

int command_dpo(int argc, char **argv) {
    return run_command(&stage_dpo, argc, argv);
}
