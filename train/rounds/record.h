/* What a stage was made with, OUTPUT/round-1/NAME.json: written when it begins and again, as finished, when it ends.
 *
 *   {"cria": "rounds", "format": 1, "stage": "round-1/tune", "run": "sft", "state": "finished",
 *    "options": {"optim.lr": "0.001", …},                        those that were set, but for those without effect
 *    "inputs": {"{output}/round-1/best/sft.jsonl": "4011:5d0f2a1c", …}}    size and CRC32C of what it read
 *
 * A folder of a model counts by the CRC32C of its newest checkpoint's model.h5, any other by all its files. */
#ifndef CRIA_TRAIN_ROUNDS_RECORD_H
#define CRIA_TRAIN_ROUNDS_RECORD_H

#include <jansson.h>

#include "train/rounds/rounds.h"

/* What the record says. A finished stage whose options or inputs are other ones now is ERR_REFUSED, and they are named;
 * so is a stage that has begun, cannot go on by itself and is to be another; and a folder where no record is. */
int record_read(const RoundStage *stage, RoundState *state);
/* The same, without a look at what it was made with. */
int record_state(const RoundStage *stage, RoundState *state);
int record_write(const RoundStage *stage, bool finished);

/* Calls `visit` for everything that a stage reads: the option it stands in (OPTION_COUNT: a merge's model), its path,
 * and the same below "{output}". */
typedef int InputVisit(void *context, OptionId id, const char *path, const char *symbolic);
int inputs_visit(const RoundStage *stage, InputVisit *visit, void *context);
/* "size:crc32c" into the arena; "" where it is absent. */
int input_sum(const char **sum, const char *path, Arena *arena);

#endif
