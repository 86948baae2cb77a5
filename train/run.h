/* A training run: what all stages have in common, from the config to the last checkpoint. A stage (pretrain.c, sft.c)
 * says what is its own: the data, the objective, what a sample is. */
#ifndef CRIA_TRAIN_RUN_H
#define CRIA_TRAIN_RUN_H

#include "configs/config.h"
#include "dist/mesh.h"
#include "dist/watchdog.h"
#include "train/loop/loop.h"
#include "train/files/model_file.h"
#include "train/plan.h"
#include "train/run_files.h"

typedef struct Run Run;

typedef struct {
    const char *name;                              /* the command */
    ModelHead head;                                /* of model.base and of what is trained */
    void (*about)(Text *out);                      /* what --help begins with */
    const char *sections;                          /* of options, that --help lists */
    int (*defaults)(Config *config);               /* fills in what the stage resolves, before any check; may be NULL */
    int (*prepare)(Run *run);                      /* tokenizer and model are there, no data; may be NULL */
    int (*data)(Run *run, LoaderOptions *options); /* the sources are the run's arena's, to be changed; may be NULL */
    void (*data_opened)(const Run *run);           /* may be NULL */
    void (*new_rows)(Run *run);                    /* sets again what `prepare` added to the base; may be NULL */
    /* A stage with data of its own, in the loader's place: sets run->batches, data_fingerprint, steps_per_epoch and
     * whole_steps. NULL: the loader, by `data`. */
    int (*open)(Run *run);
    /* With `open`: measures the model as it is, collectively, and says on rank 0 what was found; *loss is what the best
     * checkpoint has least of. *found is false where nothing is held out. */
    int (*measure)(Run *run, int64_t step, double *loss, bool *found);
    void (*reloaded)(Run *run); /* with `open`: the model was set back to an earlier one */
    int (*ready)(Run *run);     /* the data are open, the model is what training begins from; may be NULL */
    int (*restart)(Run *run);   /* with a companion: back to what it began as, without moments */
    int (*objective)(Objective **objective, Run *run, int capacity); /* run->state says where the run is */
    StagePlan plan;                                                  /* of memory; may be NULL */
    void (*sample)(Run *run, int64_t step); /* on rank 0; a sample that cannot be made is a warning */
    void (*free)(Run *run);                 /* of what it keeps in `own`; may be NULL */
} Stage;

/* Everything a run is made of; {0} with its stage is freed safely. */
struct Run {
    const Stage *stage;
    void *own; /* the stage's */
    Config *config;
    Mesh *mesh;
    int lock; /* of the output folder, on rank 0 */
    Watchdog *watchdog;
    Arena arena;
    Text resolved;
    Tokenizer *tokenizer;
    Loader *loader; /* NULL where the stage has data of its own: then what follows is used */
    LoopBatches batches;
    uint64_t data_fingerprint;
    int64_t steps_per_epoch, whole_steps; /* whole_steps: as LoopOptions has it */
    ModelFile base;                       /* where model.base was given */
    Llama *model;
    int vocabulary; /* tokens of the model that is trained, as planned: its template may need more than the base has */
    float *first_head; /* a score head's values before training, in the arena; NULL where there is none */
    Lora *lora;        /* trained in the model's place; NULL: none */
    Trained trained;
    Optimizer *optimizer;
    const Companion *companion; /* set by the stage's `ready`, which owns it; NULL: none */
    Objective *objective;
    MetricsWriter *metrics;
    Loop *loop;
    RunFiles files;
    LoopState state;
    const char *chat_template; /* saved with the model, in the base's place; NULL: the base's */
    int32_t stop_tokens[2];    /* that end an answer, besides the base's */
    size_t n_stop_tokens;
    bool stops_masked; /* none is learned here, so none needs to be learnable */
};

extern const Stage stage_pretrain, stage_sft, stage_dpo, stage_reward;

/* Fills in what the stage resolves, and checks what can be without its files. */
int run_check_config(const Stage *stage, Config *config);

/* The whole of a command: arguments, the run, its end. Returns the exit status. */
int run_command(const Stage *stage, int argc, char **argv);

#endif
