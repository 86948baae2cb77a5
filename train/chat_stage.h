/* What the stages that learn from conversations have in common (sft, dpo, …): a base with its chat template, tokens
 * that the template needs and the base lacks, and an encoder for every source. */
#ifndef CRIA_TRAIN_CHAT_STAGE_H
#define CRIA_TRAIN_CHAT_STAGE_H

#include "data/chat/pairs.h"
#include "train/files/model_template.h"
#include "train/run.h"

typedef struct {
    ModelTemplate model_template;
    Text jinja;
    ChatColumns *columns; /* of each source, training then validation */
    size_t n_columns;
    int first_new_row; /* rows of the embedding from here on were added */
} ChatStage;           /* {0} is empty; chat_stage_free; the first thing that a stage's `own` holds */
void chat_stage_free(ChatStage *stage);

/* Stage's defaults: a base, and its own template where none is named. */
int chat_stage_defaults(Config *config);

/* Stage's prepare: the template, and the model with rows for the tokens that it needs; `run->own` is the stage. */
int chat_stage_prepare(Run *run);
void chat_stage_new_rows(Run *run);

/* The encoder of one source, in the run's arena. */
typedef int (*MakeEncoder)(const RecordEncoder **encoder, Run *run, const ConfigSource *source,
                           const ChatColumns *columns);
/* Stage's data: every source gets an encoder. */
int chat_stage_data(Run *run, LoaderOptions *options, MakeEncoder make);

/* An encoder of preferences by preferences.*: of SAMPLE_PAIR or SAMPLE_LABELLED. */
int chat_stage_pair_encoder(const RecordEncoder **encoder, Run *run, const ChatColumns *columns,
                            PairObjectives objectives, SampleKind samples);

/* Stage's data_opened: tells what was left out, at every start and not only when the cache is made. */
void chat_stage_data_opened(const Run *run);
/* Stage's sample. */
void chat_stage_sample(Run *run, int64_t step);

#endif
