/* Averaging models of one shape, Σ wᵢ·θᵢ (Llama 3, Grattafiori et al. 2024, section 4.1.5; Wortsman et al. 2022): slice
 * by slice, on the way from files to a file. */
#ifndef CRIA_TRAIN_AVERAGE_H
#define CRIA_TRAIN_AVERAGE_H

#include "train/files/model_copy.h"

typedef struct Average Average;

/* Of paths[0…n), of which `copy` has paths[0] open, with weights[n] that sum to 1: what `copy` writes from now on is
 * the average, summed in fp64. Tokenizer, template and config are those of paths[0]. ERR_REFUSED names the first number
 * of the shape, or the first array, that is not the same. Free it after the copy's last write. */
int average_new(Average **average, ModelCopy *copy, char *const *paths, const double *weights, int n);
void average_free(Average *average);

#endif
