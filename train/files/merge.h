/* How far a merged model is from base and adapters. */
#ifndef CRIA_TRAIN_MERGE_H
#define CRIA_TRAIN_MERGE_H

#include <stdint.h>

#include "train/files/model_file.h"

typedef struct {
    const char *base;   /* NULL: the model that the first adapter names */
    char *const *paths; /* of the adapters; opened as a MODEL the first says tokenizer and chat template */
    const PeftAdapter *adapters;
    const double *weights; /* each adapter's part, times */
    int n;
} MergeParts;

/* `file` is the first adapter opened with its base: the others are added to it. */
int merge_attach(ModelFile *file, MergeParts parts);

typedef struct {
    int n_tokens;
    double greatest, difference; /* |logit|, and |merged - unmerged|, the greatest over all tokens */
    double loss, merged_loss;    /* mean negative log-likelihood of each next token */
    int same_best;               /* tokens after which both predict the same best next one */
    bool scores; /* of a reward model: what is compared are each token's scores; losses and best are 0 */
} MergeDifference;

/* Runs base with adapters, and the model `merged`, both in fp32, on the same few tokens. Loads one after the other. */
int merge_difference(MergeDifference *difference, MergeParts parts, const char *merged);

#endif
