/* cria plan: the memory of a run before it starts. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/mesh.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/threads.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/plan.h"
#include "train/ppo/plan.h"
#include "train/setup.h"

typedef struct {
    int64_t ranks, here;
    bool json, measure, reward;
} Arguments;

/* ---- printing ---- */

static const char *const explanations[PLAN_PARTS] = {
    [PLAN_BASELINE] = "the program and its libraries, probed",
    [PLAN_PROGRAM] = "their code",
    [PLAN_TOKENIZER] = "measured",
    [PLAN_PARAMETERS] = "fp32",
    [PLAN_GRADIENTS] = "fp32; of a tied embedding the rows of a step's tokens besides",
    [PLAN_MOMENTS] = "AdamW's two",
    [PLAN_ACTIVATIONS] = "values, gradients and scratch of one micro-batch",
    [PLAN_TABLES] = "rotary tables, names",
    [PLAN_ORDER] = "which document comes when",
    [PLAN_BATCH] = "tokens of one step",
    [PLAN_EXCHANGE] = "between ranks",
    [PLAN_SAVING] = "while a checkpoint is written or a sample is generated",
};

static const char *parameters_note(const MemoryPlan *plan) {
    static const char *const frozen[FROZEN_KINDS] = {
        [FROZEN_16BIT] = "the model's matrices in 16 bits, where they are not mapped, and the adapter",
        [FROZEN_INT8] = "the model in int8, embedding and head in 16 bits, and the adapter",
        [FROZEN_NF4] = "the model in NF4, embedding and head in 16 bits, and the adapter"};
    if (plan->vocabulary) return "the model, its embedding and head in fp32 since they are trained, and the adapter";
    if (plan->frozen != FROZEN_NONE) return frozen[plan->frozen];
    return plan->packed ? "fp32, and twice packed in bf16" : explanations[PLAN_PARAMETERS];
}

static void print_row(const char *name, const uint64_t bytes[RECOMPUTE_KINDS], const char *note) {
    char text[32];
    printf("  %-12s", name);
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++) printf(" %13s", text_bytes(text, bytes[kind]));
    printf("   %s\n", note);
}

static void print_same(const char *name, uint64_t bytes, const char *note) {
    print_row(name, (const uint64_t[RECOMPUTE_KINDS]){bytes, bytes, bytes}, note);
}

/* What recomputation costs: work, and where the machine was measured, time. */
static void print_costs(const MemoryPlan *plan) {
    char text[32];
    printf("  %-12s", "more FLOPs");
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++)
        printf(" %11.1f %%", 100 * plan->recompute_flops[kind] / plan->step_flops);
    printf("   of a step's %.3g\n  %-12s", plan->step_flops, "more traffic");
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++)
        printf(" %13s", text_bytes(text, (uint64_t)plan->recompute_bytes[kind]));
    printf("   a step, of norms and SwiGLU\n");
    if (plan->step_seconds[RECOMPUTE_NONE] <= 0) return;
    printf("  %-12s", "a step");
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++) printf(" %11.3g s", plan->step_seconds[kind]);
    printf("   at this machine's measured speed\n  %-12s", "more time");
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++)
        printf(" %11.1f %%", 100 * (plan->step_seconds[kind] / plan->step_seconds[RECOMPUTE_NONE] - 1));
    printf("\n");
}

static void print_verdict(const MemoryPlan *plan) {
    char total[32], available[32];
    const char *several = plan->ranks_here > 1 ? " a rank" : "";
    if (plan->available == 0)
        printf("\nWhat this machine has available is not known.\n");
    else if (plan->fits)
        printf("\nfits: %s of the %s available%s\n", text_bytes(total, plan->total),
               text_bytes(available, plan->available), several);
    else
        printf("\ndoes not fit: %s, and %s is available%s\n%s\n", text_bytes(total, plan->total),
               text_bytes(available, plan->available), several, plan->advice);
}

static void print_plan(const MemoryPlan *plan) {
    const LlamaShape *shape = &plan->shape;
    char number[32], tokens[32], configured[64];
    uint64_t totals[RECOMPUTE_KINDS];
    printf("model: %s parameters, %d layers, width %d, vocabulary %d%s\n",
           text_thousands(number, llama_parameters(shape)), shape->n_layers, shape->dim, shape->vocab_size,
           shape->tied ? ", tied head" : "");
    printf("run:   %d rank%s (%d on this machine), %d threads, micro-batches of %s tokens, train.recompute: %s\n\n",
           plan->ranks, plan->ranks == 1 ? "" : "s", plan->ranks_here, plan->threads,
           text_thousands(tokens, (uint64_t)plan->microbatch), plan_recompute_name(plan->recompute));
    printf("  %-12s %13s %13s %13s\n",
           plan->ranks > 1 ? "each rank" : "recompute:", plan_recompute_name(RECOMPUTE_NONE),
           plan_recompute_name(RECOMPUTE_NORMS), plan_recompute_name(RECOMPUTE_LAYER));
    for (int part = 0; part < PLAN_PARTS; part++) {
        if (part == PLAN_ACTIVATIONS)
            print_row(plan_part_name((PlanPart)part), plan->activations, explanations[part]);
        else if (plan->bytes[part] > 0)
            print_same(plan_part_name((PlanPart)part), plan->bytes[part],
                       part == PLAN_PARAMETERS ? parameters_note(plan) : explanations[part]);
    }
    if (plan->tokenising > 0)
        print_same("(tokenising)", plan->tokenising, "the whole need while the cache is made, before training");
    if (plan->referring > 0)
        print_same("(reference)", plan->referring,
                   "the whole need while the reference's log-probabilities are computed");
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++) totals[kind] = plan_total_with(plan, kind);
    snprintf(configured, sizeof configured, "(%s is configured)", plan_recompute_name(plan->recompute));
    print_row("total", totals, configured);
    printf("\n");
    print_costs(plan);
    print_verdict(plan);
    if (plan->notes.length) printf("\n%s", plan->notes.bytes);
}

static json_t *byte_object(const MemoryPlan *plan) {
    json_t *parts = json_object();
    for (int part = 0; part < PLAN_PARTS; part++) {
        char key[32];
        snprintf(key, sizeof key, "%s", plan_part_name((PlanPart)part));
        for (char *at = key; *at; at++)
            if (*at == ' ') *at = '_';
        json_object_set_new(parts, key, json_integer((json_int_t)plan->bytes[part]));
    }
    return parts;
}

/* {"none": …, "norms": …, "layer": …} */
static json_t *by_recompute(const double values[RECOMPUTE_KINDS]) {
    json_t *object = json_object();
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++)
        json_object_set_new(object, plan_recompute_name(kind), json_real(values[kind]));
    return object;
}

static json_t *totals_object(const MemoryPlan *plan) {
    json_t *object = json_object();
    for (int kind = 0; kind < RECOMPUTE_KINDS; kind++)
        json_object_set_new(object, plan_recompute_name(kind), json_integer((json_int_t)plan_total_with(plan, kind)));
    return object;
}

static int print_json(const MemoryPlan *plan) {
    json_t *root = json_pack(
        "{s:I, s:i, s:i, s:i, s:I, s:s, s:s, s:o, s:o, s:I, s:I, s:I, s:b, s:s, s:s}", "parameters",
        (json_int_t)llama_parameters(&plan->shape), "ranks", plan->ranks, "ranks_here", plan->ranks_here, "threads",
        plan->threads, "tokens_per_microbatch", (json_int_t)plan->microbatch, "precision",
        plan->precision == DTYPE_BF16 ? "bf16" : "fp32", "recompute", plan_recompute_name(plan->recompute), "bytes",
        byte_object(plan), "total_bytes_with", totals_object(plan), "tokenising_bytes", (json_int_t)plan->tokenising,
        "total_bytes", (json_int_t)plan->total, "available_bytes", (json_int_t)plan->available, "fits", plan->fits,
        "advice", plan->advice, "notes", plan->notes.bytes ? plan->notes.bytes : "");
    if (!root) FAIL(ERR_FAILED, "out of memory");
    json_object_set_new(root, "step_flops", json_real(plan->step_flops));
    json_object_set_new(root, "recompute_flops_with", by_recompute(plan->recompute_flops));
    json_object_set_new(root, "recompute_bytes_with", by_recompute(plan->recompute_bytes));
    if (plan->step_seconds[RECOMPUTE_NONE] > 0)
        json_object_set_new(root, "step_seconds_with", by_recompute(plan->step_seconds));
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(root);
    return OK;
}

/* ---- the command ---- */

/* "ranks=4" is what a user writes beside keys of the config; it is a flag. The strings are malloc'd: [argc + 1]. */
static int spell_flags(char ***out, int argc, char **argv) {
    char **copy = calloc((size_t)argc + 1, sizeof *copy);
    if (!copy) FAIL(ERR_FAILED, "out of memory");
    *out = copy;
    for (int i = 0; i < argc; i++) {
        bool flag = strncmp(argv[i], "ranks=", 6) == 0;
        if (asprintf(&copy[i], "%s%s", flag ? "--" : "", argv[i]) < 0) {
            copy[i] = NULL;
            FAIL(ERR_FAILED, "out of memory");
        }
    }
    return OK;
}

static void strings_free(char **strings) {
    for (size_t i = 0; strings && strings[i]; i++) free(strings[i]);
    free(strings);
}

static void measure(MemoryPlan *plan) {
    MachineSpeed machine = probe_machine(plan->precision == DTYPE_BF16);
    plan_predict(plan, &machine);
}

static int plan(const Arguments *arguments, Config *config, const Mesh *mesh) {
    MemoryPlan made;
    int ranks = mesh_size(mesh), here = mesh_ranks_here(mesh);
    if (arguments->ranks > 0) ranks = here = (int)arguments->ranks;
    if (arguments->ranks == 0 && ranks == 1 && config->parallel_data > 1) ranks = here = (int)config->parallel_data;
    if (arguments->here > 0) here = (int)arguments->here;
    if (here > ranks) FAIL(ERR_USAGE, "--here is %d, and there are %d ranks", here, ranks);
    bool ppo = ppo_is_planned(config);
    if (ppo) ppo_settle(config);
    int rc = memory_plan(&made, config,
                         (MemoryPlanOptions){.head = arguments->reward ? HEAD_TO_SCORE : HEAD_TOKENS,
                                             .stage = ppo ? ppo_plan : NULL,
                                             .ranks = ranks,
                                             .ranks_here = here});
    if (rc == OK && mesh_rank(mesh) == 0) {
        if (arguments->measure) measure(&made);
        if (arguments->json)
            rc = print_json(&made);
        else
            print_plan(&made);
    }
    memory_plan_free(&made);
    return rc;
}

int command_plan(int argc, char **argv) {
    int rc = OK;
    Arguments arguments = {.json = false};
    Config *config = NULL;
    Mesh *mesh = NULL;
    CliResult cli;
    char **spelled = NULL, **spelled_argv;
    const Flag flags[] = {
        {"ranks", 0, FLAG_INT, &arguments.ranks, "N", ">= 1 <= 1048576", "so many ranks; also written ranks=N"},
        {"here", 0, FLAG_INT, &arguments.here, "N", ">= 1 <= 1048576", "of them on this machine (default: all)"},
        {"measure", 0, FLAG_SWITCH, &arguments.measure, "", "", "measure this machine, and say how long a step takes"},
        {"reward", 0, FLAG_SWITCH, &arguments.reward, "", "", "plan what cria reward does: a score head"},
        {"json", 0, FLAG_SWITCH, &arguments.json, "", "", "print one JSON object"},
    };
    TRY_TO(done, config_new(&config));
    TRY_TO(done, spell_flags(&spelled, argc, argv));
    spelled_argv = calloc((size_t)argc + 1, sizeof *spelled_argv); /* which parsing rearranges */
    if (!spelled_argv) FAIL_TO(done, ERR_FAILED, "out of memory");
    memcpy(spelled_argv, spelled, (size_t)argc * sizeof *spelled_argv);
    CliSpec spec = {.usage = "[CONFIG.yaml] [key=value ...] [ranks=N] [--measure] [--json]",
                    .about = "Says what memory a training run will need, part by part, and whether it fits, and what\n"
                             "recomputation saves and costs; --measure says how long a step takes here. Nothing\n"
                             "large is allocated and nothing is written. Data and tokenizer are looked at where they\n"
                             "are there. Under mpirun the ranks are counted and MPI's own memory is measured.",
                    .flags = flags,
                    .n_flags = sizeof flags / sizeof *flags,
                    .min_words = 0,
                    .max_words = 1,
                    .config = config,
                    .config_file = true,
                    .sections =
                        "output seed precision model tokenizer data template lora sft preferences dpo optim train "
                        "generate parallel"};
    rc = cli_parse(&cli, &spec, argc, spelled_argv);
    if (rc == OK && !cli.helped) rc = config_check(config);
    setup_resolve_precision(config);
    if (rc == OK && !cli.helped) rc = mesh_init(&mesh, &argc, &argv);
    if (rc == OK && !cli.helped) {
        threads_init(config->train_threads > 0 ? (int)config->train_threads : mesh_default_threads(mesh));
        rc = mesh_agree(mesh, plan(&arguments, config, mesh));
    }
    free(spelled_argv);
done:
    strings_free(spelled);
    config_free(config);
    if (mesh) mesh_finalize(mesh);
    return rc;
}
