/* The figures of a run, written as they arise: metrics.jsonl (one JSON object per line) and TensorBoard event files.
 *
 * Names are TRL's: loss, grad_norm, learning_rate, num_tokens, eval_loss, … plus tokens_per_second, memory. In
 * TensorBoard they appear as transformers writes them: eval_loss as eval/loss, all others as train/NAME. */
#ifndef CRIA_TRAIN_METRICS_H
#define CRIA_TRAIN_METRICS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name;
    double value;
    const char *text; /* not NULL: a remark instead of a number (metrics.jsonl only) */
} Metric;

typedef struct MetricsWriter MetricsWriter;

/* Opens DIRECTORY/metrics.jsonl and a new event file in DIRECTORY/tensorboard. `next_step` is the first step this
 * process will report: lines of that step and later ones, left by a run that went on after its last checkpoint, are cut
 * off first (the file is replaced atomically), and TensorBoard is told to forget them. */
int metrics_open(MetricsWriter **writer, const char *directory, int64_t next_step);
int metrics_write(MetricsWriter *writer, int64_t step, const Metric *metrics, size_t n);
/* Makes what was written durable; before a checkpoint commits. */
int metrics_sync(MetricsWriter *writer);
/* Cuts lines as metrics_open does, in a run that rolls back to `next_step`. */
int metrics_rewind(MetricsWriter *writer, int64_t next_step);
void metrics_close(MetricsWriter *writer);

/* Every (step, value) of one metric in a metrics.jsonl, malloc'd, in the order of the file. Lines that are not JSON
 * objects are passed over. */
int metrics_read(const char *path, const char *name, double **steps, double **values, size_t *n);

#endif
