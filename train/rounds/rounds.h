/* cria rounds: stages of training, sampling and measuring, gone through again and again (Touvron et al. 2023b, section
 * 3.2; Grattafiori et al. 2024, section 4.1). The config is that of any run, shared by all stages, and a list:
 *
 *   output: runs/aligned
 *   model: {base: runs/my-llama}
 *   rounds: {count: 3}
 *   stages:
 *     - {stage: sft, run: sft, last_round: 1, data: {train: chats.jsonl}, optim: {lr: 2.0e-5}}
 *     - {stage: best, run: rejection, rejection: {prompts: "prompts-{round}.jsonl", earlier: ["{best@earlier}"]}}
 *     - {stage: tune, run: sft, data: {train: "{best}/sft.jsonl"}}
 *
 * A stage is a command (command.c) that runs as a process of its own, on a config written beside its folder:
 *
 *   OUTPUT/rounds.yaml           the config that all this was made with; whose presence makes the folder ours
 *   OUTPUT/round-1/sft.yaml      what `cria sft` is given: the shared options that it knows, under the stage's own
 *   OUTPUT/round-1/sft.json      the record (record.c): what the stage was begun with, and that it is finished
 *   OUTPUT/round-1/sft/          the stage's folder, with all that the command writes
 *   OUTPUT/report.md             and report.json: what every finished stage came to (report.c)
 *
 * Processes, because MPI starts once in a process, because a process's end gives its memory back, whole, and because a
 * stage that crashes then leaves a program that can say so. All that is written follows from the config, the data and
 * the seeds; times stand in metrics.jsonl alone. So a run that was killed ends with the same files. */
#ifndef CRIA_TRAIN_ROUNDS_H
#define CRIA_TRAIN_ROUNDS_H

#include "configs/config.h"
#include "configs/yaml.h"
#include "model/core/arena.h"
#include "train/rounds/command.h"

/* A stage as the config has it. */
typedef struct {
    const char *name, *where; /* "best", "rounds.yaml:9:5" */
    const StageCommand *command;
    int64_t first_round, last_round; /* it has a part in these */
    YamlNode *options;               /* a mapping of the options alone */
    ConfigStrings models;            /* merge: what is averaged or folded, as written */
    const char *weights, *dtype;     /* merge: as its flags have them, or NULL */
} RoundSpec;

/* One stage of one round. */
typedef struct {
    const RoundSpec *spec;
    int64_t round;
    size_t place;         /* among all, in their order */
    int number, of_round; /* stage `number` of `of_round` in this round, from 1 */
    const char *name;     /* "round-1/best" */
    const char *folder, *yaml, *record;
    Config *config, *symbolic; /* options with what they refer to; in `symbolic` under "{output}" */
    ConfigStrings models, symbolic_models;
} RoundStage;

typedef struct {
    Config *config; /* the shared options */
    const char *path;
    char *bytes; /* of the config's file */
    size_t size;
    Text arguments; /* what the command line sets, as comments */
    Arena arena;
    RoundSpec *specs;
    size_t n_specs;
    RoundStage *stages;
    size_t n_stages;
} Rounds; /* {0} is empty; rounds_free */

/* ---- the config (rounds_config.c) ---- */

/* CliSpec's load: the shared options into `config`, the list of stages into `rounds`. */
int rounds_load(Config *config, const char *path, void *rounds);
/* Every stage of every round with its config, once the shared one is whole. Errors are ERR_USAGE with file and line. */
int rounds_make(Rounds *rounds);
void rounds_free(Rounds *rounds);

/* ---- what a path refers to (references.c) ---- */

/* Replaces references in the paths of a stage's config: {round}, its number; {policy}, the newest model that an earlier
 * stage made, or model.base; {start}, the same when the round began; {NAME}, the newest folder of an earlier stage of
 * that name, {NAME@2} that of round 2, {NAME@earlier} in lists those of all rounds before this one, {NAME@all} with
 * this one's. `root` is the run's folder. */
int references_expand(Rounds *rounds, const RoundStage *stage, Config *config, const char *root);
int references_expand_models(Rounds *rounds, const RoundStage *stage, const char *root, ConfigStrings *models);
/* The stage that a path is in the folder of, which need not be there yet; NULL: none. */
const RoundStage *references_stage(const Rounds *rounds, const char *path);

/* ---- checks before anything starts (check.c) ---- */

/* How far a stage is; see record.h. */
typedef struct {
    bool begun, finished;
    bool recorded; /* as finished */
} RoundState;

/* Every stage's options, and that the files exist which no stage makes, for those that are not finished; collects all
 * that is wrong into one error. */
int rounds_check(const Rounds *rounds, const RoundState *states);
/* The memory of the stages that train, each planned once: ERR_REFUSED where one does not fit; with `print`, a listing
 * of what would run on stdout. */
int rounds_plan(const Rounds *rounds, const RoundState *states, bool print);

/* ---- running (run_stages.c) ---- */

#define ROUNDS_CONFIG "rounds.yaml"
#define ROUNDS_WRITTEN "# written by cria rounds "

/* All that are not finished, in their order. `lock`: of the run's folder, which stages share; -1: none. */
int rounds_run(const Rounds *rounds, const RoundState *states, int lock);

/* ---- the report (report.c, report_text.c) ---- */

/* Writes report.json and report.md of the stages that are finished. */
int rounds_report(const Rounds *rounds);

#endif
