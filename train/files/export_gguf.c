/* See export_gguf.h. The Modelfile is for `ollama create NAME -f Modelfile` (ollama's docs/modelfile.md). */
#include "train/files/export_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/chat/saved.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/formats/gguf.h"
#include "train/files/model_copy.h"
#include "train/console/new_file.h"

static const struct {
    const char *name;
    GgmlType type;
} kinds[] = {
    {"f32", GGML_F32},   {"f16", GGML_F16},  {"bf16", GGML_BF16}, {"q8_0", GGML_Q8_0},
    {"q4_0", GGML_Q4_0}, {"fp32", GGML_F32}, {"fp16", GGML_F16},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static int find_kind(GgmlType *type, const char *name) {
    for (size_t i = 0; i < N_KINDS; i++)
        if (strcmp(kinds[i].name, name) == 0) {
            *type = kinds[i].type;
            return OK;
        }
    FAIL(ERR_USAGE, "--dtype: found '%s', expected f32, f16, bf16, q8_0 or q4_0", name);
}

static GgmlType stored_type(const ModelCopy *copy) {
    Dtype dtype = copy->file.config.dtype;
    return dtype == DTYPE_BF16 ? GGML_BF16 : dtype == DTYPE_F16 ? GGML_F16 : GGML_F32;
}

/* The file's name without folders and .gguf; malloc'd. */
static char *stem_of(const char *path) {
    const char *base = path_base(path);
    size_t length = strlen(base);
    return strndup(base, text_ends_with(base, ".gguf") ? length - strlen(".gguf") : length);
}

/* ---- the Modelfile ---- */

/* Inside quotes; a name of a special token has none of its own. */
static void put_stop(Text *out, const Tokenizer *tokenizer, int32_t id) {
    const char *name = tokenizer ? tokenizer_name(tokenizer, id) : NULL;
    if (name && !strpbrk(name, "\"\\\n")) text_printf(out, "PARAMETER stop \"%s\"\n", name);
}

/* TEMPLATE, where the chat template is one that cria knows: Ollama does not read the Jinja inside the file. */
static int put_template(Text *out, const ModelFile *file) {
    SavedTemplate saved;
    ChatTemplate *chat = NULL;
    Text made = {0};
    bool found = false;
    int rc = file->tokenizer ? saved_template_read(&saved, &found, file->chat_template, file->tokenizer) : OK;
    if (found) rc = chat_template_new(&chat, &saved.spec, &saved.options, file->tokenizer);
    if (rc == OK && found) rc = chat_template_ollama(chat, &made);
    if (rc == OK && found)
        text_printf(out, "TEMPLATE \"\"\"%s\"\"\"\n", made.bytes);
    else if (rc == OK || rc == ERR_REFUSED)
        text_puts(out, "# its chat template is not one that can be written here; Ollama needs a TEMPLATE\n");
    if (rc == ERR_REFUSED) rc = OK;
    error_clear();
    text_free(&made);
    chat_template_free(chat);
    if (found) saved_template_free(&saved);
    return rc;
}

static int make_modelfile(Text *out, const ModelFile *file, const char *gguf) {
    text_printf(out, "# ollama create NAME -f THIS-FILE && ollama run NAME\nFROM ./%s\n", path_base(gguf));
    if (!file->chat_template)
        text_puts(out,
                  "# it has no chat template: it continues the text it is given\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n");
    else
        TRY(put_template(out, file));
    text_printf(out, "PARAMETER num_ctx %d\n", file->config.max_position_embeddings);
    for (int i = 0; i < file->generation.n_eos; i++) put_stop(out, file->tokenizer, file->generation.eos_token_ids[i]);
    if (file->generation.do_sample)
        text_printf(out, "PARAMETER temperature %g\nPARAMETER top_p %g\nPARAMETER top_k %d\n",
                    file->generation.temperature, file->generation.top_p, file->generation.top_k);
    return text_check(out);
}

/* Modelfile in the same folder, or NAME.Modelfile where there is one already. malloc'd. */
static int modelfile_path(char **path, const char *gguf) {
    int folder = (int)(path_base(gguf) - gguf);
    char *stem = NULL;
    if (asprintf(path, "%.*sModelfile", folder, gguf) < 0) FAIL(ERR_FAILED, "out of memory");
    if (access(*path, F_OK) != 0) return OK;
    free(*path);
    *path = NULL;
    stem = stem_of(gguf);
    if (!stem || asprintf(path, "%.*s%s.Modelfile", folder, gguf, stem) < 0) {
        free(stem);
        FAIL(ERR_FAILED, "out of memory");
    }
    free(stem);
    return OK;
}

static int write_modelfile(const ModelFile *model, const char *gguf) {
    int rc = OK;
    Text text = {0};
    NewFile file = {0};
    char *path = NULL;
    TRY_TO(done, make_modelfile(&text, model, gguf));
    TRY_TO(done, modelfile_path(&path, gguf));
    TRY_TO(done, new_file_begin(&file, path));
    TRY_TO(done, file_write_atomic(file.path, text.bytes, text.length));
    TRY_TO(done, new_file_commit(&file));
    log_info("export: a Modelfile for Ollama is in %s", path);
done:
    new_file_abandon(&file);
    text_free(&text);
    free(path);
    return rc;
}

/* ---- the model ---- */

static int write_gguf(ModelCopy *copy, const char *path, const void *context) {
    const GgufModel *model = context;
    if (!copy->file.tokenizer)
        log_warning("%s has no tokenizer, so the export has none; --tokenizer FILE gives it one", copy->file.path);
    return gguf_write(path, copy->sources, copy->n, model);
}

static int write_both(ModelCopy *copy, const char *to, GgmlType type) {
    char *name = stem_of(to);
    if (!name) FAIL(ERR_FAILED, "out of memory");
    GgufModel model = {.name = name,
                       .type = type,
                       .config = &copy->file.config,
                       .generation = &copy->file.generation,
                       .tokenizer = copy->file.tokenizer,
                       .chat_template = copy->file.chat_template};
    int rc = model_copy_write_file(copy, to, "export", write_gguf, &model);
    free(name);
    TRY(rc);
    return write_modelfile(&copy->file, to);
}

int export_gguf(const char *model, const char *to, const char *dtype, ModelCopyOptions options) {
    GgmlType type = GGML_F32;
    ModelCopy copy;
    if (dtype) TRY(find_kind(&type, dtype));
    TRY(new_file_check(to));
    TRY(model_copy_open(&copy, model, options));
    int rc = copy.file.config.labels.n > 0
                 ? error_set(ERR_REFUSED, __FILE__, __LINE__,
                             "%s: a reward model; GGUF files are for language models, use --format hf", model)
                 : write_both(&copy, to, dtype ? type : stored_type(&copy));
    model_copy_close(&copy);
    return rc;
}
