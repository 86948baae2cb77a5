/* A live line for long work, on stderr. On a terminal one line is redrawn in place and taken away before log lines:
 *
 *     training ━━━━━━━╸━━━━━━━━━━━━  35% 700/2,000 steps · loss 2.134 · 41,203 tok/s · 312.50 MiB · 1:52 left
 *
 * Elsewhere (a file, a batch job) a plain line now and then. Ranks other than 0 show nothing. One at a time; from one
 * thread. */
#ifndef CRIA_TRAIN_PROGRESS_H
#define CRIA_TRAIN_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *title, *unit; /* "training", "steps" */
    int64_t total, first;     /* first: where this process began (a resumed run) */
    double begun, drawn;      /* seconds of the monotonic clock */
    bool live, unicode, shown;
    char line[1024];
} Progress;

/* Texts must outlive the progress. total 0: not known. */
void progress_begin(Progress *progress, const char *title, const char *unit, int64_t first, int64_t total);
/* Whether progress_update would draw now: details need not be made otherwise. */
bool progress_due(const Progress *progress);
/* Cheap: draws ten times a second on a terminal, every ten seconds elsewhere. `details` may be "". */
void progress_update(Progress *progress, int64_t done, const char *details);
/* The same, drawn in any case. */
void progress_draw(Progress *progress, int64_t done, const char *details);
/* Shows the line on a terminal at once, before the first of slow steps is done. */
void progress_show(Progress *progress, int64_t done);
/* Takes the live line away; what remains to be said is for log_info. */
void progress_end(Progress *progress);

/* "loss 2.134 · 41,203 tok/s · 312.50 MiB": a training step's details. Memory is measured here. */
const char *progress_training_details(char *out, size_t size, double loss, double tokens_per_second);

/* Columns of the terminal on stderr; 80 where there is none. */
int terminal_width(void);
/* Whether the locale's character set is UTF-8. */
bool terminal_is_utf8(void);

#endif
