/* A file that appears under its name complete, or not at all, and never in the place of another: new_directory.h for a
 * single file. */
#ifndef CRIA_TRAIN_NEW_FILE_H
#define CRIA_TRAIN_NEW_FILE_H

typedef struct {
    char *target; /* the name in the end */
    char *path;   /* where to write until new_file_commit: TARGET.incomplete-PID */
} NewFile;        /* {0} may be abandoned */

/* The refusal alone, for a command that has long work to do before it writes. */
int new_file_check(const char *target);
/* Checks again, and makes the parents. */
int new_file_begin(NewFile *file, const char *target);
/* Renames what was written at `path`, which must be durable; refuses where TARGET has appeared meanwhile. Releases the
 * NewFile whatever happens. */
int new_file_commit(NewFile *file);
/* Removes what was written; harmless after new_file_commit. */
void new_file_abandon(NewFile *file);

#endif
