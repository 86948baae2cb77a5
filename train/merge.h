/* Folding adapters into their base, and how far the merged model is from base and adapter. */
#ifndef CRIA_TRAIN_MERGE_H
#define CRIA_TRAIN_MERGE_H

#include <stdint.h>

#include "model/formats/peft.h"
#include "train/model_copy.h"

typedef struct {
    const PeftAdapter *adapters;
    const double *weights; /* each adapter's part, times */
    int n;
} MergeParts;

/* Every matrix of `copy` will be merged as it is written. Free the Merge after the copy's last write. */
typedef struct Merge Merge;
int merge_new(Merge **merge, ModelCopy *copy, MergeParts parts);
void merge_free(Merge *merge);

typedef struct {
    int n_tokens;
    double greatest, difference; /* |logit|, and |merged - unmerged|, the greatest over all tokens */
    double loss, merged_loss;    /* mean negative log-likelihood of each next token */
    int same_best;               /* tokens after which both predict the same best next one */
} MergeDifference;

/* Runs base with adapters, and the model `merged`, both in fp32, on the same few tokens. Loads one after the other. */
int merge_difference(MergeDifference *difference, const char *base, MergeParts parts, const char *merged);

#endif
