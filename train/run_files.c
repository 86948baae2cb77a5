/* A step's folder: model.h5 (parameters or an adapter's, tokenizer, config.json), optimizer.h5 (AdamW's m.NAME and
 * v.NAME), where a companion is trained the same of it (value.h5, value_optimizer.h5), config.yaml (resolved) and
 * state.json (position of the run, and what computed it). */
#include "train/run_files.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/core/threads.h"
#include "model/formats/checkpoint.h"
#include "train/files/adapter_file.h"
#include "train/files/model_file.h"

static const char optimizer_file[] = "optimizer.h5", optimizer_suffix[] = "_optimizer.h5",
                  config_file[] = "config.yaml", state_file[] = "state.json";

/* ---- state.json ---- */

static int format_state(char **json, const RunFiles *files, const LoopState *state) {
    int64_t *numbers;
    size_t n;
    char fingerprint[20];
    TRY(guard_save(&state->guard, &numbers, &n));
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, files->data_fingerprint);
    json_t *guard = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(guard, json_integer(numbers[i]));
    free(numbers);
    json_t *root = json_pack("{s:I, s:I, s:I, s:I, s:I, s:f, s:o, s:s, s:s, s:i, s:i}", "step", (json_int_t)state->step,
                             "updates", (json_int_t)state->updates, "tokens", (json_int_t)state->tokens, "best_step",
                             (json_int_t)state->best_step, "stale_validations", (json_int_t)state->stale_validations,
                             "seconds", state->seconds, "guard", guard, "data", fingerprint, "kernels", kernels()->name,
                             "threads", threads_count(), "ranks", mesh_size(files->mesh));
    if (root && state->best_step >= 0) json_object_set_new(root, "best_loss", json_real(state->best_loss));
    *json = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(root);
    if (!*json) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int parse_guard(Guard *guard, const json_t *list) {
    size_t n = json_array_size(list);
    int64_t *numbers = malloc((n + 1) * sizeof *numbers);
    if (!numbers) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++) numbers[i] = json_integer_value(json_array_get(list, i));
    int rc = guard_load(guard, numbers, n);
    free(numbers);
    return rc;
}

/* The numbers are the file's own; where it was written by another machine, or for other data, that is said here. */
static int compare_circumstances(const RunFiles *files, const char *fingerprint, const char *kernel_name, int threads,
                                 int ranks) {
    char now[20];
    snprintf(now, sizeof now, "%016" PRIx64, files->data_fingerprint);
    if (strcmp(now, fingerprint) != 0)
        FAIL(ERR_REFUSED,
             "the checkpoint was made from other data (fingerprint %s, now %s): the sources, the tokenizer or their "
             "order have changed. Restore them, or start a new run in another output folder",
             fingerprint, now);
    if (strcmp(kernel_name, kernels()->name) != 0 || threads != threads_count())
        log_warning("the checkpoint was computed with %s kernels and %d threads, this run has %s and %d: results will "
                    "agree to rounding, not bit for bit",
                    kernel_name, threads, kernels()->name, threads_count());
    if (ranks != mesh_size(files->mesh))
        log_warning("the checkpoint was computed by %d ranks, this run has %d: results will agree to rounding, not bit "
                    "for bit",
                    ranks, mesh_size(files->mesh));
    return OK;
}

/* What format_state cannot have written. */
static int check_numbers(const LoopState *read, const char *name) {
    const int64_t most_steps = INT64_C(1) << 53; /* no run is so long; sums of such numbers do not overflow */
    bool counts = read->step >= 0 && read->step <= most_steps && read->updates >= 0 && read->updates <= read->step &&
                  read->tokens >= 0;
    bool best = read->best_step >= -1 && read->best_step <= read->step && read->stale_validations >= 0;
    if (!counts || !best || !(read->seconds >= 0 && isfinite(read->seconds)))
        FAIL(ERR_REFUSED, "%s: its numbers contradict each other: step %lld, updates %lld, tokens %lld, best_step %lld",
             name, (long long)read->step, (long long)read->updates, (long long)read->tokens,
             (long long)read->best_step);
    return OK;
}

static int parse_state(LoopState *state, const RunFiles *files, const char *json, const char *name) {
    int rc = OK;
    json_error_t error;
    json_t *root = json_loads(json, 0, &error), *guard;
    json_int_t step, updates, tokens, best_step, stale;
    const char *fingerprint, *kernel_name;
    int threads, ranks;
    double best_loss = INFINITY;
    LoopState read = {0};
    if (!root) FAIL(ERR_REFUSED, "%s:%d: %s", name, error.line, error.text);
    if (json_unpack_ex(root, &error, 0, "{s:I, s:I, s:I, s:I, s:I, s:F, s:o, s:s, s:s, s:i, s:i, s?F}", "step", &step,
                       "updates", &updates, "tokens", &tokens, "best_step", &best_step, "stale_validations", &stale,
                       "seconds", &read.seconds, "guard", &guard, "data", &fingerprint, "kernels", &kernel_name,
                       "threads", &threads, "ranks", &ranks, "best_loss", &best_loss) != 0)
        FAIL_TO(done, ERR_REFUSED, "%s: %s", name, error.text);
    TRY_TO(done, compare_circumstances(files, fingerprint, kernel_name, threads, ranks));
    read.step = step;
    read.updates = updates;
    read.tokens = tokens;
    read.best_step = best_step;
    read.stale_validations = stale;
    read.best_loss = best_loss;
    TRY_TO(done, check_numbers(&read, name));
    TRY_TO(done, parse_guard(&read.guard, guard));
    guard_free(&state->guard);
    *state = read;
done:
    json_decref(root);
    return rc;
}

/* ---- arrays ---- */

/* The first (or second) moments of every weight that is trained, in canonical order. */
static int moments(const Trained *trained, Optimizer *optimizer, bool second, Arena *arena, WeightStorage *storage) {
    int n = trained->n_weights;
    void **arrays;
    ARENA_TRY(arrays, arena, n);
    for (int i = 0; i < n; i++) {
        OptimParameter *parameter = optimizer_parameter(optimizer, (size_t)i);
        arrays[i] = second ? parameter->v : parameter->m;
    }
    *storage = (WeightStorage){arrays, optimizer_moments(optimizer), second ? "v." : "m."};
    return OK;
}

/* Arrays as sources, with room for `extra` more. */
static int as_sources(const NamedArray *arrays, size_t n, size_t extra, Arena *arena, NamedSource **sources) {
    ARENA_TRY(*sources, arena, n + extra);
    for (size_t i = 0; i < n; i++) {
        (*sources)[i] = (NamedSource){.array = arrays[i]};
        if (arrays[i].dtype != DTYPE_F32) continue;
        (*sources)[i].f32 = arrays[i].data;
        (*sources)[i].array.data = NULL;
    }
    return OK;
}

/* transformers takes the last token that is not padding for a text's last. The base's padding may be what ends an
 * answer; BOS never does. */
static int32_t pad_token(const RunFiles *files, int32_t bos) {
    const HfConfig *base = &files->base->config;
    bool ends = base->pad_token_id < 0;
    for (int i = 0; i < base->n_eos; i++) ends = ends || base->pad_token_id == base->eos_token_ids[i];
    for (size_t i = 0; i < files->n_stop_tokens; i++) ends = ends || base->pad_token_id == files->stop_tokens[i];
    return ends ? bos : base->pad_token_id;
}

/* The token ids of config.json and generation_config.json: the base's own, else the tokenizer's. */
static void base_tokens(const RunFiles *files, HfConfig *config, HfGeneration *generation) {
    if (files->base) {
        *generation = files->base->generation;
        config->bos_token_id = files->base->config.bos_token_id;
        config->pad_token_id = pad_token(files, config->pad_token_id);
        config->n_eos = files->base->config.n_eos;
        memcpy(config->eos_token_ids, files->base->config.eos_token_ids, sizeof config->eos_token_ids);
        return;
    }
    *generation = hf_generation_default();
    generation->bos_token_id = config->bos_token_id;
    generation->n_eos = config->n_eos;
    memcpy(generation->eos_token_ids, config->eos_token_ids, sizeof generation->eos_token_ids);
}

/* Stop tokens come first: what has room for one end of a text takes the first. */
static void add_stop(HfGeneration *generation, int32_t id) {
    for (int i = 0; i < generation->n_eos; i++)
        if (generation->eos_token_ids[i] == id) return;
    if (generation->n_eos == HF_MAX_EOS) generation->n_eos--;
    memmove(generation->eos_token_ids + 1, generation->eos_token_ids,
            (size_t)generation->n_eos * sizeof *generation->eos_token_ids);
    generation->eos_token_ids[0] = id;
    generation->n_eos++;
}

static void describe_tokens(const RunFiles *files, HfConfig *config, HfGeneration *generation) {
    base_tokens(files, config, generation);
    for (size_t i = files->n_stop_tokens; i-- > 0;) add_stop(generation, files->stop_tokens[i]);
}

/* What an adapter is on. */
static const char *base_of(const RunFiles *files, const Trained *trained, uint64_t *fingerprint) {
    const Companion *companion = files->companion;
    bool other = companion && trained == &companion->trained && companion->base_path;
    *fingerprint = other ? companion->base_fingerprint : files->base_fingerprint;
    return other ? companion->base_path : files->base_path;
}

static int add_adapter_texts(const RunFiles *files, const Trained *trained, Arena *arena, NamedText **texts,
                             size_t *n) {
    NamedText *all;
    uint64_t fingerprint;
    const char *base = base_of(files, trained, &fingerprint);
    ARENA_TRY(all, arena, *n + ADAPTER_TEXTS);
    memcpy(all, *texts, *n * sizeof *all);
    TRY(adapter_describe(all + *n, &trained->lora->options, trained_saved(trained), base, files->output, fingerprint,
                         arena));
    *texts = all;
    *n += ADAPTER_TEXTS;
    return OK;
}

/* Everything a model is, in a file of that name. */
static int add_model(CheckpointWriter *writer, const RunFiles *files, const Trained *trained, const char *file,
                     Arena *arena) {
    NamedArray *arrays, tokenizer = {0};
    NamedSource *sources;
    NamedText *texts;
    size_t n, n_texts;
    TRY(trained_arrays(trained, (WeightStorage){0}, arena, &arrays, &n));
    HfConfig config = model_file_config(&trained->model->shape, files->tokenizer);
    HfGeneration generation;
    describe_tokens(files, &config, &generation);
    if (files->labels && trained == files->trained) config.labels = *files->labels;
    const char *chat_template = files->chat_template ? files->chat_template
                                : files->base        ? files->base->chat_template
                                                     : NULL;
    TRY(model_file_describe(&config, files->tokenizer, &generation, chat_template, files->resolved_config, arena,
                            &texts, &n_texts, &tokenizer));
    if (trained->lora) TRY(add_adapter_texts(files, trained, arena, &texts, &n_texts));
    TRY(as_sources(arrays, n, 1, arena, &sources));
    if (tokenizer.name) sources[n++] = (NamedSource){.array = tokenizer};
    return checkpoint_add_arrays(writer, file, sources, n, texts, n_texts);
}

static int add_optimizer(CheckpointWriter *writer, const Trained *trained, Optimizer *optimizer, const char *file,
                         Arena *arena) {
    NamedArray *first, *second, *all;
    NamedSource *sources;
    WeightStorage storage;
    size_t n;
    TRY(moments(trained, optimizer, false, arena, &storage));
    TRY(trained_arrays(trained, storage, arena, &first, &n));
    TRY(moments(trained, optimizer, true, arena, &storage));
    TRY(trained_arrays(trained, storage, arena, &second, &n));
    ARENA_TRY(all, arena, 2 * n);
    memcpy(all, first, n * sizeof *all);
    memcpy(all + n, second, n * sizeof *all);
    TRY(as_sources(all, 2 * n, 0, arena, &sources));
    return checkpoint_add_arrays(writer, file, sources, 2 * n, NULL, 0);
}

/* NAME and what follows it. */
static int companion_file(char **file, const Companion *companion, const char *suffix, Arena *arena) {
    size_t size = strlen(companion->name) + strlen(suffix) + 1;
    ARENA_TRY(*file, arena, size);
    snprintf(*file, size, "%s%s", companion->name, suffix);
    return OK;
}

static int add_companion(CheckpointWriter *writer, const RunFiles *files, Arena *arena) {
    const Companion *companion = files->companion;
    char *model, *optimizer;
    TRY(companion_file(&model, companion, ".h5", arena));
    TRY(companion_file(&optimizer, companion, optimizer_suffix, arena));
    TRY(add_model(writer, files, &companion->trained, model, arena));
    return add_optimizer(writer, &companion->trained, companion->optimizer, optimizer, arena);
}

/* ---- saving and loading ---- */

static int write_files(CheckpointWriter *writer, const RunFiles *files, const LoopState *state, Arena *arena) {
    char *json;
    TRY(add_model(writer, files, files->trained, CHECKPOINT_MODEL, arena));
    TRY(add_optimizer(writer, files->trained, files->optimizer, optimizer_file, arena));
    if (files->companion) TRY(add_companion(writer, files, arena));
    TRY(checkpoint_add_bytes(writer, config_file, files->resolved_config, strlen(files->resolved_config)));
    TRY(format_state(&json, files, state));
    int rc = checkpoint_add_bytes(writer, state_file, json, strlen(json));
    free(json);
    return rc;
}

static int save(const RunFiles *files, const LoopState *state, bool is_best) {
    CheckpointWriter *writer;
    Arena arena = {0};
    TRY(checkpoint_begin(&writer, files->output, state->step));
    int rc = write_files(writer, files, state, &arena);
    arena_free(&arena);
    if (rc != OK) {
        checkpoint_abandon(writer);
        return rc;
    }
    TRY(checkpoint_commit(writer));
    if (is_best) TRY(checkpoint_mark_best(files->output, state->step));
    return checkpoint_prune(files->output, files->keep_last);
}

int run_save(const RunFiles *files, const LoopState *state, bool is_best) {
    int rc = mesh_rank(files->mesh) == 0 ? save(files, state, is_best) : OK;
    return mesh_agree(files->mesh, rc);
}

static int load_moments(const Trained *trained, Optimizer *optimizer, const char *folder, const char *name,
                        Arena *arena) {
    NamedFile *file;
    TRY(checkpoint_open_arrays(&file, folder, name));
    int rc = OK;
    for (int second = 0; second < 2 && rc == OK; second++) {
        WeightStorage storage;
        rc = moments(trained, optimizer, second, arena, &storage);
        if (rc == OK) rc = trained_load(trained, storage, file);
    }
    named_close(file);
    return rc;
}

static int load_adapter(const RunFiles *files, const Trained *trained, NamedFile *file) {
    if (!adapter_in_checkpoint(file)) FAIL(ERR_REFUSED, "it is a whole model; this run trains an adapter");
    uint64_t fingerprint;
    const char *base = base_of(files, trained, &fingerprint);
    TRY(adapter_check_base(file, base, fingerprint));
    return trained_load(trained, (WeightStorage){0}, file);
}

static int load_parameters(const RunFiles *files, const Trained *trained, const char *folder, const char *name) {
    NamedFile *file;
    TRY(checkpoint_open_arrays(&file, folder, name));
    int rc = trained->lora ? load_adapter(files, trained, file) : llama_load(trained->model, file);
    named_close(file);
    return rc;
}

static int load_companion(const RunFiles *files, const char *folder, const LoopState *state, Arena *arena) {
    const Companion *companion = files->companion;
    char *model, *optimizer;
    TRY(companion_file(&model, companion, ".h5", arena));
    TRY(companion_file(&optimizer, companion, optimizer_suffix, arena));
    TRY(load_parameters(files, &companion->trained, folder, model));
    TRY(load_moments(&companion->trained, companion->optimizer, folder, optimizer, arena));
    optimizer_set_updates(companion->optimizer, state->updates);
    return OK;
}

static int load(const RunFiles *files, const char *folder, LoopState *state) {
    char *json;
    size_t size;
    Arena arena = {0};
    TRY(checkpoint_read_bytes(&json, &size, folder, state_file));
    int rc = parse_state(state, files, json, state_file);
    free(json);
    if (rc == OK) rc = load_parameters(files, files->trained, folder, CHECKPOINT_MODEL);
    if (rc == OK) rc = load_moments(files->trained, files->optimizer, folder, optimizer_file, &arena);
    if (rc == OK && files->companion) rc = load_companion(files, folder, state, &arena);
    arena_free(&arena);
    if (rc == OK) optimizer_set_updates(files->optimizer, state->updates);
    return rc == OK ? OK : error_context(rc, "%s", folder);
}

int run_load(const RunFiles *files, const char *folder, LoopState *state) {
    return mesh_agree(files->mesh, load(files, folder, state));
}
