/* Answers of the model in training, beside the metrics. */
#ifndef CRIA_TRAIN_CHAT_SAMPLE_H
#define CRIA_TRAIN_CHAT_SAMPLE_H

#include "configs/config.h"
#include "data/chat/template.h"
#include "model/llama.h"

/* Answers each of sft.sample_prompts, or train.sample_prompt, with the generate.* options, in the context the run
 * trains with, and logs the text and how it ended. One that cannot be made is a warning: the run goes on. */
void chat_sample(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Config *config,
                 int64_t step);

/* Tokens of the longest sample so made, prompt and answer; 0 where there are no prompts. */
int chat_sample_length(int64_t *tokens, const ChatTemplate *chat, const Config *config);

#endif
