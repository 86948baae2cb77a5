/* A folder that appears under its name complete, or not at all: it is filled under another name beside it and renamed
 * when everything in it is durable. What is there already is never touched: the name must be absent or an empty
 * folder. */
#ifndef CRIA_TRAIN_NEW_DIRECTORY_H
#define CRIA_TRAIN_NEW_DIRECTORY_H

typedef struct {
    char *target; /* the name in the end */
    char *path;   /* where to write until new_directory_commit: TARGET.incomplete-PID */
} NewDirectory;   /* {0} may be abandoned */

/* The refusal alone, for a command that has long work to do before it writes. */
int new_directory_check(const char *target);
/* Checks again, and makes `path`, with its parents. */
int new_directory_begin(NewDirectory *directory, const char *target);
/* Renames it. The files in it must be durable. Releases the NewDirectory whatever happens. */
int new_directory_commit(NewDirectory *directory);
/* Removes what was written; harmless after new_directory_commit. */
void new_directory_abandon(NewDirectory *directory);

#endif
