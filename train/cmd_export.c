/* cria export: a model in the form that other programs open. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <jansson.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/formats/json_read.h"
#include "model/formats/safetensors.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/export_gguf.h"
#include "train/model_copy.h"
#include "train/new_directory.h"

typedef struct {
    const char *format, *tokenizer, *dtype, *shard_size;
    uint64_t shard_bytes;
} Arguments;

/* ---- the forms ---- */

static int write_template(const char *directory, const char *text) {
    char *path = path_join(directory, MODEL_FILE_TEMPLATE);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = file_write_atomic(path, text, strlen(text));
    free(path);
    return rc;
}

/* Programs that do not read chat_template.jinja look for the template in tokenizer_config.json. */
static int add_to_config(const char *directory, const char *text) {
    int rc = OK;
    char *path = path_join(directory, "tokenizer_config.json"), *bytes = NULL, *dumped = NULL;
    json_t *root = NULL;
    size_t size;
    if (!path) FAIL(ERR_FAILED, "out of memory");
    if (!file_exists(path)) goto done;
    TRY_TO(done, file_read(&bytes, &size, path, 0));
    TRY_TO(done, json_read_object(&root, bytes, size, path));
    json_object_set_new(root, "chat_template", json_string(text));
    dumped = json_dumps(root, JSON_INDENT(2));
    if (!dumped) FAIL_TO(done, ERR_FAILED, "out of memory");
    TRY_TO(done, file_write_atomic(path, dumped, strlen(dumped)));
done:
    json_decref(root);
    free(bytes);
    free(dumped);
    free(path);
    return rc;
}

/* config.json, generation_config.json, the tokenizer's files and chat template, and the arrays in one file or several.
 */
static int write_hugging_face(ModelCopy *copy, const char *directory, const void *context) {
    const Arguments *arguments = context;
    TRY(hf_config_write(&copy->file.config, directory));
    TRY(hf_generation_write(&copy->file.generation, directory));
    if (copy->file.tokenizer)
        TRY(tokenizer_export(copy->file.tokenizer, directory));
    else
        log_warning("%s has no tokenizer, so the export has none; --tokenizer FILE gives it one", copy->file.path);
    if (copy->file.chat_template) {
        TRY(write_template(directory, copy->file.chat_template));
        TRY(add_to_config(directory, copy->file.chat_template));
    }
    return safetensors_write_directory(directory, copy->sources, copy->n, arguments->shard_bytes);
}

static int export_hugging_face(const Arguments *arguments, const char *model, const char *to) {
    ModelCopy copy;
    TRY(new_directory_check(to));
    TRY(model_copy_open(&copy, model,
                        (ModelCopyOptions){.tokenizer = arguments->tokenizer, .dtype = arguments->dtype}));
    int rc = model_copy_write(&copy, to, "export", write_hugging_face, arguments);
    model_copy_close(&copy);
    return rc;
}

static int export_to_gguf(const Arguments *arguments, const char *model, const char *to) {
    return export_gguf(model, to, arguments->dtype, arguments->tokenizer);
}

typedef struct {
    const char *name, *help;
    int (*write)(const Arguments *arguments, const char *model, const char *to);
} Format;

static const Format formats[] = {
    {"hf", "a Hugging Face directory with safetensors", export_hugging_face},
    {"gguf", "a file for llama.cpp, Ollama and LM Studio", export_to_gguf},
};
enum { N_FORMATS = sizeof formats / sizeof *formats };

static int find_format(const Format **format, const char *name) {
    Text known = {0};
    for (size_t i = 0; i < N_FORMATS; i++) {
        *format = &formats[i];
        if (strcmp(name, formats[i].name) == 0) {
            text_free(&known);
            return OK;
        }
        text_printf(&known, "%s%s (%s)", i ? ", " : "", formats[i].name, formats[i].help);
    }
    int rc = error_set(ERR_USAGE, __FILE__, __LINE__, "--format: found '%s'; there is: %s", name,
                       known.bytes ? known.bytes : "");
    text_free(&known);
    return rc;
}

/* ---- arguments ---- */

/* "5GB", "500 MB", "2GiB", "1000000": decimal units, or binary ones with an i. */
static int parse_size(uint64_t *bytes, const char *text) {
    static const char units[] = "KMGT";
    char number[32];
    double value, scale = 1;
    size_t n = strcspn(text, "KMGTkmgtBb ");
    snprintf(number, sizeof number, "%.*s", (int)n, text);
    const char *unit = text + n + strspn(text + n, " ");
    const char *letter = *unit ? strchr(units, toupper((unsigned char)*unit)) : NULL;
    if (letter) {
        bool binary = unit[1] == 'i';
        for (const char *at = units; at <= letter; at++) scale *= binary ? 1024 : 1000;
        unit += binary ? 2 : 1;
    }
    if (n >= sizeof number || !text_parse_double(number, &value) || (*unit && strcasecmp(unit, "B") != 0) ||
        !(value * scale >= 1) || value * scale > 1e18)
        FAIL(ERR_USAGE, "--shard-size: found '%s', expected a size like 5GB, 500MB or 2GiB", text);
    *bytes = (uint64_t)(value * scale);
    return OK;
}

int command_export(int argc, char **argv) {
    Arguments arguments = {.format = "hf", .shard_size = "5GB"};
    const Flag flags[] = {
        {"format", 'f', FLAG_TEXT, &arguments.format, "FORMAT", "",
         "hf: a Hugging Face directory (the default); gguf: a file for llama.cpp and Ollama"},
        {"dtype", 0, FLAG_TEXT, &arguments.dtype, "DTYPE", "",
         "hf: fp32, bf16, fp16; gguf: f32, f16, bf16, q8_0, q4_0 (default: as they are stored)"},
        {"shard-size", 0, FLAG_TEXT, &arguments.shard_size, "SIZE", "", "hf: largest safetensors file (5GB)"},
        {"tokenizer", 't', FLAG_TEXT, &arguments.tokenizer, "FILE", "", "instead of the model's own"},
    };
    CliSpec spec = {.usage = "MODEL TO [flags]",
                    .about =
                        "Writes a model for other programs: as hf a folder TO, new or empty, with config.json,\n"
                        "generation_config.json, model.safetensors and the tokenizer; as gguf a new file TO.gguf with\n"
                        "everything inside, and an Ollama Modelfile beside it. MODEL: a checkpoint, a run's folder, a\n"
                        "Hugging Face directory, a GGUF file, a llama2.c file.",
                    .flags = flags,
                    .n_flags = sizeof flags / sizeof *flags,
                    .min_words = 2,
                    .max_words = 2};
    CliResult cli;
    const Format *format;
    TRY(cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) return OK;
    TRY(find_format(&format, arguments.format));
    TRY(parse_size(&arguments.shard_bytes, arguments.shard_size));
    TRY(format->write(&arguments, cli.words[0], cli.words[1]));
    return OK;
}
