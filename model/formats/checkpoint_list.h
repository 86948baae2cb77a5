/* The step folders of a run, as they are on the disk: for what checkpoint.h does not answer. */
#ifndef CRIA_FORMATS_CHECKPOINT_LIST_H
#define CRIA_FORMATS_CHECKPOINT_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHECKPOINTS "checkpoints"
#define CHECKPOINT_BEST "best"

/* One folder step-N or step-N.old. */
typedef struct {
    int64_t step;
    bool old;
    char *path;
} StepFolder;

typedef struct {
    StepFolder *items; /* newest first; of one step, step-N before step-N.old */
    size_t n;
} StepList;

/* The folders of RUN/checkpoints; an absent directory has none. Anything of another name is left out. */
int step_list_read(StepList *list, const char *run);
void step_list_free(StepList *list);

/* "step-N" or "step-N.old"? Exactly so: no sign, no leading zero. */
bool step_name_parse(int64_t *step, bool *old, const char *name);
/* malloc'd RUN/checkpoints/step-N[.old]. NULL when memory is out. */
char *step_path(const char *run, int64_t step, bool old);

/* The step that RUN/checkpoints/best names; -1 where there is no such file. */
int step_read_best(int64_t *step, const char *run);
bool step_has_manifest(const char *folder);
/* A manifest that is whole, and every file with its size: cheap, and enough to decide what may be deleted. */
bool step_looks_committed(const char *folder);
/* Below, `only` names one file whose bytes are checked, of the others just the size; with NULL all bytes are. */
int step_verify(const char *folder, const char *only);
/* As checkpoint_newest and checkpoint_best. */
int step_newest(char **folder, int64_t *step, const char *run, const char *only);
int step_best(char **folder, int64_t *step, const char *run, const char *only);
/* The step's folder, or its .old form, whichever is whole; malloc'd. An error says what is wrong with the folder. */
int step_find_whole(char **folder, const char *run, int64_t step, const char *only);
/* Removes the manifest first, so that a removal cut short leaves something plainly unfinished. */
int step_remove(const char *folder);

#endif
