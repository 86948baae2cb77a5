/* See plan.h. plan_parts.c has the parts; here are the shape they follow from, their sum, and what would fit. */
#include "train/plan.h"

#include <malloc.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/memory.h"
#include "model/core/threads.h"
#include "model/shape_hf.h"
#include "train/chat_sample.h"
#include "train/files/model_file.h"
#include "train/files/model_template.h"
#include "train/objectives/reference.h"
#include "train/other_model.h"
#include "train/plan_parts.h"
#include "train/probe.h"
#include "train/setup.h"

enum {
    USUAL_VOCABULARY = 32000, /* where neither the config nor a tokenizer says */
    PROGRAM_MORE = 6 << 20,   /* code that planning has not touched */
    ADVISED_RANK = 16,        /* of an adapter in the model's place */
    MPI_OWN = 4 << 20,        /* touched by two ranks of Open MPI 4.1 on one machine, where it does not run yet */
};

static const char *const part_names[PLAN_PARTS] = {
    [PLAN_BASELINE] = "process",        [PLAN_PROGRAM] = "program",
    [PLAN_TOKENIZER] = "tokenizer",     [PLAN_PARAMETERS] = "parameters",
    [PLAN_GRADIENTS] = "gradients",     [PLAN_MOMENTS] = "moments",
    [PLAN_ACTIVATIONS] = "activations", [PLAN_TABLES] = "tables",
    [PLAN_ORDER] = "data order",        [PLAN_BATCH] = "batch",
    [PLAN_EXCHANGE] = "exchange",       [PLAN_SAVING] = "saving",
};

const char *plan_part_name(PlanPart part) {
    return part_names[part];
}

void memory_plan_free(MemoryPlan *plan) {
    text_free(&plan->notes);
}

/* What the process holds once freed memory has gone back, as a run gives it back before it trains. */
static uint64_t resident_now(void) {
    malloc_trim(0);
    MemoryUse use = memory_use();
    return use.anonymous + use.shared;
}

static const char *const recompute_names[RECOMPUTE_KINDS] = {"none", "norms", "layer"};

const char *plan_recompute_name(int recompute) {
    return recompute_names[recompute];
}

/* ---- shape and tokenizer ---- */

/* What a chat template brings to fine-tuning: rows for tokens of its own, samples of a known length. */
static int plan_chat(MemoryPlan *plan, const Config *config, const ModelFile *file, const Tokenizer *tokenizer) {
    ModelTemplate chat = {0};
    Tokenizer *extended = NULL;
    if (!*config->template_name || !tokenizer) return OK;
    int rc = model_template_choose(&chat, config, file->chat_template, config->model_base, tokenizer);
    if (rc == OK) rc = model_template_extend(&chat, config, tokenizer, &extended);
    if (extended && tokenizer_vocab_size(extended) > plan->shape.vocab_size)
        plan->shape.vocab_size = tokenizer_vocab_size(extended);
    if (rc == OK) rc = model_template_open(&chat, extended ? extended : tokenizer);
    if (rc == OK) rc = chat_sample_length(&plan->sample_tokens, chat.chat, config);
    model_template_free(&chat);
    tokenizer_free(extended);
    return rc;
}

/* A template's tokens may be added to a base, not those of another model's tokenizer. */
static int check_tokenizer(const Config *config, const Tokenizer *tokenizer, int rows) {
    if (tokenizer && tokenizer_vocab_size(tokenizer) > rows)
        return config_fail(config, OPTION_tokenizer_path,
                           "%s has %d tokens, and %s knows %d: it is another model's tokenizer", config->tokenizer_path,
                           tokenizer_vocab_size(tokenizer), config->model_base, rows);
    return OK;
}

/* The shape of model.base, without its parameters. */
static int shape_of_base(MemoryPlan *plan, Tokenizer **tokenizer, const Config *config, ModelHead head) {
    bool own = !*config->tokenizer_path || strcmp(config->tokenizer_path, "from-model") == 0;
    bool adapted = config->lora_rank > 0;
    HfLabels labels;
    ModelFile file;
    TRY(setup_labels(&labels, config));
    TRY(model_file_open(&file, config->model_base,
                        (ModelFileOptions){.head = head,
                                           .labels = labels.n > 0 ? &labels : NULL,
                                           .shape_only = !adapted,
                                           .keep_open = adapted,
                                           .whole = adapted,
                                           .tokenizer = own ? NULL : config->tokenizer_path}));
    plan->shape = llama_shape_from_hf(&file.config);
    plan->mapped = setup_frozen(config) == FROZEN_16BIT && model_file_is_mapped(file.arrays);
    *tokenizer = file.tokenizer;
    file.tokenizer = NULL;
    int rc = own ? OK : check_tokenizer(config, *tokenizer, plan->shape.vocab_size);
    if (rc == OK) rc = plan_chat(plan, config, &file, *tokenizer);
    model_file_close(&file);
    TRY(rc);
    return llama_shape_check(&plan->shape);
}

/* *tokenizer is NULL where it cannot be opened: its vocabulary is then taken from the config, or guessed. */
static int find_shape(MemoryPlan *plan, Config *config, ModelHead head, Tokenizer **tokenizer) {
    *tokenizer = NULL;
    if (*config->model_base) return shape_of_base(plan, tokenizer, config, head);
    if (*config->tokenizer_path && tokenizer_load(tokenizer, config->tokenizer_path) != OK) {
        text_printf(&plan->notes, "the tokenizer is not there yet (%s)\n", error_text());
        error_clear();
    }
    bool guess = !*tokenizer && config->model_vocab_size == 0 && !*config->model_preset;
    if (guess) {
        config->model_vocab_size = USUAL_VOCABULARY;
        text_printf(&plan->notes, "a vocabulary of %d tokens was assumed; model.vocab_size says otherwise\n",
                    USUAL_VOCABULARY);
    }
    int rc = setup_shape(&plan->shape, config, *tokenizer);
    if (guess) config->model_vocab_size = 0;
    return rc;
}

/* ---- the sum ---- */

static uint64_t training_total(const MemoryPlan *plan, uint64_t activations) {
    uint64_t sum = activations;
    for (int part = 0; part < PLAN_PARTS; part++)
        if (part != PLAN_ACTIVATIONS) sum += plan->bytes[part];
    return sum;
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

uint64_t plan_total_with(const MemoryPlan *plan, Recompute recompute) {
    return larger(training_total(plan, plan->activations[recompute]), larger(plan->tokenising, plan->referring));
}

/* Another model beside the policy, before anything of training is touched. */
static int referring_pass(uint64_t *bytes, Llama *model, void *context) {
    const MemoryPlan *plan = context;
    return reference_pass_bytes(bytes, model, (int)plan->microbatch, plan->precision);
}

static int reference_part(MemoryPlan *plan, const Config *config) {
    if (!*config->dpo_reference) return OK;
    return other_model_bytes(&plan->referring, plan, config->dpo_reference,
                             (ModelFileOptions){.precision = setup_precision(config)}, referring_pass, plan);
}

/* What is there before gradients, moments and activations are touched. */
static uint64_t early_total(const MemoryPlan *plan) {
    return plan->bytes[PLAN_BASELINE] + plan->bytes[PLAN_PROGRAM] + plan->bytes[PLAN_TOKENIZER] +
           plan->bytes[PLAN_PARAMETERS] + plan->bytes[PLAN_TABLES] + plan->bytes[PLAN_EXCHANGE];
}

static void add_up(MemoryPlan *plan) {
    if (plan->tokenising > 0) plan->tokenising += early_total(plan);
    if (plan->referring > 0) plan->referring += early_total(plan) + plan->bytes[PLAN_ORDER] + plan->bytes[PLAN_BATCH];
    plan->training = training_total(plan, plan->activations[plan->recompute]);
    plan->total = larger(plan->training, larger(plan->tokenising, plan->referring));
    plan->fits = plan->available == 0 || plan->total <= plan->available;
}

/* What the machine leaves for one of the ranks here, when this process's own pages are counted as taken. */
static uint64_t find_available(const Config *config, int ranks_here) {
    if (config->train_memory_limit > 0) return (uint64_t)config->train_memory_limit;
    uint64_t available = memory_available();
    return available == 0 ? 0 : (available + resident_now()) / (uint64_t)ranks_here;
}

/* ---- what would fit ---- */

/* A way to keep the model, for the advice. */
typedef struct {
    const char *words; /* "" or "lora.base=nf4 " */
    int64_t rank;
    int base;
} Keeping;

/* As configured; then the model under the adapter in fewer bits; for fine-tuning of a whole model, adapters on it. */
static int keepings(Keeping list[4], const Config *config) {
    int n = 0;
    bool adapted = config->lora_rank > 0, tuned = *config->model_base && config->ppo_samples == 0;
    list[n++] = (Keeping){"", config->lora_rank, config->lora_base};
    if (adapted && setup_frozen(config) == FROZEN_NONE)
        list[n++] = (Keeping){"lora.base=16bit ", config->lora_rank, FROZEN_16BIT};
    if (adapted && setup_frozen(config) < FROZEN_INT8)
        list[n++] = (Keeping){"lora.base=int8 ", config->lora_rank, FROZEN_INT8};
    if (adapted && setup_frozen(config) < FROZEN_NF4)
        list[n++] = (Keeping){"lora.base=nf4 ", config->lora_rank, FROZEN_NF4};
    if (!adapted && tuned) {
        list[n++] = (Keeping){"lora.rank=16 lora.base=16bit ", ADVISED_RANK, FROZEN_16BIT};
        list[n++] = (Keeping){"lora.rank=16 lora.base=nf4 ", ADVISED_RANK, FROZEN_NF4};
    }
    return n;
}

/* Micro-batches halved down to the context, each without and with recomputation: the first that fits, in `advice`. */
static int advise_keeping(MemoryPlan *plan, const Config *config, Keeping keeping, uint64_t *least) {
    int rc = OK;
    char bytes[32];
    Llama *model;
    Lora *lora;
    MemoryPlan other = *plan;
    Config changed = *config;
    changed.lora_rank = keeping.rank;
    changed.lora_base = keeping.base;
    TRY(plan_model_names(&model, &lora, plan, &changed, 0));
    TRY_TO(done, plan_weights(&other, model, lora, &changed));
    uint64_t fixed = training_total(&other, 0);
    for (int64_t microbatch = plan->microbatch;; microbatch /= 2) {
        if (microbatch < config->train_context) microbatch = config->train_context;
        for (int kind = 0; kind < RECOMPUTE_KINDS; kind++) {
            uint64_t activations;
            TRY_TO(done, plan_activations(&activations, model, microbatch, (Recompute)kind, &changed));
            if (fixed + activations < *least) *least = fixed + activations;
            if (fixed + activations > plan->available) continue;
            char smaller[64] = "";
            if (microbatch < config->train_tokens_per_microbatch)
                snprintf(smaller, sizeof smaller, "train.tokens_per_microbatch=%lld ", (long long)microbatch);
            snprintf(plan->advice, sizeof plan->advice, "it fits with %s%strain.recompute=%s: %s", keeping.words,
                     smaller, recompute_names[kind], text_bytes(bytes, fixed + activations));
            goto done;
        }
        if (microbatch <= config->train_context) break;
    }
done:
    lora_free(lora);
    llama_free(model);
    return rc;
}

static int find_advice(MemoryPlan *plan, const Config *config) {
    char bytes[32];
    Keeping list[4];
    uint64_t least = UINT64_MAX;
    if (plan->tokenising > plan->available) {
        snprintf(
            plan->advice, sizeof plan->advice,
            "tokenising alone takes %s: a run of a smaller model with the same data.cache can make the cache first",
            text_bytes(bytes, plan->tokenising));
        return OK;
    }
    int n = keepings(list, config);
    for (int i = 0; i < n && !*plan->advice; i++) TRY(advise_keeping(plan, config, list[i], &least));
    if (*plan->advice) return OK;
    snprintf(plan->advice, sizeof plan->advice,
             "no micro-batch is small enough%s: the least is %s; take a smaller model%s or a shorter train.context",
             n > 1 ? ", even with lora.base=nf4 and train.recompute=layer" : "", text_bytes(bytes, least),
             plan->ranks_here > 1 ? ", fewer ranks on this machine" : "");
    return OK;
}

int memory_plan(MemoryPlan *plan, Config *config, MemoryPlanOptions options) {
    int rc = OK, ranks = options.ranks, ranks_here = options.ranks_here;
    Tokenizer *tokenizer = NULL;
    *plan = (MemoryPlan){.ranks = ranks, .ranks_here = ranks_here, .threads = threads_count()};
    plan->recompute = (Recompute)config->train_recompute;
    plan->precision = setup_precision(config);
    plan->microbatch = setup_microbatch(config, ranks);
    plan->frozen = setup_frozen(config);
    plan->vocabulary = setup_trains_vocabulary(config);
    plan->packed = plan->precision == DTYPE_BF16 && config->train_packed_weights;
    uint64_t before = resident_now();
    TRY_TO(done, find_shape(plan, config, options.head, &tokenizer));
    uint64_t after = resident_now();
    plan->bytes[PLAN_TOKENIZER] = after > before ? after - before : 0;
    plan->bytes[PLAN_EXCHANGE] = mesh_scratch_bytes(ranks);
    TRY_TO(done, plan_model(plan, config, tokenizer, options.stage));
    plan_step(plan, config);
    TRY_TO(done, plan_data(plan, config, tokenizer));
    tokenizer_free(tokenizer);
    tokenizer = NULL;
    malloc_trim(0);
    plan->bytes[PLAN_BASELINE] =
        probe_baseline(&plan->shape, (int)plan->microbatch, plan->precision, plan->frozen != FROZEN_NONE);
    plan->bytes[PLAN_PROGRAM] = memory_use().file + PROGRAM_MORE;
    if (ranks > 1 && !mesh_is_running()) {
        plan->bytes[PLAN_BASELINE] += MPI_OWN;
        text_printf(&plan->notes, "MPI's own memory is taken as %d MiB a rank; mpirun -n %d cria plan measures it\n",
                    MPI_OWN >> 20, ranks);
    }
    TRY_TO(done, reference_part(plan, config));
    plan->available = find_available(config, ranks_here);
    add_up(plan);
    if (!plan->fits) TRY_TO(done, find_advice(plan, config));
    TRY_TO(done, text_check(&plan->notes));
done:
    tokenizer_free(tokenizer);
    return rc;
}

int memory_plan_check(const MemoryPlan *plan) {
    char total[32], available[32];
    if (plan->fits) return OK;
    FAIL(ERR_REFUSED,
         "this run needs %s of memory%s and %s is there; %s ('cria plan' shows the parts; train.memory_limit sets "
         "another "
         "limit)",
         text_bytes(total, plan->total), plan->ranks > 1 ? " a rank" : "", text_bytes(available, plan->available),
         plan->advice);
}

void plan_predict(MemoryPlan *plan, const MachineSpeed *machine) {
    double product = machine->rate[plan->precision == DTYPE_BF16 ? MACHINE_BF16_PRODUCT : MACHINE_F32_PRODUCT];
    double copy = machine->rate[MACHINE_COPY];
    for (int kind = 0; kind < RECOMPUTE_KINDS && product > 0 && copy > 0; kind++)
        plan->step_seconds[kind] = (plan->step_flops + plan->recompute_flops[kind]) / product +
                                   (plan->update_bytes + plan->recompute_bytes[kind]) / copy;
}
