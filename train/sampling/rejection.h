/* cria rejection: K answers to each prompt, scored, the best kept (Touvron et al. 2023b, section 3.2.3). The run's
 * folder holds
 *
 *   config.yaml       the resolved config
 *   samples.jsonl     a line that says what the run depends on, then one for each prompt: all answers with their scores
 *   sft.jsonl         the best answers, as records for `cria sft`
 *   pairs.jsonl       best and worst, as preference records
 *   statistics.json   the maximum and the median of the rewards by number of answers (figure 7), and more
 *
 * samples.jsonl grows by whole chunks of prompts; the other three follow from it. Every answer is a function of the
 * model, the options, its prompt's place and its own number, so a run that was killed goes on with the next chunk and
 * ends with the same files. */
#ifndef CRIA_TRAIN_REJECTION_H
#define CRIA_TRAIN_REJECTION_H

#include <jansson.h>

#include "model/core/text.h"

#define REJECTION_SECTIONS "output model tokenizer template generate rejection"
#define REJECTION_SAMPLES "samples.jsonl"

/* ---- samples.jsonl (rejection_log.c) ---- */

typedef struct {
    int fd; /* -1: not open */
    char *path;
    size_t n; /* prompts in it */
} RejectionLog;

/* Opens the file to go on with it, or begins it with `header`, an object. What a killed run left behind its last whole
 * chunk is cut off; n_prompts: a last chunk may be shorter. ERR_REFUSED, with the key, where the file's header is
 * another: the run was begun with other options, prompts or another model. */
int rejection_log_open(RejectionLog *log, const char *path, const json_t *header, size_t chunk, size_t n_prompts);
/* Lines of a chunk; durable when it returns. */
int rejection_log_append(RejectionLog *log, const Text *lines, size_t n_prompts);
void rejection_log_close(RejectionLog *log);

/* Calls `take` for every prompt's line, in order. */
int rejection_log_read(const char *path, int (*take)(void *context, const json_t *line), void *context);

/* ---- what follows from it (rejection_results.c) ---- */

typedef struct {
    double least_score;
    int samples;
    int keep; /* answers of each prompt that become records, at most */
} RejectionRules;

/* Writes sft.jsonl, pairs.jsonl and statistics.json into `folder` from its samples.jsonl; *statistics is that object,
 * the caller's. */
int rejection_write_results(const char *folder, RejectionRules rules, json_t **statistics);

/* The expected m-th smallest of k of n scores drawn without replacement: Σ_i C(i-1, m-1)·C(n-i, k-m)/C(n, k)·score_i,
 * scores[n] ascending. With m = k the expected maximum, without the noise of one choice of k. */
double expected_order(const double *scores, int n, int k, int m);

/* The best answer of an earlier round's samples.jsonl for each prompt: an object from the prompt (as rejection_key has
 * it) to the text. */
int rejection_best_answers(const char *folder, json_t **best);
/* malloc'd; NULL when memory is out. */
char *rejection_key(const json_t *prompt);

#endif
