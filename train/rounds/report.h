/* The parts of the report: see report.c. */
#ifndef CRIA_TRAIN_ROUNDS_REPORT_H
#define CRIA_TRAIN_ROUNDS_REPORT_H

#include <jansson.h>

#include "train/rounds/rounds.h"

/* Appends what the figures of a stage, as report.json has it, mean: a line each (remarks.c). */
void report_remarks(const json_t *stage, Text *out);

/* report.md of the list of rounds in report.json. */
int report_text(const json_t *all, const Rounds *rounds, Text *out);

#endif
