/* See adapter_file.h. */
#include "train/files/adapter_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "model/formats/json_read.h"
#include "model/lora_peft.h"

static const char base_key[] = "base.json";
static const char fingerprint_key[] = "fingerprint", from_run_key[] = "from_run";

/* ---- the base's fingerprint ---- */

/* Some elements of an array, in a few places. */
static int sample_array(uint64_t *hash, const NamedFile *file, const NamedArray *array) {
    enum { PLACES = 4, AT_ONCE = 16 };
    size_t elements = named_elements(array), n = elements < AT_ONCE ? elements : AT_ONCE;
    float values[AT_ONCE];
    for (size_t place = 0; place < PLACES; place++) {
        TRY(named_read_f32(file, array, (elements - n) / (PLACES - 1) * place, n, values));
        for (size_t i = 0; i < n; i++) {
            bf16 narrow = f32_to_bf16(values[i]);
            *hash = hash_bytes(&narrow, sizeof narrow, *hash);
        }
    }
    return OK;
}

int base_fingerprint(uint64_t *fingerprint, const Llama *model, const NamedFile *file) {
    int rc = OK;
    Arena arena = {0};
    NamedArray *arrays;
    size_t n;
    *fingerprint = HASH_START;
    TRY_TO(done, llama_arrays(model, (WeightStorage){0}, &arena, &arrays, &n));
    for (size_t i = 0; i < n; i++) {
        const NamedArray *array;
        TRY_TO(done, named_get(&array, file, arrays[i].name));
        *fingerprint = hash_bytes(array->name, strlen(array->name), *fingerprint);
        *fingerprint = hash_bytes(array->dims, (size_t)array->n_dims * sizeof *array->dims, *fingerprint);
        TRY_TO(done, sample_array(fingerprint, file, array));
    }
done:
    arena_free(&arena);
    return rc;
}

/* ---- opening ---- */

bool adapter_in_checkpoint(const NamedFile *file) {
    return named_text(file, PEFT_CONFIG) != NULL;
}

int adapter_of_checkpoint(PeftAdapter *adapter, NamedFile *file) {
    const char *config = named_text(file, PEFT_CONFIG);
    *adapter = (PeftAdapter){.arrays = file};
    int rc = config ? peft_config_parse(&adapter->config, config, strlen(config), named_path(file))
                    : error_set(ERR_REFUSED, __FILE__, __LINE__,
                                "%s: it is no adapter (there is no " PEFT_CONFIG " in it); a whole model is not "
                                "exported to PEFT, nor added to another",
                                named_path(file));
    adapter->base = (char *)(uintptr_t)adapter->config.base;
    if (rc != OK) peft_close(adapter);
    return rc;
}

int adapter_open(PeftAdapter *adapter, const char *path) {
    NamedFile *file;
    *adapter = (PeftAdapter){0};
    if (peft_is_adapter(path)) return peft_open(adapter, path);
    TRY(named_open(&file, path));
    return adapter_of_checkpoint(adapter, file);
}

bool adapter_recognises(const char *path) {
    NamedFile *file;
    if (peft_is_adapter(path)) return true;
    bool found = named_open(&file, path) == OK;
    bool is_adapter = found && adapter_in_checkpoint(file);
    if (found) named_close(file);
    error_clear();
    return is_adapter;
}

/* ---- the base's path ---- */

/* malloc'd text of base.json; *text stays NULL where the adapter has none. */
static int read_base(char **text, const NamedFile *file, const char *key) {
    const char *json = named_text(file, base_key), *value = NULL;
    json_t *root;
    *text = NULL;
    if (!json) return OK;
    TRY(json_read_object(&root, json, strlen(json), named_path(file)));
    int rc = json_read_text(&value, root, key, base_key);
    if (rc == OK && value) {
        *text = strdup(value);
        if (!*text) rc = error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    }
    json_decref(root);
    return rc;
}

static bool is_there(const char *path) {
    return file_exists(path) || directory_exists(path) || text_ends_with(path, "/best");
}

/* RUN of RUN/checkpoints/step-N/model.h5, then the path from there; malloc'd. */
static char *from_run(const char *file, const char *relative) {
    size_t end = strlen(file);
    for (int up = 0; up < 3; up++)
        while (end > 0 && file[--end] != '/') {}
    char *run = end > 0 ? strndup(file, end) : strdup(".");
    char *path = run ? path_join(run, relative) : NULL;
    free(run);
    return path;
}

int adapter_base_path(char **path, const PeftAdapter *adapter, const char *given) {
    int rc = OK;
    char *relative = NULL;
    const char *said = given ? given : adapter->base;
    *path = NULL;
    if (!*said)
        FAIL(ERR_USAGE, "%s: it does not say which model it belongs to; give that with --base MODEL",
             named_path(adapter->arrays));
    TRY(read_base(&relative, adapter->arrays, from_run_key));
    if (!given && !is_there(said) && relative) *path = from_run(named_path(adapter->arrays), relative);
    if (!*path || !is_there(*path)) {
        free(*path);
        *path = strdup(said);
    }
    if (!*path) FAIL_TO(done, ERR_FAILED, "out of memory");
    if (!is_there(*path))
        FAIL_TO(done, ERR_REFUSED,
                "%s: it belongs to the model '%s', which is not there; give its place with --base MODEL",
                named_path(adapter->arrays), said);
done:
    free(relative);
    if (rc != OK) {
        free(*path);
        *path = NULL;
    }
    return rc;
}

int adapter_check_base(const NamedFile *adapter, const char *base, uint64_t fingerprint) {
    char *text, now[20];
    TRY(read_base(&text, adapter, fingerprint_key));
    snprintf(now, sizeof now, "%016" PRIx64, fingerprint);
    int rc = !text || strcmp(text, now) == 0
                 ? OK
                 : error_set(ERR_REFUSED, __FILE__, __LINE__,
                             "%s: it was trained on another model than %s (fingerprint %s, here %s); give that one "
                             "(--base MODEL, or a run's model.base)",
                             named_path(adapter), base, text, now);
    free(text);
    return rc;
}

/* *same is left as it is where the two have the same elements. */
static int compare_arrays(bool *same, const NamedFile *a, const NamedArray *x, const NamedFile *b,
                          const NamedArray *y) {
    enum { SLICE = 4096 };
    float one[SLICE], other[SLICE];
    size_t elements = named_elements(x);
    *same = *same && y && elements == named_elements(y) && x->dims[0] == y->dims[0];
    for (size_t first = 0; *same && first < elements; first += SLICE) {
        size_t n = elements - first < SLICE ? elements - first : SLICE;
        TRY(named_read_f32(a, x, first, n, one));
        TRY(named_read_f32(b, y, first, n, other));
        *same = memcmp(one, other, n * sizeof *one) == 0;
    }
    return OK;
}

int adapter_compare_base(PeftAdapter *adapter, const NamedFile *base) {
    static const char *const names[][2] = {{LORA_EMBEDDING_BASE, "model.embed_tokens.weight"},
                                           {LORA_HEAD_BASE, "lm_head.weight"}};
    bool same = true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const NamedArray *own = named_find(adapter->arrays, names[i][0]), *of_base = named_find(base, names[i][1]);
        if (!of_base) of_base = named_find(base, names[0][1]); /* tied */
        if (own) TRY(compare_arrays(&same, adapter->arrays, own, base, of_base));
    }
    adapter->whole_base = same;
    return OK;
}

static int take_array(const PeftAdapter *adapter, const NamedArray *array, const Weight *weight) {
    if (array->n_dims != 2 || array->dims[0] != weight->rows || array->dims[1] != weight->cols)
        FAIL(ERR_REFUSED, "%s: %s is not %d×%d", named_path(adapter->arrays), array->name, weight->rows, weight->cols);
    if (!weight->value) return OK; /* names only */
    return named_read_f32(adapter->arrays, array, 0, named_elements(array), weight->value);
}

int adapter_take_saved(const PeftAdapter *adapter, Llama *model) {
    const NamedArray *score;
    LoraVocabulary vocabulary;
    TRY(lora_vocabulary(&vocabulary, adapter));
    if (vocabulary.embedding) TRY(take_array(adapter, vocabulary.embedding, &model->embedding));
    if (vocabulary.head && !model->head.tied) TRY(take_array(adapter, vocabulary.head, &model->head));
    if (adapter->config.saved.score) {
        TRY(named_get(&score, adapter->arrays, LORA_SCORE));
        TRY(take_array(adapter, score, &model->head));
    }
    if (vocabulary.rows > 0) llama_pack(model);
    return OK;
}

/* ---- writing ---- */

/* The real path of a MODEL, whose last part (RUN/best) need not be a file; malloc'd, NULL where there is none. */
static char *real_path(const char *path) {
    char *real = realpath(path, NULL);
    if (real) return real;
    const char *last = path_base(path);
    char *parent = last == path ? strdup(".") : strndup(path, (size_t)(last - path));
    char *resolved = parent ? realpath(parent, NULL) : NULL;
    real = resolved ? path_join(resolved, last) : NULL;
    free(parent);
    free(resolved);
    return real;
}

/* How `to` is reached from the folder `from`, both absolute: "../../base". */
static void relative_path(Text *out, const char *from, const char *to) {
    size_t common = 0, i = 0;
    for (; from[i] && from[i] == to[i]; i++)
        if (to[i] == '/') common = i + 1;
    if ((!from[i] && to[i] == '/') || (from[i] == '/' && !to[i])) common = i + 1;
    if (strlen(from) > common) {
        text_puts(out, "..");
        for (const char *at = from + common; *at; at++)
            if (*at == '/') text_puts(out, "/..");
    }
    if (strlen(to) <= common) return;
    if (out->length > 0) text_puts(out, "/");
    text_puts(out, to + common);
}

static int describe_base(char **json, const char *base, const char *run, uint64_t fingerprint) {
    char hex[20], *real_base = real_path(base), *real_run = real_path(run);
    Text relative = {0};
    snprintf(hex, sizeof hex, "%016" PRIx64, fingerprint);
    if (real_base && real_run) relative_path(&relative, real_run, real_base);
    json_t *root = json_pack("{s:s}", fingerprint_key, hex);
    if (root && relative.length > 0) json_object_set_new(root, from_run_key, json_string(relative.bytes));
    *json = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    text_free(&relative);
    free(real_base);
    free(real_run);
    if (!*json) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int keep(Arena *arena, char *text, NamedText *out, const char *key) {
    *out = (NamedText){key, text ? arena_strdup(arena, text) : NULL};
    free(text);
    if (!out->value) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

int adapter_describe(NamedText texts[ADAPTER_TEXTS], const LoraOptions *options, PeftSaved saved, const char *base,
                     const char *run, uint64_t fingerprint, Arena *arena) {
    char *json;
    const char *targets[LORA_TARGETS];
    PeftConfig config = lora_peft_config(options, saved, base, targets);
    TRY(peft_config_format(&config, &json));
    TRY(keep(arena, json, &texts[0], PEFT_CONFIG));
    TRY(describe_base(&json, base, run, fingerprint));
    return keep(arena, json, &texts[1], base_key);
}
