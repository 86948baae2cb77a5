/* cria merge: adapters folded into their base. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "train/adapter_file.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/merge.h"
#include "train/model_copy.h"
#include "train/model_write.h"
#include "train/new_directory.h"

enum { MOST_ADAPTERS = 64 };
/* In fp32 merged and unmerged differ by rounding alone: a share of the greatest logit that is far above it. */
static const double FP32_BOUND = 1e-4;

typedef struct {
    const char *dtype, *weights, *format;
    bool no_check, json;
} Arguments;

/* "0.5,0.5", "average", or NULL: 1 each. */
static int parse_weights(double *weights, int n, const char *text) {
    bool average = text && strcmp(text, "average") == 0;
    for (int i = 0; i < n; i++) weights[i] = average ? 1.0 / n : 1;
    if (!text || average) return OK;
    int found = 0;
    for (const char *at = text;; at++, found++) {
        char number[40];
        size_t length = strcspn(at, ",");
        snprintf(number, sizeof number, "%.*s", (int)length, at);
        if (length >= sizeof number || found >= n || !text_parse_double(number, &weights[found]) ||
            !isfinite(weights[found]))
            FAIL(ERR_USAGE, "--weights: found '%s', expected %d numbers with commas between them, or average", text, n);
        at += length;
        if (!*at) break;
    }
    if (found + 1 != n) FAIL(ERR_USAGE, "--weights: %d numbers for %d adapters", found + 1, n);
    return OK;
}

static int report(const Arguments *arguments, MergeParts parts, const char *to, Dtype dtype) {
    MergeDifference d;
    TRY(merge_difference(&d, parts, to));
    if (arguments->json)
        printf("{\"tokens\": %d, \"logits_greatest\": %.9g, \"logits_difference\": %.9g, \"loss\": %.9g, "
               "\"merged_loss\": %.9g, \"same_best\": %d}\n",
               d.n_tokens, d.greatest, d.difference, d.loss, d.merged_loss, d.same_best);
    else if (d.scores)
        printf("on %d tokens the scores of %s differ from those of base and adapter by at most %.2g (the greatest is "
               "%.3g)\n",
               d.n_tokens, to, d.difference, d.greatest);
    else
        printf("on %d tokens the logits of %s differ from those of base and adapter by at most %.2g (the greatest is "
               "%.3g); the best next token is the same after %d of them\n",
               d.n_tokens, to, d.difference, d.greatest, d.same_best);
    if (!(d.difference <= INFINITY) || (dtype == DTYPE_F32 && d.difference > FP32_BOUND * d.greatest))
        FAIL(ERR_FAILED,
             "%s: merged and unmerged differ by %.2g of the greatest logit; in fp32 at most %.0e is expected", to,
             d.difference / d.greatest, FP32_BOUND);
    return OK;
}

static int merge_opened(const Arguments *arguments, ModelCopy *copy, MergeParts parts, const char *to) {
    static const uint64_t default_shards = 0;
    bool checkpoint = strcmp(arguments->format, "checkpoint") == 0;
    TRY(merge_attach(&copy->file, parts));
    copy->lora = copy->file.lora;
    return model_copy_write(copy, to, "merge", checkpoint ? model_write_checkpoint : model_write_hugging_face,
                            checkpoint ? NULL : &default_shards);
}

static int merge_all(const Arguments *arguments, MergeParts parts, const char *to) {
    ModelCopy copy;
    bool checkpoint = strcmp(arguments->format, "checkpoint") == 0;
    TRY(model_copy_open(
        &copy, parts.paths[0],
        (ModelCopyOptions){.dtype = arguments->dtype, .need_tokenizer = checkpoint, .base = parts.base}));
    Dtype dtype = copy.file.config.dtype;
    int rc = merge_opened(arguments, &copy, parts, to);
    model_copy_close(&copy);
    TRY(rc);
    return arguments->no_check ? OK : report(arguments, parts, to, dtype);
}

/* Opens the adapters, which follow BASE where the first word is none. */
static int merge(const Arguments *arguments, char **words, int n_words, const char *base) {
    PeftAdapter adapters[MOST_ADAPTERS];
    double weights[MOST_ADAPTERS];
    int opened = 0, rc = OK, n = n_words - 1;
    const char *to = words[n_words - 1];
    if (!adapter_recognises(words[0])) {
        if (base) FAIL(ERR_USAGE, "--base: %s is one already", words[0]);
        base = *words++;
        n--;
    }
    if (n == 0) FAIL(ERR_REFUSED, "%s: it is no adapter, and none follows it", base);
    TRY(parse_weights(weights, n, arguments->weights));
    TRY(new_directory_check(to));
    for (; rc == OK && opened < n; opened += rc == OK) rc = adapter_open(&adapters[opened], words[opened]);
    if (rc == OK) rc = merge_all(arguments, (MergeParts){base, words, adapters, weights, n}, to);
    while (opened > 0) peft_close(&adapters[--opened]);
    return rc;
}

int command_merge(int argc, char **argv) {
    Arguments arguments = {.format = "hf"};
    const char *base = NULL;
    const Flag flags[] = {
        {"dtype", 0, FLAG_TEXT, &arguments.dtype, "DTYPE", "", "fp32, bf16 or fp16 (default: as the base is stored)"},
        {"weights", 'w', FLAG_TEXT, &arguments.weights, "W,W…", "",
         "each adapter's part, or average (default: 1 each, all of them added)"},
        {"format", 'f', FLAG_TEXT, &arguments.format, "FORMAT", "",
         "hf: a Hugging Face directory (the default); checkpoint: a folder like a run's"},
        {"base", 0, FLAG_TEXT, &base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"no-check", 0, FLAG_SWITCH, &arguments.no_check, "", "",
         "do not compare merged and unmerged (which loads both in fp32, in turn)"},
        {"json", 0, FLAG_SWITCH, &arguments.json, "", "", "print one JSON object"},
    };
    CliSpec spec = {
        .usage = "[BASE] ADAPTER… TO [flags]",
        .about = "Folds adapters into the model they belong to, writes it as a folder TO, new or empty, and says\n"
                 "how far its logits are from those of base and adapter. BASE: any MODEL (default: the one that the\n"
                 "first adapter names). ADAPTER: a run's folder or checkpoint, or PEFT's folder with\n"
                 "adapter_config.json and adapter_model.safetensors (LoRA, rsLoRA, DoRA).",
        .flags = flags,
        .n_flags = sizeof flags / sizeof *flags,
        .min_words = 2,
        .max_words = MOST_ADAPTERS + 2};
    CliResult cli;
    TRY(cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) return OK;
    if (strcmp(arguments.format, "hf") != 0 && strcmp(arguments.format, "checkpoint") != 0)
        FAIL(ERR_USAGE, "--format: found '%s', expected hf or checkpoint", arguments.format);
    if (cli.n_words - 1 > MOST_ADAPTERS) FAIL(ERR_USAGE, "%d adapters at most", MOST_ADAPTERS);
    return merge(&arguments, cli.words, cli.n_words, base);
}
