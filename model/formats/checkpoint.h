/* Checkpoints of a run:
 *
 *   RUN/checkpoints/step-200/   model.h5, optimizer.h5, config.yaml, … and manifest.json
 *   RUN/checkpoints/step-400/   …
 *   RUN/checkpoints/best        a file with the line "step-200"
 *
 * Every file of a step's folder is written, made durable, read back and listed in the manifest with its size and
 * CRC32C; renaming manifest.json into place is the commit. A folder without a manifest is a save that did not finish;
 * one that does not match its manifest is damaged; neither is ever loaded. A step that is saved again keeps its older
 * form as step-N.old until the new one is committed, so that at any instant there is an old or a new one.
 *
 * One process writes a run's checkpoints. HDF5 is used: call from one thread only. */
#ifndef CRIA_FORMATS_CHECKPOINT_H
#define CRIA_FORMATS_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "model/formats/manifest.h"
#include "model/formats/named.h"

#define CHECKPOINT_MODEL "model.h5" /* the model's arrays, under their Hugging Face names */

/* ---- writing ---- */

typedef struct CheckpointWriter CheckpointWriter;

/* Makes the folder of `step`, with its parents; removes what an unfinished save left there. */
int checkpoint_begin(CheckpointWriter **writer, const char *run, int64_t step);
const char *checkpoint_folder(const CheckpointWriter *writer);

/* Each adds one file, durable when the call returns. An HDF5 file of arrays; plain bytes; or a file that somebody else
 * (another rank) has put into the folder and made durable, of the sum he states. */
int checkpoint_add_arrays(CheckpointWriter *writer, const char *name, const NamedSource *sources, size_t n,
                          const NamedText *texts, size_t n_texts);
int checkpoint_add_bytes(CheckpointWriter *writer, const char *name, const void *bytes, size_t size);
int checkpoint_add_existing(CheckpointWriter *writer, const char *name, const FileSum *sum);

/* Writes the manifest. Releases the writer; where it fails, as checkpoint_abandon does. */
int checkpoint_commit(CheckpointWriter *writer);
/* Removes the unfinished folder and releases the writer. NULL is fine. */
void checkpoint_abandon(CheckpointWriter *writer);

/* ---- finding and reading ---- */

/* The newest checkpoint of RUN that is whole, every byte checked; malloc'd, NULL where the run has none. Newer ones
 * that are unfinished or damaged are passed over with a warning that says why. It is an error when all that were ever
 * committed are damaged: a run must not silently start over. `step` may be NULL. */
int checkpoint_newest(char **folder, int64_t *step, const char *run);
/* The one that RUN/checkpoints/best names, every byte checked; malloc'd. */
int checkpoint_best(char **folder, int64_t *step, const char *run);

/* The checkpoint a user means by PATH as a model: its folder, a run's folder (the newest), or RUN/best; malloc'd. Every
 * byte of the model's file is checked, of the others (the optimizer's are twice as large) only that they are there. */
int checkpoint_resolve(char **folder, const char *path);

/* Every file against the manifest. */
int checkpoint_verify(const char *folder);

/* Opens NAME (an HDF5 file) of a checkpoint after checking it against the manifest. */
int checkpoint_open_arrays(NamedFile **file, const char *folder, const char *name);
/* Reads NAME, checked against the manifest; malloc'd, with a NUL after it. An absent file is an error. */
int checkpoint_read_bytes(char **bytes, size_t *size, const char *folder, const char *name);

/* ---- keeping house ---- */

/* Makes `step`, which must be committed, the best; the one before is no longer protected. */
int checkpoint_mark_best(const char *run, int64_t step);

/* Removes all but the newest `keep_last` (at least 1) committed checkpoints and the best, and what unfinished saves
 * older than the newest commit left. Damaged ones are left for the user to look at. */
int checkpoint_prune(const char *run, int keep_last);

#endif
