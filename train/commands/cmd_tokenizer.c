/* cria tokenizer train: learns a byte-level BPE. cria tokenizer show: what a tokenizer holds. */
#include <stdio.h>
#include <string.h>

#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/train.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/files/model_file.h"
#include "train/console/progress.h"

/* ---- train --------------------------------------------------------------------------------------------------------
 */

typedef struct {
    Progress progress;
    bool begun;
    TokenizerTrainStage stage;
} Shown;

static void show_progress(void *context, TokenizerTrainStage stage, uint64_t done, uint64_t total) {
    Shown *shown = context;
    if (shown->begun && shown->stage != stage) progress_end(&shown->progress);
    if (!shown->begun || shown->stage != stage) {
        if (stage == TRAIN_READING)
            progress_begin(&shown->progress, "reading", "bytes", 0, (int64_t)total);
        else
            progress_begin(&shown->progress, "learning", "merges", 0, (int64_t)total);
    }
    shown->begun = true;
    shown->stage = stage;
    progress_update(&shown->progress, (int64_t)done, "");
}

static int train(int argc, char **argv) {
    int64_t vocab_size = 32000, n_special = 16, min_count = 2;
    const char *output = NULL;
    TokenizerTrainOptions options = TOKENIZER_TRAIN_DEFAULTS;
    bool skip = false;
    const Flag flags[] = {
        {"vocab-size", 'v', FLAG_INT, &vocab_size, "N", ">= 258",
         "tokens in all, special ones included (default 32000)"},
        {"output", 'o', FLAG_TEXT, &output, "DIR", "", "where tokenizer.json and its companions are written"},
        {"special", 0, FLAG_INT, &n_special, "N", ">= 2 <= 256",
         "special tokens, named and ordered as Llama 3's: BOS, EOS, … (default 16)"},
        {"min-count", 0, FLAG_INT, &min_count, "N", ">= 1", "pairs that occur less often make no token (default 2)"},
        {"field", 0, FLAG_TEXT, &options.field, "KEY", "", "JSONL: the key that holds the text (default text)"},
        {"skip-errors", 0, FLAG_SWITCH, &skip, "", "", "leave malformed records out instead of stopping"},
    };
    CliResult cli;
    TRY(cli_parse(&cli,
                  &(CliSpec){.usage = "[flags] -o DIR FILE...",
                             .about =
                                 "Learns a byte-level BPE tokenizer with Llama 3's split pattern from text or JSONL\n"
                                 "(files, globs or directories; also .gz and .zst).",
                             .flags = flags,
                             .n_flags = sizeof flags / sizeof *flags,
                             .min_words = 1,
                             .max_words = 1 << 20},
                  argc, argv));
    if (cli.helped) return OK;
    if (!output) FAIL(ERR_USAGE, "nowhere to write to: give -o DIR");
    if (vocab_size > INT32_MAX) FAIL(ERR_USAGE, "a vocabulary of %lld is too large", (long long)vocab_size);
    Shown shown = {.begun = false};
    options.vocab_size = (int)vocab_size;
    options.n_special = (int)n_special;
    options.min_count = min_count;
    options.fail_on_error = !skip;
    options.progress = show_progress;
    options.context = &shown;
    Tokenizer *tokenizer;
    int rc = tokenizer_train(&tokenizer, (const char *const *)cli.words, (size_t)cli.n_words, &options);
    if (shown.begun) progress_end(&shown.progress);
    TRY(rc);
    rc = tokenizer_export(tokenizer, output);
    if (rc == OK) log_info("%s: %d tokens", output, tokenizer_vocab_size(tokenizer));
    tokenizer_free(tokenizer);
    return rc;
}

/* ---- show ---------------------------------------------------------------------------------------------------------
 */

static void print_named(const Tokenizer *tokenizer, const char *what, int32_t id) {
    const char *name = id >= 0 ? tokenizer_name(tokenizer, id) : NULL;
    if (name)
        printf("%-14s %d %s\n", what, id, name);
    else
        printf("%-14s none\n", what);
}

static int show(int argc, char **argv) {
    CliResult cli;
    TRY(cli_parse(&cli,
                  &(CliSpec){.usage = "TOKENIZER",
                             .about = "Shows a tokenizer's kind, size and special tokens.",
                             .min_words = 1,
                             .max_words = 1},
                  argc, argv));
    if (cli.helped) return OK;
    Tokenizer *tokenizer;
    TRY(model_file_load_tokenizer(&tokenizer, cli.words[0]));
    int n = tokenizer_vocab_size(tokenizer), n_special = 0;
    for (int32_t id = 0; id < n; id++) n_special += tokenizer_name(tokenizer, id) != NULL;
    printf("%-14s %s (%s)\n", "kind", tokenizer_kind(tokenizer), tokenizer_source_name(tokenizer));
    printf("%-14s %d\n", "tokens", n);
    print_named(tokenizer, "bos", tokenizer_bos(tokenizer));
    print_named(tokenizer, "eos", tokenizer_eos(tokenizer));
    printf("%-14s %d\n", "special tokens", n_special);
    for (int32_t id = 0; id < n; id++) {
        const char *name = tokenizer_name(tokenizer, id);
        if (name && !text_starts_with(name, "<|reserved_special_token_")) printf("  %7d  %s\n", id, name);
    }
    tokenizer_free(tokenizer);
    return OK;
}

/* -------------------------------------------------------------------------------------------------------------------
 */

int command_tokenizer(int argc, char **argv) {
    static const char help[] = "usage: cria tokenizer train [flags] -o DIR FILE...   learn one from text\n"
                               "       cria tokenizer show TOKENIZER                 what one holds\n\n"
                               "'cria tokenizer train --help' explains the flags.\n";
    static const CliVerb verbs[] = {{"train", train}, {"show", show}};
    return cli_run_verb(verbs, sizeof verbs / sizeof *verbs, help, argc, argv);
}
