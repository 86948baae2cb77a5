/* cria merge: adapters folded into their base, or models averaged. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "train/files/adapter_file.h"
#include "train/files/average.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/files/merge.h"
#include "train/files/model_copy.h"
#include "train/files/model_write.h"
#include "train/console/new_directory.h"

enum { MOST_PARTS = 64 };
/* In fp32 merged and unmerged differ by rounding alone: a share of the greatest logit that is far above it. */
static const double FP32_BOUND = 1e-4;

typedef struct {
    const char *dtype, *weights, *format;
    bool no_check, json;
} Arguments;

/* "0.5,0.5", or "average"; `what` they are of, for messages. */
static int parse_weights(double *weights, int n, const char *text, const char *what) {
    bool average = strcmp(text, "average") == 0;
    for (int i = 0; i < n; i++) weights[i] = 1.0 / n;
    if (average) return OK;
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
    if (found + 1 != n) FAIL(ERR_USAGE, "--weights: %d numbers for %d %s", found + 1, n, what);
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

static bool is_checkpoint(const Arguments *arguments) {
    return strcmp(arguments->format, "checkpoint") == 0;
}

static int write_merged(const Arguments *arguments, ModelCopy *copy, const char *to) {
    static const uint64_t default_shards = 0;
    bool checkpoint = is_checkpoint(arguments);
    return model_copy_write(copy, to, "merge", checkpoint ? model_write_checkpoint : model_write_hugging_face,
                            checkpoint ? NULL : &default_shards);
}

/* ---- models ---- */

static int average(const Arguments *arguments, char **models, int n, const char *to) {
    ModelCopy copy;
    Average *averaged = NULL;
    double weights[MOST_PARTS];
    TRY(parse_weights(weights, n, arguments->weights ? arguments->weights : "average", "models"));
    TRY(new_directory_check(to));
    TRY(model_copy_open(&copy, models[0],
                        (ModelCopyOptions){.dtype = arguments->dtype, .need_tokenizer = is_checkpoint(arguments)}));
    int rc = average_new(&averaged, &copy, models, weights, n);
    if (rc == OK) rc = write_merged(arguments, &copy, to);
    if (rc == OK && arguments->json) printf("{\"models\": %d}\n", n);
    average_free(averaged);
    model_copy_close(&copy);
    return rc;
}

/* ---- adapters ---- */

static int merge_opened(const Arguments *arguments, ModelCopy *copy, MergeParts parts, const char *to) {
    TRY(merge_attach(&copy->file, parts));
    copy->lora = copy->file.lora;
    copy->change = parts.n > 1 ? merge_vocabulary : NULL;
    copy->change_context = &parts;
    return write_merged(arguments, copy, to);
}

static int merge_all(const Arguments *arguments, MergeParts parts, const char *to) {
    ModelCopy copy;
    TRY(model_copy_open(
        &copy, parts.paths[0],
        (ModelCopyOptions){.dtype = arguments->dtype, .need_tokenizer = is_checkpoint(arguments), .base = parts.base}));
    Dtype dtype = copy.file.config.dtype;
    int rc = OK;
    for (int i = 0; rc == OK && i < parts.n; i++) rc = adapter_compare_base(&parts.adapters[i], copy.file.arrays);
    if (rc == OK) rc = merge_opened(arguments, &copy, parts, to);
    model_copy_close(&copy);
    TRY(rc);
    return arguments->no_check ? OK : report(arguments, parts, to, dtype);
}

/* Opens the adapters, which follow BASE where the first word is none. */
static int merge(const Arguments *arguments, char **words, int n_words, const char *base) {
    PeftAdapter adapters[MOST_PARTS];
    double weights[MOST_PARTS];
    int opened = 0, rc = OK, n = n_words - 1, n_adapters = 0;
    const char *to = words[n_words - 1];
    for (int i = 0; i < n; i++) n_adapters += adapter_recognises(words[i]);
    if (n > 1 && n_adapters == 0 && !base) return average(arguments, words, n, to);
    if (!adapter_recognises(words[0])) {
        if (base) FAIL(ERR_USAGE, "--base: %s is one already", words[0]);
        base = *words++;
        n--;
    }
    if (n == 0) FAIL(ERR_REFUSED, "%s: it is no adapter, and none follows it", base);
    for (int i = 0; i < n; i++) weights[i] = 1; /* all of them added */
    if (arguments->weights) TRY(parse_weights(weights, n, arguments->weights, "adapters"));
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
         "each one's part, or average (default: adapters 1 each, all of them added; models average)"},
        {"format", 'f', FLAG_TEXT, &arguments.format, "FORMAT", "",
         "hf: a Hugging Face directory (the default); checkpoint: a folder like a run's"},
        {"base", 0, FLAG_TEXT, &base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"no-check", 0, FLAG_SWITCH, &arguments.no_check, "", "",
         "do not compare merged and unmerged (which loads both in fp32, in turn)"},
        {"json", 0, FLAG_SWITCH, &arguments.json, "", "", "print one JSON object"},
    };
    CliSpec spec = {
        .usage = "[BASE] ADAPTER… TO [flags]  or  MODEL MODEL… TO [flags]",
        .about = "Averages models of one shape, or folds adapters into the model they belong to; writes a folder TO,\n"
                 "new or empty. An average has the first model's tokenizer and template. Of adapters it says how\n"
                 "far its logits are from those of base and adapter. BASE: any MODEL (default: the one that the\n"
                 "first adapter names). ADAPTER: a run's folder or checkpoint, or PEFT's folder with\n"
                 "adapter_config.json and adapter_model.safetensors (LoRA, rsLoRA, DoRA).",
        .flags = flags,
        .n_flags = sizeof flags / sizeof *flags,
        .min_words = 2,
        .max_words = MOST_PARTS + 2};
    CliResult cli;
    TRY(cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) return OK;
    if (strcmp(arguments.format, "hf") != 0 && strcmp(arguments.format, "checkpoint") != 0)
        FAIL(ERR_USAGE, "--format: found '%s', expected hf or checkpoint", arguments.format);
    if (cli.n_words - 1 > MOST_PARTS) FAIL(ERR_USAGE, "%d adapters at most", MOST_PARTS);
    return merge(&arguments, cli.words, cli.n_words, base);
}
