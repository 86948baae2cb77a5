/* The memory a training run will need, part by part, before anything large is allocated. What is counted is what will
 * be resident: anonymous and shared pages, and the code of the program and its libraries. Other mapped files (a frozen
 * model in 16 bits, a token cache), which the system can take back, are not.
 *
 * Three moments are the largest: making a token cache and computing another reference's log-probabilities (parameters
 * are there, gradients and activations not yet), and a checkpoint or sample in the midst of training. The plan is the
 * largest of them. */
#ifndef CRIA_TRAIN_PLAN_H
#define CRIA_TRAIN_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "configs/config.h"
#include "data/tokenizer/tokenizer.h"
#include "model/llama.h"
#include "train/files/model_file.h"
#include "train/probe.h"

typedef enum {
    PLAN_BASELINE,    /* the process and its libraries, probed */
    PLAN_PROGRAM,     /* their code, of which more is used in training than in planning */
    PLAN_TOKENIZER,   /* measured where it can be opened */
    PLAN_PARAMETERS,  /* fp32; with bf16 their two packings too; of a frozen base what is not mapped, quantised
                         with its embedding and head */
    PLAN_GRADIENTS,   /* a tied embedding sums the rows of a step apart */
    PLAN_MOMENTS,     /* AdamW's two */
    PLAN_ACTIVATIONS, /* the tapes' arena, scratch included */
    PLAN_TABLES,      /* rotary tables and names */
    PLAN_ORDER,       /* of documents: split and epochs' plans */
    PLAN_BATCH,       /* the arrays of one step */
    PLAN_EXCHANGE,    /* between ranks */
    PLAN_SAVING,      /* a checkpoint being written, or a sample being generated: the larger */
    PLAN_PARTS
} PlanPart;

typedef struct {
    LlamaShape shape;
    bool mapped;                    /* the base stays in its mapped file */
    uint64_t trained, adapter;      /* parameters; adapter: those of them that are an adapter's */
    bool vocabulary;                /* is trained beside the adapter */
    int64_t sample_tokens;          /* of the longest sample answer with its prompt */
    int saved_arrays;               /* of a checkpoint's model.h5 */
    int ranks, ranks_here, threads; /* ranks_here: that share this machine's memory */
    Recompute recompute;            /* as configured */
    int64_t microbatch;             /* tokens of the largest one */
    uint64_t bytes[PLAN_PARTS];     /* of one rank, the one with most; activations as configured */
    uint64_t weights[PLAN_PARTS];   /* of them, what the model and its adapter take whatever the micro-batch */
    uint64_t activations[RECOMPUTE_KINDS];
    Dtype precision;
    Frozen frozen;                           /* the model under an adapter */
    bool packed;                             /* the bf16 packings are kept */
    double step_flops;                       /* forward and backward of one rank's part of a step */
    double update_bytes;                     /* AdamW reads and writes */
    double recompute_flops[RECOMPUTE_KINDS]; /* what backward computes again */
    double recompute_bytes[RECOMPUTE_KINDS]; /* what norms and SwiGLUs that are computed again read and write */
    double step_seconds[RECOMPUTE_KINDS];    /* by plan_predict; 0: not measured */
    uint64_t tokenising;                     /* the whole need of that moment; 0 where no cache is to be made */
    uint64_t referring;                      /* likewise of another reference's log-probabilities; 0: none */
    uint64_t training;                       /* the whole need of the other */
    uint64_t total;                          /* the largest */
    uint64_t available; /* for one rank here: train.memory_limit, or the machine's part of it; 0: not known */
    bool fits;
    int64_t documents, tokens; /* of the data; 0 where it is absent */
    char advice[512];          /* where it does not fit: what would; else "" */
    Text notes;                /* what was estimated and how, a line each */
} MemoryPlan;

/* Adds to the plan what a stage holds besides what every run does. The model may have names only. */
typedef int (*StagePlan)(MemoryPlan *plan, Llama *model, const Config *config, const Tokenizer *tokenizer);

typedef struct {
    ModelHead head;  /* of the model: HEAD_TOKENS, HEAD_TO_SCORE */
    StagePlan stage; /* NULL: nothing of its own */
    int ranks, ranks_here;
} MemoryPlanOptions;

/* Plans a run of `config`: pretraining, or fine-tuning where template.name is set, of an adapter where lora.rank is;
 * for `ranks` ranks of which `ranks_here` run on this machine. Opens the tokenizer and looks at the data where they are
 * there, and closes them again; resolves the model's shape into the config. */
int memory_plan(MemoryPlan *plan, Config *config, MemoryPlanOptions options);
void memory_plan_free(MemoryPlan *plan);

const char *plan_part_name(PlanPart part);
uint64_t plan_total_with(const MemoryPlan *plan, Recompute recompute); /* as plan->total, had it been configured so */

/* How long a step takes where every product is as fast as a large one on this machine, and every pass over memory as a
 * copy: a real step takes a little longer. */
void plan_predict(MemoryPlan *plan, const MachineSpeed *machine);

/* "none", "norms", "layer" */
const char *plan_recompute_name(int recompute);

/* ERR_REFUSED where the plan does not fit, saying what would. */
int memory_plan_check(const MemoryPlan *plan);

#endif
