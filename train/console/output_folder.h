/* The folder a run writes to: whose it is, and that one process at a time trains into it. */
#ifndef CRIA_TRAIN_OUTPUT_FOLDER_H
#define CRIA_TRAIN_OUTPUT_FOLDER_H

#include <stdbool.h>

/* A folder with a config.yaml is a run's, which the same command may resume (*resuming), and another may begin anew
 * where nothing has come of it yet. Any other must be absent or empty, hidden files and what a killed start leaves
 * behind aside: ERR_REFUSED, and nothing in it is touched. */
int output_folder_check(const char *path, const char *command, bool *resuming);

/* The same for a program with a file of another name, that begins otherwise. */
typedef struct {
    const char *config, *first_words;
} OutputOwner;
int output_folder_check_owner(const char *path, const OutputOwner *owner, bool *resuming);

/* Makes the folder and takes its lock, which the process's end gives back, however it ends. ERR_REFUSED where another
 * process holds it: two would cut each other's metrics and remove each other's checkpoints. *descriptor is -1 where
 * the file system has no locks. */
int output_folder_lock(const char *path, int *descriptor);
void output_folder_unlock(int descriptor);

#endif
