/* Learning a tokenizer: byte-level BPE over Llama 3's split pattern. */
#ifndef CRIA_DATA_TOKENIZER_TRAIN_H
#define CRIA_DATA_TOKENIZER_TRAIN_H

#include "data/tokenizer/tokenizer.h"

typedef enum { TRAIN_READING, TRAIN_MERGING } TokenizerTrainStage;

typedef struct {
    int vocab_size;      /* tokens in all: 256 bytes, the learned ones, and n_special at the end */
    int n_special;       /* the first n of Llama 3's: BOS, EOS, …; from 10 on with the chat markers; at least 2 */
    int64_t min_count;   /* pairs that occur less often are not merged */
    int max_token_bytes; /* no longer token is made */
    const char *field;   /* JSONL: the key that holds the text */
    bool fail_on_error;  /* a bad record stops the training; else it is left out */
    /* TRAIN_READING: bytes of files read so far, and of all; TRAIN_MERGING: merges learned and wanted. NULL: none */
    void (*progress)(void *context, TokenizerTrainStage stage, uint64_t done, uint64_t total);
    void *context;
} TokenizerTrainOptions;
#define TOKENIZER_TRAIN_DEFAULTS                                                                       \
    {                                                                                                  \
        .vocab_size = 32000, .n_special = 16, .min_count = 2, .max_token_bytes = 128, .field = "text", \
        .fail_on_error = true                                                                          \
    }

/* Learns from files, globs or directories of text or JSONL (.gz and .zst too). The tokenizer's source is a
 * tokenizer.json; tokenizer_export writes it with the rest. It has fewer tokens than asked for, and a warning says so,
 * where the text holds no more pairs. The same text gives the same tokenizer for any number of threads. */
int tokenizer_train(Tokenizer **tokenizer, const char *const *paths, size_t n_paths,
                    const TokenizerTrainOptions *options);

#endif
