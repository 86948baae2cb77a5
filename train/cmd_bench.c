/* cria bench: what this machine can do, and what share of it a training step reaches. The step is loop_step, the same
 * that cria pretrain repeats (micro-batches, forward, backward, gradient norm, clipping, AdamW); the tokens are random,
 * so no data is needed. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "train/bench.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/progress.h"
#include "train/setup.h"

/* ---- printing ---- */

static void print_bar(double share) {
    enum { WIDTH = 30 };
    bool unicode = terminal_is_utf8();
    int filled = (int)(share * WIDTH + 0.5);
    for (int i = 0; i < filled && i < WIDTH; i++) fputs(unicode ? "█" : "#", stdout);
    printf("\n");
}

static void print_seconds(const char *name, double forward, double backward, double whole) {
    double sum = forward + backward;
    printf("  %-14s %9.2f %9.2f %6.1f %%  ", name, 1e3 * forward, 1e3 * backward, 100 * sum / whole);
    print_bar(sum / whole);
}

static void print_times(const BenchResult *result) {
    double whole = result->profiled_seconds, named = result->profiled_update_seconds;
    printf("\ntime of one step by operation, in ms (a profiled step: %.1f ms)\n  %-14s %9s %9s\n", 1e3 * whole, "",
           "forward", "backward");
    for (int i = 0; i < result->n_ops; i++) {
        const BenchOp *op = &result->ops[i];
        print_seconds(op->name, op->forward_seconds, op->backward_seconds, whole);
        named += op->forward_seconds + op->backward_seconds;
    }
    print_seconds("norm, AdamW", result->profiled_update_seconds, 0, whole);
    print_seconds("the rest", whole > named ? whole - named : 0, 0, whole);
}

static void print_result(const BenchResult *result) {
    char number[32], bytes[32], activations[32], rate[32], best[32];
    printf("model:    %s parameters; %d micro-batch%s, %s tokens a step; %s kernels, %d threads\n",
           text_thousands(number, result->parameters), result->micro_batches, result->micro_batches == 1 ? "" : "es",
           text_thousands(rate, (uint64_t)result->tokens_per_step), kernels()->name, threads_count());
    printf("machine:  %.1f GFLOP/s in a large fp32 product before, %.1f after; copies %.1f GB/s before, %.1f after\n",
           result->before.gemm_flops * 1e-9, result->after.gemm_flops * 1e-9, result->before.copy_bytes * 1e-9,
           result->after.copy_bytes * 1e-9);
    printf("step:     %.2f ms median of %d, %.2f best; AdamW and norm %.2f ms\n", 1e3 * result->median_seconds,
           result->steps, 1e3 * result->best_seconds, 1e3 * result->update_seconds);
    printf("speed:    %s tokens/s (best %s), %.1f GFLOP/s: %.1f %% of the measured peak\n",
           text_thousands(rate, (uint64_t)result->tokens_per_second),
           text_thousands(best, (uint64_t)result->best_tokens_per_second), result->flops_per_second * 1e-9,
           100 * result->mfu);
    printf("memory:   %s at most, %s of it activations; ", text_bytes(bytes, result->peak_memory_bytes),
           text_bytes(activations, result->activation_bytes));
    if (result->allocated_bytes == 0)
        printf("nothing was allocated after the first step\n");
    else
        printf("%" PRId64 " bytes were allocated after the first step\n", result->allocated_bytes);
    print_times(result);
}

static int print_json(const BenchResult *result) {
    json_t *ops = json_array();
    for (int i = 0; i < result->n_ops; i++)
        json_array_append_new(ops, json_pack("{s:s, s:f, s:f}", "name", result->ops[i].name, "forward_seconds",
                                             result->ops[i].forward_seconds, "backward_seconds",
                                             result->ops[i].backward_seconds));
    json_t *root = json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:i, s:i, s:f, s:f, s:f, s:f, s:i, s:s, s:I, s:f, s:o}",
        "tokens_per_second", result->tokens_per_second, "tokens_per_second_best", result->best_tokens_per_second,
        "flops_per_second", result->flops_per_second, "peak_flops", result->peak_flops, "mfu", result->mfu,
        "peak_memory_bytes", (json_int_t)result->peak_memory_bytes, "activation_bytes",
        (json_int_t)result->activation_bytes, "parameters", (json_int_t)result->parameters, "tokens_per_step",
        (json_int_t)result->tokens_per_step, "micro_batches", result->micro_batches, "steps", result->steps,
        "step_seconds", result->median_seconds, "step_seconds_best", result->best_seconds, "update_seconds",
        result->update_seconds, "copy_bytes_per_second",
        result->before.copy_bytes > result->after.copy_bytes ? result->before.copy_bytes : result->after.copy_bytes,
        "threads", threads_count(), "kernels", kernels()->name, "allocated_bytes", (json_int_t)result->allocated_bytes,
        "loss", result->loss, "ops", ops);
    if (!root) FAIL(ERR_FAILED, "out of memory");
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(root);
    return OK;
}

/* ---- the command ---- */

int command_bench(int argc, char **argv) {
    int rc = OK;
    BenchOptions options = {.warmup = 2, .steps = 5, .seconds = 5};
    bool json = false;
    Config *config = NULL;
    CliResult cli;
    BenchResult result = {0};
    const Flag flags[] = {
        {"steps", 'n', FLAG_INT, &options.steps, "N", ">= 1 <= 1000000", "measured steps, at least (5)"},
        {"seconds", 0, FLAG_REAL, &options.seconds, "S", ">= 0", "go on for so long, at least (5)"},
        {"warmup", 0, FLAG_INT, &options.warmup, "N", ">= 1 <= 1000000", "steps before, not measured (2)"},
        {"json", 0, FLAG_SWITCH, &json, "", "", "print one JSON object"},
    };
    TRY(config_new(&config));
    CliSpec spec = {.usage = "[CONFIG.yaml] [key=value ...] [flags]",
                    .about = "Measures this machine's peak (a large fp32 product; a copy), then training steps of the\n"
                             "config's model on random tokens: tokens/s, FLOP/s and share of the peak, time by\n"
                             "operation, memory. A step is one micro-batch where train.tokens_per_batch is not given.\n"
                             "No data is needed: cria bench model.preset=15m train.context=256\n"
                             "train.tokens_per_batch=2048 train.tokens_per_microbatch=2048.",
                    .flags = flags,
                    .n_flags = sizeof flags / sizeof *flags,
                    .min_words = 0,
                    .max_words = 1,
                    .config = config,
                    .config_file = true,
                    .sections = "seed precision model tokenizer data optim train"};
    TRY_TO(done, cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) goto done;
    TRY_TO(done, config_check(config));
    setup_resolve_precision(config);
    threads_init((int)config->train_threads);
    TRY_TO(done, bench_run(&result, config, &options));
    if (json)
        rc = print_json(&result);
    else
        print_result(&result);
done:
    bench_free(&result);
    config_free(config);
    return rc;
}
