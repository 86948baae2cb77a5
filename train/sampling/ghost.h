/* Ghost Attention (Touvron et al. 2023, Llama 2, section 3.3): data from which a model learns to keep to an instruction
 * over many turns. A conversation's questions are answered by the model turn by turn with the instruction on every one
 * of them; the record that is written has it on the first question only (or as its system message), and all answers
 * but the last one marked "train": false, so that the loss of every turn before the last is zero.
 *
 *   {"ghost": "8c0…", "messages": [{"role": "user", "content": "Answer in French.\nHi"}, {"role": "assistant",
 *    "content": "Salut !", "train": false}, {"role": "user", "content": "Bye"}, {"role": "assistant", …}]}
 *
 * "ghost" is a hash of the model, the options, the instruction and the questions. A file that is there already, of the
 * same run, is gone on with. */
#ifndef CRIA_TRAIN_GHOST_H
#define CRIA_TRAIN_GHOST_H

#include "eval/generator.h"
#include "train/answers/prompts.h"

typedef struct {
    const char *const *instructions;
    size_t n_instructions;
    size_t per_conversation; /* different instructions, drawn for each conversation: a record for each */
    bool as_system;          /* the record has the instruction as its system message */
    uint64_t model;          /* fingerprint */
    int max_batch, max_sequence;
    GenerateOptions generate; /* with the template's stop tokens */
} GhostOptions;

typedef struct {
    size_t records;    /* conversation and instruction, each different one once */
    size_t duplicates; /* that were left out */
    size_t resumed, written;
    size_t unfinished, overlong, empty; /* left out: an answer that did not end, no room for it, one without text */
} GhostResult;

/* Prompts are conversations; their own answers are not looked at. Each record is in the file `out` as soon as some
 * dozens of conversations are through. ERR_REFUSED where the file holds anything else. ERR_INTERRUPTED: a signal came,
 * and the same call goes on. */
int ghost_run(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Prompts *prompts,
              const GhostOptions *options, const char *out, GhostResult *result);

#endif
