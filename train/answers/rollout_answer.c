/* See rollout_answer.h. */
#include "train/answers/rollout_answer.h"

#include "model/core/error.h"

int rollout_add_generation(Rollout *rollout, int number, const Prompt *prompt, int64_t index,
                           const Generation *generation, TokenList *sequence, json_t **text, ScoredAnswer *scored) {
    bool finished = generation->reason == FINISH_STOP_TOKEN;
    sequence->n = 0;
    TRY(token_list_append(sequence, prompt->tokens.ids, prompt->tokens.n));
    TRY(token_list_append(sequence, generation->tokens.ids, generation->tokens.n));
    if (finished) TRY(token_list_append(sequence, &generation->stop_token, 1));
    TRY(rollout_add(rollout, number, sequence->ids, (int)sequence->n, (int)prompt->tokens.n, finished,
                    generation->logprobs));
    *text = answer_text(generation->text, generation->text_size);
    if (!*text) FAIL(ERR_FAILED, "out of memory");
    *scored = (ScoredAnswer){.prompt = prompt,
                             .index = index,
                             .text = json_string_value(*text),
                             .size = json_string_length(*text),
                             .n_tokens = (size_t)answer_length(&rollout->answers[number])};
    return OK;
}
