/* A sample text from the model in training, beside the metrics. */
#ifndef CRIA_TRAIN_SAMPLE_H
#define CRIA_TRAIN_SAMPLE_H

#include "configs/config.h"
#include "data/tokenizer/tokenizer.h"
#include "model/llama.h"

enum { SAMPLE_TOKENS = 64 };

/* Continues train.sample_prompt with the generate.* options, in the context the run trains with, and logs the text. One
 * that cannot be made is a warning: the run goes on. */
void sample_text(Llama *model, const Tokenizer *tokenizer, const Config *config, int64_t step);

#endif
