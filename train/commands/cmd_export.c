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
#include "model/lora_peft.h"
#include "train/files/adapter_file.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/files/export_gguf.h"
#include "train/files/model_copy.h"
#include "train/files/model_write.h"
#include "train/console/new_directory.h"

typedef struct {
    const char *format, *tokenizer, *base, *dtype, *shard_size;
    uint64_t shard_bytes;
} Arguments;

/* ---- the forms ---- */

static int export_hugging_face(const Arguments *arguments, const char *model, const char *to) {
    ModelCopy copy;
    TRY(new_directory_check(to));
    TRY(model_copy_open(
        &copy, model,
        (ModelCopyOptions){.tokenizer = arguments->tokenizer, .dtype = arguments->dtype, .base = arguments->base}));
    int rc = model_copy_write(&copy, to, "export", model_write_hugging_face, &arguments->shard_bytes);
    model_copy_close(&copy);
    return rc;
}

static int export_to_gguf(const Arguments *arguments, const char *model, const char *to) {
    return export_gguf(model, to, arguments->dtype,
                       (ModelCopyOptions){.tokenizer = arguments->tokenizer, .base = arguments->base});
}

/* An adapter once more, as PEFT's newest form has it; its arrays stay as they are stored. */
static int export_peft(const Arguments *arguments, const char *model, const char *to) {
    PeftAdapter adapter;
    NewDirectory directory = {0};
    if (arguments->dtype) FAIL(ERR_USAGE, "--dtype: an adapter is exported as it is stored");
    TRY(new_directory_check(to));
    TRY(adapter_open(&adapter, model));
    int rc = new_directory_begin(&directory, to);
    if (rc == OK) rc = lora_copy_peft(&adapter, directory.path);
    if (rc == OK) rc = new_directory_commit(&directory);
    new_directory_abandon(&directory);
    peft_close(&adapter);
    return rc;
}

typedef struct {
    const char *name, *help;
    int (*write)(const Arguments *arguments, const char *model, const char *to);
} Format;

static const Format formats[] = {
    {"hf", "a Hugging Face directory with safetensors", export_hugging_face},
    {"gguf", "a file for llama.cpp, Ollama and LM Studio", export_to_gguf},
    {"peft", "an adapter for PEFT", export_peft},
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
         "hf: a Hugging Face directory (the default); gguf: a file for llama.cpp and Ollama; peft: an adapter"},
        {"dtype", 0, FLAG_TEXT, &arguments.dtype, "DTYPE", "",
         "hf: fp32, bf16, fp16; gguf: f32, f16, bf16, q8_0, q4_0 (default: as they are stored)"},
        {"shard-size", 0, FLAG_TEXT, &arguments.shard_size, "SIZE", "", "hf: largest safetensors file (5GB)"},
        {"tokenizer", 't', FLAG_TEXT, &arguments.tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &arguments.base, "MODEL", "", MODEL_FILE_BASE_HELP},
    };
    CliSpec spec = {.usage = "MODEL TO [flags]",
                    .about =
                        "Writes a model for other programs: as hf a folder TO, new or empty, with config.json,\n"
                        "generation_config.json, model.safetensors and the tokenizer; as gguf a new file TO.gguf with\n"
                        "everything inside, and an Ollama Modelfile beside it; as peft a folder with an adapter.\n"
                        "MODEL: a checkpoint, a run's folder, a Hugging Face directory, a GGUF file, a llama2.c file;\n"
                        "or an adapter, which is merged into its base for hf and gguf.",
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
