/* See run.h. Puts the rooms together (config, tokenizer, data, model, optimizer, checkpoints) and hands them to the
 * loop. */
#include "train/run.h"

#include <malloc.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/threads.h"
#include "model/formats/checkpoint.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/console/curve.h"
#include "train/console/interrupt.h"
#include "train/console/output_folder.h"
#include "train/console/progress.h"
#include "train/setup.h"
#include "train/run_adapter.h"

static void run_free(Run *run) {
    watchdog_stop(run->watchdog);
    loop_free(run->loop);
    if (run->metrics) metrics_close(run->metrics);
    if (run->objective) run->objective->free(run->objective);
    optimizer_free(run->optimizer);
    lora_free(run->lora);
    if (run->model != run->base.model) llama_free(run->model);
    if (run->tokenizer != run->base.tokenizer) tokenizer_free(run->tokenizer);
    model_file_close(&run->base);
    loader_free(run->loader);
    if (run->stage->free) run->stage->free(run);
    guard_free(&run->state.guard);
    text_free(&run->resolved);
    arena_free(&run->arena);
    config_free(run->config);
    output_folder_unlock(run->lock);
}

/* ---- the output folder ---- */

static const char config_name[] = "config.yaml";

/* Rank 0 alone touches the folder. */
static int open_output(Run *run, bool *resuming) {
    *resuming = false;
    if (mesh_rank(run->mesh) != 0) return OK;
    TRY(output_folder_check(run->config->output, run->stage->name, resuming));
    return output_folder_lock(run->config->output, &run->lock);
}

/* Whether `rc`, a refusal of the config, must stand: a run that has saved nothing may still begin with another one, so
 * that a first mistake (a path, a shape) can be corrected in place. */
static int keep_refusal(const Run *run, int rc) {
    char *folder = NULL, *refusal = strdup(error_text());
    if (!refusal) FAIL(ERR_FAILED, "out of memory");
    bool nothing_saved = checkpoint_newest(&folder, NULL, run->config->output) == OK && !folder;
    if (nothing_saved)
        log_info("%s holds no checkpoint yet: the run begins with this config", run->config->output);
    else
        error_set(rc, __FILE__, __LINE__, "%s", refusal);
    free(folder);
    free(refusal);
    return nothing_saved ? OK : rc;
}

/* Compares with the config this run began with, or writes it. */
static int settle_config(Run *run, bool resuming) {
    char *path = path_join(run->config->output, config_name);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = resuming ? config_check_saved(path, run->config) : OK;
    if (rc != OK) rc = keep_refusal(run, rc);
    if (rc == OK) rc = config_save(run->config, run->stage->name, path);
    free(path);
    return rc;
}

/* ---- the parts ---- */

/* A tokenizer of another kind has other ids, and the base's stop tokens and template mean nothing to it. */
static bool has_own_tokenizer(const Config *config) {
    return !*config->tokenizer_path || strcmp(config->tokenizer_path, "from-model") == 0;
}

/* As transformers does where a checkpoint has no score head. */
static int initialise_head(Run *run) {
    if (!run->base.new_head) return OK;
    LlamaInit init = {.seed = (uint64_t)run->config->seed, .std = (float)run->base.config.initializer_range};
    return llama_init_head(run->model, init);
}

static int open_model_base(Run *run) {
    const Config *config = run->config;
    bool adapted = config->lora_rank > 0;
    HfLabels labels;
    TRY(setup_labels(&labels, config));
    ModelFileOptions options = {.head = run->stage->head,
                                .labels = labels.n > 0 ? &labels : NULL,
                                .training = !adapted,
                                .train_head = adapted,
                                .train_vocabulary = setup_trains_vocabulary(config),
                                .vocabulary = !adapted || setup_trains_vocabulary(config) ? run->vocabulary : 0,
                                .precision = setup_precision(config),
                                .frozen = setup_frozen(config),
                                .unpacked = !config->train_packed_weights,
                                .fingerprint = adapted,
                                .whole = adapted,
                                .need_tokenizer = true,
                                .tokenizer = has_own_tokenizer(config) ? NULL : config->tokenizer_path};
    TRY(model_file_open(&run->base, config->model_base, options));
    run->model = run->base.model;
    run->tokenizer = run->base.tokenizer;
    TRY(initialise_head(run));
    TRY(run_remember_head(run));
    if (config->train_context > run->model->rotary.n_positions)
        return config_fail(config, OPTION_train_context, "%s was made for at most %d tokens", config->model_base,
                           run->model->rotary.n_positions);
    return OK;
}

static int open_tokenizer(Run *run) {
    if (*run->config->model_base) return open_model_base(run);
    TRY(config_require(run->config, OPTION_tokenizer_path));
    return model_file_load_tokenizer(&run->tokenizer, run->config->tokenizer_path);
}

static int open_data(Run *run) {
    LoaderOptions options;
    if (run->stage->open) return run->stage->open(run);
    if (!run->stage->data && *run->config->template_name)
        return config_fail(run->config, OPTION_template_name,
                           "this command reads text, not conversations; 'cria sft' trains on those");
    char *cache = path_join(run->config->output, "cache");
    if (!cache) FAIL(ERR_FAILED, "out of memory");
    int rc = setup_loader(&options, run->config, &run->arena, cache, mesh_rank(run->mesh), mesh_size(run->mesh));
    if (rc == OK && run->stage->data) rc = run->stage->data(run, &options);
    if (rc == OK) rc = loader_open(&run->loader, &options, run->tokenizer);
    free(cache);
    if (rc != OK) return rc;
    int64_t skipped = loader_skipped_records(run->loader);
    if (skipped > 0) log_warning("%lld malformed records were skipped", (long long)skipped);
    if (run->stage->data_opened) run->stage->data_opened(run);
    return OK;
}

static int initialise(Run *run) {
    return llama_init(run->model, setup_init(run->config));
}

static int make_model(Run *run) {
    if (run->model) return OK; /* model.base */
    LlamaShape shape;
    TRY(setup_shape(&shape, run->config, run->tokenizer));
    TRY(llama_new(&run->model, &shape, setup_llama(run->config, (int)run->config->train_context)));
    return initialise(run);
}

static int make_optimizer(Run *run) {
    TRY(trained_list(&run->trained, run->model, run->lora, &run->arena));
    return setup_optimizer(&run->optimizer, &run->trained, run->config, &run->arena);
}

/* Every rank must see the same data in the same order: the number is the same on all where its complement's maximum is
 * the maximum's complement. */
static int agree_on_data(Run *run) {
    int64_t fingerprint = (int64_t)run->data_fingerprint, both[2] = {fingerprint, ~fingerprint};
    TRY(mesh_max_i64(run->mesh, both, 2));
    if (both[0] != ~both[1])
        FAIL(ERR_REFUSED, "the ranks have different data: on every machine the same files, config and arguments are "
                          "needed");
    return OK;
}

/* A run that cannot fit is refused before anything large is allocated; every rank plans, and they agree. */
static int check_memory(Run *run) {
    MemoryPlan plan;
    int rc = memory_plan(&plan, run->config,
                         (MemoryPlanOptions){.head = run->stage->head,
                                             .stage = run->stage->plan,
                                             .ranks = mesh_size(run->mesh),
                                             .ranks_here = mesh_ranks_here(run->mesh)});
    if (rc == OK) rc = memory_plan_check(&plan);
    run->vocabulary = plan.shape.vocab_size;
    if (rc == OK) log_debug("planned memory: %llu bytes", (unsigned long long)plan.total);
    memory_plan_free(&plan);
    return rc;
}

/* ---- hooks ---- */

static int save_hook(void *context, const LoopState *state, bool is_best) {
    Run *run = context;
    return run_save(&run->files, state, is_best);
}

/* Every rank loads what rank 0 found. */
static int load_newest(Run *run, LoopState *state, bool *found) {
    enum { LONGEST = 4096 };
    char path[LONGEST] = "", *folder = NULL;
    int rc = OK;
    if (mesh_rank(run->mesh) == 0) {
        rc = checkpoint_newest(&folder, NULL, run->config->output);
        if (rc == OK && folder && strlen(folder) >= LONGEST)
            rc = error_set(ERR_REFUSED, __FILE__, __LINE__, "output: %.64s…: a path longer than %d bytes",
                           run->config->output, LONGEST - 1);
        else if (rc == OK && folder)
            memcpy(path, folder, strlen(folder) + 1);
        free(folder);
    }
    TRY(mesh_agree(run->mesh, rc));
    TRY(mesh_broadcast(run->mesh, path, sizeof path, 0));
    *found = *path != '\0';
    return *found ? run_load(&run->files, path, state) : OK;
}

static int reload_model_base(Run *run) {
    ModelFile again;
    TRY(model_file_open(&again, run->config->model_base,
                        (ModelFileOptions){.head = run->stage->head, .labels = &run->base.config.labels}));
    llama_copy_rows(run->model, again.model);
    model_file_close(&again);
    TRY(initialise_head(run));
    if (run->stage->new_rows) run->stage->new_rows(run);
    return OK;
}

static int restart_model(Run *run) {
    if (run->lora) return run_restart_adapter(run);
    return run->base.model ? reload_model_base(run) : initialise(run);
}

/* Without a checkpoint, a roll-back starts anew: the initial model, no moments. */
static int load_newest_hook(void *context, LoopState *state) {
    Run *run = context;
    bool found;
    if (run->stage->reloaded) run->stage->reloaded(run);
    TRY(load_newest(run, state, &found));
    if (found) return OK;
    optimizer_reset(run->optimizer);
    *state = (LoopState){.best_step = -1};
    TRY(mesh_agree(run->mesh, restart_model(run)));
    return run->companion ? mesh_agree(run->mesh, run->stage->restart(run)) : OK;
}

static int measure_hook(void *context, const LoopState *state, double *loss, bool *found) {
    Run *run = context;
    return run->stage->measure(run, state->step, loss, found);
}

static bool sample_due(void *context, const LoopState *state) {
    const Run *run = context;
    int64_t every = run->config->train_sample_every;
    return every > 0 && state->step % every == 0;
}

static int sample_hook(void *context, const LoopState *state) {
    Run *run = context;
    if (mesh_rank(run->mesh) == 0) run->stage->sample(run, state->step);
    return OK;
}

/* ---- the run ---- */

/* The loss (or the reward) over the whole run, from its metrics file. */
static void show_curve(const Run *run) {
    double *x[2] = {NULL}, *y[2] = {NULL};
    size_t n[2] = {0};
    Text text = {0};
    bool rewards = run->stage->measure != NULL;
    const char *const names[] = {rewards ? "reward" : "loss", rewards ? "eval_reward" : "eval_loss"};
    const char *title = rewards ? "reward (o: held-out prompts)" : "loss (o: validation)";
    char *path = path_join(run->config->output, "metrics.jsonl");
    if (path && mesh_rank(run->mesh) == 0 && metrics_read(path, names[0], &x[0], &y[0], &n[0]) == OK &&
        metrics_read(path, names[1], &x[1], &y[1], &n[1]) == OK) {
        CurveSeries line = {x[0], y[0], n[0]}, marks = {x[1], y[1], n[1]};
        curve_draw(&text, title, &line, &marks, CURVE_WIDTH, CURVE_HEIGHT, terminal_is_utf8());
        if (text.bytes) log_info("%s", text.bytes);
    }
    for (int s = 0; s < 2; s++) {
        free(x[s]);
        free(y[s]);
    }
    text_free(&text);
    free(path);
}

static int prepare(Run *run, bool *resumed) {
    bool resuming;
    TRY(mesh_agree(run->mesh, check_memory(run)));
    TRY(mesh_agree(run->mesh, open_output(run, &resuming)));
    TRY(mesh_agree(run->mesh, open_tokenizer(run)));
    TRY(mesh_agree(run->mesh, make_model(run)));
    if (run->stage->prepare) TRY(mesh_agree(run->mesh, run->stage->prepare(run)));
    TRY(mesh_agree(run->mesh, mesh_rank(run->mesh) == 0 ? settle_config(run, resuming) : OK));
    TRY(mesh_agree(run->mesh, open_data(run)));
    malloc_trim(0); /* what tokenising took */
    if (run->loader) run->data_fingerprint = loader_fingerprint(run->loader);
    TRY(agree_on_data(run));
    if (run->stage->ready) TRY(mesh_agree(run->mesh, run->stage->ready(run)));
    TRY(mesh_agree(run->mesh, run_make_adapter(run)));
    TRY(mesh_agree(run->mesh, make_optimizer(run)));
    TRY(mesh_agree(run->mesh, config_write(run->config, run->stage->name, &run->resolved)));
    run->files = (RunFiles){.output = run->config->output,
                            .trained = &run->trained,
                            .optimizer = run->optimizer,
                            .companion = run->companion,
                            .tokenizer = run->tokenizer,
                            .base = run->base.model && has_own_tokenizer(run->config) ? &run->base : NULL,
                            .labels = run->base.model ? &run->base.config.labels : NULL,
                            .base_path = run->config->model_base,
                            .base_fingerprint = run->base.fingerprint,
                            .chat_template = run->chat_template,
                            .stop_tokens = run->stop_tokens,
                            .n_stop_tokens = run->n_stop_tokens,
                            .resolved_config = run->resolved.bytes,
                            .data_fingerprint = run->data_fingerprint,
                            .mesh = run->mesh,
                            .keep_last = (int)run->config->train_keep_last};
    run->state.best_step = -1;
    return load_newest(run, &run->state, resumed);
}

static const char *plural(int64_t n) {
    return n == 1 ? "" : "s";
}

static void announce_data(const Run *run, const LoopOptions *options) {
    char tokens[32], bytes[32];
    int64_t epoch = loader_steps_per_epoch(run->loader), held_out = loader_validation_tokens(run->loader);
    log_info("data: %s training tokens in an epoch of %lld step%s, %s held out for validation",
             text_thousands(tokens, (uint64_t)loader_tokens(run->loader, -1)), (long long)epoch, plural(epoch),
             text_thousands(bytes, (uint64_t)held_out));
    if (held_out == 0 && options->early_stopping > 0)
        log_warning("train.early_stopping has no effect: nothing is held out (data.validation)");
}

static void announce(const Run *run, const LoopOptions *options, bool resumed) {
    char parameters[32], tokens[32], bytes[32];
    log_info("model: %s parameters, %d layer%s, width %d; vocabulary %d",
             text_thousands(parameters, llama_parameters(&run->model->shape)), run->model->shape.n_layers,
             plural(run->model->shape.n_layers), run->model->shape.dim, run->model->shape.vocab_size);
    if (run->lora) run_announce_adapter(run);
    if (run->loader) announce_data(run, options);
    log_info("memory: %s for parameters, gradients and moments, %s for activations; %s kernels, %d thread%s, %d rank%s",
             text_bytes(bytes,
                        trained_bytes(&run->trained, run->optimizer) +
                            (run->companion ? trained_bytes(&run->companion->trained, run->companion->optimizer) : 0)),
             text_bytes(tokens, loop_tape_bytes(run->loop)), kernels()->name, threads_count(), plural(threads_count()),
             mesh_size(run->mesh), plural(mesh_size(run->mesh)));
    if (resumed) log_info("resuming at step %lld of %lld", (long long)run->state.step, (long long)options->steps);
}

static void finish(const Run *run) {
    char duration[32];
    show_curve(run);
    log_info("done: %lld steps in %s. The model is in %s", (long long)run->state.step,
             text_duration(duration, run->state.seconds), run->config->output);
    char perplexity[64] = "";
    if (!run->objective->n_metrics)
        snprintf(perplexity, sizeof perplexity, ", perplexity %.6g", exp(run->state.best_loss));
    if (run->state.best_step >= 0 && run->stage->measure)
        log_info("the best checkpoint is that of step %lld (%s/best)", (long long)run->state.best_step,
                 run->config->output);
    else if (run->state.best_step >= 0)
        log_info("best validation loss %.4f%s, at step %lld (%s/best)", run->state.best_loss, perplexity,
                 (long long)run->state.best_step, run->config->output);
}

/* One process waits for nobody; a rank may wait for one that will never come. */
static int start_watchdog(Run *run) {
    if (mesh_size(run->mesh) == 1 || run->config->parallel_watchdog == 0) return OK;
    return watchdog_start(&run->watchdog, run->config->parallel_watchdog);
}

/* By train.steps or train.epochs, to the next whole step. */
static int64_t steps_of_stage(const Run *run) {
    double epochs = run->config->train_epochs > 0 ? run->config->train_epochs : 1;
    int64_t steps = run->config->train_steps, whole = run->whole_steps > 1 ? run->whole_steps : 1;
    if (steps == 0) steps = (int64_t)ceil(epochs * (double)run->steps_per_epoch);
    return (steps + whole - 1) / whole * whole;
}

static int train(Run *run) {
    bool resumed = false;
    TRY(prepare(run, &resumed));
    int64_t steps = run->loader ? setup_steps(run->config, run->loader) : steps_of_stage(run);
    LoopOptions options = setup_loop(run->config, steps, mesh_size(run->mesh));
    options.whole_steps = run->whole_steps;
    int rc = run->stage->objective(&run->objective, run, options.tokens_per_microbatch);
    TRY(mesh_agree(run->mesh, rc));
    if (mesh_rank(run->mesh) == 0) rc = metrics_open(&run->metrics, run->config->output, run->state.step + 1);
    TRY(mesh_agree(run->mesh, rc));
    TRY(mesh_agree(run->mesh, start_watchdog(run)));
    LoopParts parts = {.model = run->model,
                       .lora = run->lora,
                       .loader = run->loader,
                       .batches = run->batches,
                       .optimizer = run->optimizer,
                       .companion = run->companion,
                       .objective = run->objective,
                       .mesh = run->mesh,
                       .metrics = run->metrics,
                       .watchdog = run->watchdog,
                       .hooks = {.context = run,
                                 .save = save_hook,
                                 .load_newest = load_newest_hook,
                                 .measure = run->stage->measure ? measure_hook : NULL,
                                 .sample = sample_hook,
                                 .sample_due = sample_due}};
    if (run->lora && run->loader && !resumed) TRY(mesh_agree(run->mesh, run_check_adapter(run, &options)));
    TRY(mesh_agree(run->mesh, loop_new(&run->loop, &parts, &options)));
    announce(run, &options, resumed);
    if (loop_finished(run->loop, &run->state)) {
        log_info("%s is finished: %lld steps%s", run->config->output, (long long)run->state.step,
                 run->state.step < steps ? ", stopped early (train.early_stopping)"
                                         : "; a larger train.steps goes on from there");
        return OK;
    }
    interrupt_install(
        "\nstopping: a checkpoint is saved after this step; Ctrl-C again stops at once, saving nothing\n");
    rc = loop_run(run->loop, &run->state);
    interrupt_restore();
    if (rc == OK) finish(run);
    return rc;
}

/* A config may serve several commands. These say that pairs, or prompts, are read: of other commands they are 0. */
static void leave_out_other_stages(const Stage *stage, Config *config) {
    if (!config_in_sections(OPTION_preferences_per_batch, stage->sections)) config->preferences_per_batch = 0;
    if (!config_in_sections(OPTION_ppo_samples, stage->sections)) config->ppo_samples = 0;
}

static int refuse_objectives(const Config *config, OptionId id, const ConfigSources *sources) {
    for (size_t i = 0; i < sources->n; i++)
        if (*sources->items[i].objective)
            return config_fail(config, id, "%s: objective '%s': only a reward model ('cria reward') has several scores",
                               sources->items[i].path, sources->items[i].objective);
    return OK;
}

int run_check_config(const Stage *stage, Config *config) {
    leave_out_other_stages(stage, config);
    if (stage->head != HEAD_TO_SCORE) {
        TRY(refuse_objectives(config, OPTION_data_train, &config->data_train));
        TRY(refuse_objectives(config, OPTION_data_validation, &config->data_validation));
    }
    if (stage->defaults) TRY(stage->defaults(config));
    TRY(config_check(config));
    TRY(run_check_adapter_options(config));
    TRY(config_require(config, OPTION_output));
    TRY(config_require(config, OPTION_data_train));
    setup_resolve_precision(config);
    return OK;
}

int run_command(const Stage *stage, int argc, char **argv) {
    int rc = OK;
    Run run = {.stage = stage, .lock = -1};
    CliResult cli;
    Text intro = {0};
    TRY_TO(done, config_new(&run.config));
    stage->about(&intro);
    TRY_TO(done, text_check(&intro));
    CliSpec spec = {.usage = "CONFIG.yaml [key=value ...]",
                    .about = intro.bytes,
                    .min_words = 0,
                    .max_words = 1,
                    .config = run.config,
                    .config_file = true,
                    .sections = stage->sections};
    TRY_TO(done, cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) goto done;
    TRY_TO(done, run_check_config(stage, run.config));
    signal(SIGPIPE, SIG_IGN); /* whoever read the log may go away; the run does not end for that */
    TRY_TO(done, mesh_init(&run.mesh, &argc, &argv));
    threads_init(run.config->train_threads > 0 ? (int)run.config->train_threads : mesh_default_threads(run.mesh));
    rc = train(&run);
done:
    if (rc != OK) command_report(rc);
    text_free(&intro);
    run_free(&run);
    if (run.mesh) mesh_finalize(run.mesh);
    return rc;
}
