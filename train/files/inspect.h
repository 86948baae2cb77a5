/* What `cria inspect` found, as one JSON object, and how people read it. */
#ifndef CRIA_TRAIN_INSPECT_H
#define CRIA_TRAIN_INSPECT_H

#include <jansson.h>
#include <stdbool.h>

/* The keys of a report; all but "path" and "kind" only where they apply:
 *
 *   path, kind           kind: "checkpoint", "run", "model", "adapter" (PEFT's), "tokenizer", "config"
 *   problem              the first thing that is wrong; the command then ends with status 3
 *   step                 of a checkpoint
 *   checkpoints          of a run: [{step, path, best, problem}], newest first
 *   newest               of a run: the report on its newest whole checkpoint
 *   files                [{name, size, crc32c, problem, arrays…}] of a checkpoint
 *   format               "safetensors", "gguf", "hdf5", "llama2.c"
 *   arrays               [{name, dtype, shape, bytes}]; n_arrays, elements, bytes; texts {key: value}
 *   config               of a model, under Hugging Face's keys
 *   adapter              of an adapter, PEFT's or a checkpoint's: {rank, alpha, rslora, dora, dropout, targets, base,
 *                        base_fingerprint (of a checkpoint), trained (numbers)}
 *   tokenizer            {kind, vocab_size, bos, eos, source}
 */

/* Makes the report on PATH; an error where there is nothing to report. */
int inspect_path(json_t **report, const char *path);

/* Prints it on stdout; `brief` leaves the single arrays out. */
void inspect_print(const json_t *report, bool brief);

#endif
