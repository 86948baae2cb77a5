/* What cria bench says: for people a table and bars, for scripts one JSON object. */
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "train/commands/bench.h"
#include "train/console/progress.h"

/* ---- for people ---- */

static const char *precision_name(Dtype precision) {
    return precision == DTYPE_BF16 ? "bf16" : "fp32";
}

static void print_bar(double share, FILE *out) {
    enum { WIDTH = 30 };
    bool unicode = terminal_is_utf8();
    int filled = (int)(share * WIDTH + 0.5);
    for (int i = 0; i < filled && i < WIDTH; i++) fputs(unicode ? "█" : "#", out);
    fprintf(out, "\n");
}

static void print_seconds(const char *name, double forward, double backward, double whole, FILE *out) {
    double sum = forward + backward;
    fprintf(out, "  %-14s %9.2f %9.2f %6.1f %%  ", name, 1e3 * forward, 1e3 * backward, 100 * sum / whole);
    print_bar(sum / whole, out);
}

static void print_times(const BenchResult *result, FILE *out) {
    double whole = result->profiled_seconds, named = result->profiled_update_seconds;
    fprintf(out, "\ntime of one step by operation, in ms (a profiled step: %.1f ms)\n  %-14s %9s %9s\n", 1e3 * whole,
            "", "forward", "backward");
    for (int i = 0; i < result->n_ops; i++) {
        const BenchOp *op = &result->ops[i];
        print_seconds(op->name, op->forward_seconds, op->backward_seconds, whole, out);
        named += op->forward_seconds + op->backward_seconds;
    }
    print_seconds("norm, AdamW", result->profiled_update_seconds, 0, whole, out);
    print_seconds("the rest", whole > named ? whole - named : 0, 0, whole, out);
}

static void print_rate(const char *name, const double *rates, int n, FILE *out) {
    fprintf(out, "  %-24s", name);
    for (int i = 0; i < n; i++) fprintf(out, " %9.1f", rates[i] * 1e-9);
}

void machine_print(const MachineSpeed *machine, FILE *out) {
    fprintf(out, "%s kernels, %d threads; GFLOP/s, GB/s\n", kernels()->name, threads_count());
    for (int rate = 0; rate < MACHINE_RATES; rate++) {
        if (machine->rate[rate] <= 0) continue;
        print_rate(machine_rate_name((MachineRate)rate), &machine->rate[rate], 1, out);
        fprintf(out, "\n");
    }
}

/* Before, between and after the steps; the step's share of the median. */
static void print_machine(const BenchResult *result, FILE *out) {
    fprintf(out, "\nthe machine, GFLOP/s and GB/s  %6s %9s %9s   the step's share\n", "before", "between", "after");
    for (int rate = 0; rate < MACHINE_RATES; rate++) {
        double rates[BENCH_SITTINGS], median = result->machine.rate[rate];
        for (int i = 0; i < BENCH_SITTINGS; i++) rates[i] = result->sittings[i].rate[rate];
        if (median <= 0) continue;
        print_rate(machine_rate_name((MachineRate)rate), rates, BENCH_SITTINGS, out);
        if (rate < MACHINE_READ) fprintf(out, " %8.1f %%", 100 * result->flops_per_second / median);
        fprintf(out, "\n");
    }
}

static void print_memory(const BenchResult *result, FILE *out) {
    char bytes[32], activations[32], excess[32], frozen[32];
    uint64_t beyond = result->excess_bytes > 0 ? (uint64_t)result->excess_bytes : 0;
    fprintf(out, "memory:   %s at most, %s of it activations; %s beyond %d bytes a trained parameter%s%s\n",
            text_bytes(bytes, result->turn.peak_memory_bytes), text_bytes(activations, result->activation_bytes),
            text_bytes(excess, beyond), BYTES_PER_TRAINED, result->model.frozen ? " and the frozen ones' " : "",
            result->model.frozen ? text_bytes(frozen, result->model.frozen_bytes) : "");
    if (result->turn.allocated_bytes == 0)
        fprintf(out, "          nothing was allocated after the first step\n");
    else
        fprintf(out, "          %" PRId64 " bytes were allocated after the first step\n", result->turn.allocated_bytes);
}

void bench_print(const BenchResult *result, FILE *out) {
    char number[32], frozen[32], rate[32], best[32];
    const BenchModel *model = &result->model;
    const BenchTurn *turn = &result->turn;
    double copy = result->machine.rate[MACHINE_COPY], adamw = result->adamw_bytes / result->adamw_seconds;
    fprintf(out, "model:    %s parameters", text_thousands(number, model->trained + model->frozen));
    if (model->frozen) fprintf(out, ", %s of them frozen", text_thousands(frozen, model->frozen));
    fprintf(out, "; %d micro-batch%s, %s tokens a step; %s, %s kernels, %d threads\n", model->micro_batches,
            model->micro_batches == 1 ? "" : "es", text_thousands(rate, (uint64_t)model->tokens_per_step),
            precision_name(model->precision), kernels()->name, threads_count());
    fprintf(out, "step:     %.2f ms median of %d, %.2f best; norm and AdamW %.2f ms\n", 1e3 * turn->median_seconds,
            turn->steps, 1e3 * turn->best_seconds, 1e3 * turn->update_seconds);
    fprintf(out, "speed:    %s tokens/s (best %s), %.1f GFLOP/s: %.1f %% of %s\n",
            text_thousands(rate, (uint64_t)result->tokens_per_second),
            text_thousands(best, (uint64_t)result->best_tokens_per_second), result->flops_per_second * 1e-9,
            100 * result->mfu,
            model->precision == DTYPE_BF16 ? "the bf16 peak with operands from L2" : "a large fp32 product");
    fprintf(out, "AdamW:    %.2f ms, %.1f bytes a trained parameter, %.1f GB/s: %.0f %% of what a copy moves\n",
            1e3 * result->adamw_seconds, result->adamw_bytes / (double)model->trained, adamw * 1e-9,
            copy > 0 ? 100 * adamw / copy : 0);
    fprintf(out, "attention: %.1f %% of the time, %.1f %% of the operations\n", 100 * result->attention_time_share,
            100 * model->attention_flops_share);
    print_memory(result, out);
    print_machine(result, out);
    print_times(result, out);
}

/* ---- for scripts ---- */

static json_t *machine_object(const MachineSpeed *machine) {
    json_t *object = json_object();
    for (int rate = 0; rate < MACHINE_RATES; rate++) {
        char key[64];
        snprintf(key, sizeof key, "%s_%s_per_second", machine_rate_key((MachineRate)rate),
                 rate < MACHINE_READ ? "flops" : "bytes");
        if (machine->rate[rate] > 0) json_object_set_new(object, key, json_real(machine->rate[rate]));
    }
    return object;
}

static json_t *ops_array(const BenchResult *result) {
    json_t *ops = json_array();
    for (int i = 0; i < result->n_ops; i++)
        json_array_append_new(ops, json_pack("{s:s, s:f, s:f}", "name", result->ops[i].name, "forward_seconds",
                                             result->ops[i].forward_seconds, "backward_seconds",
                                             result->ops[i].backward_seconds));
    return ops;
}

static json_t *sittings_array(const BenchResult *result) {
    json_t *sittings = json_array();
    for (int i = 0; i < BENCH_SITTINGS; i++) json_array_append_new(sittings, machine_object(&result->sittings[i]));
    return sittings;
}

/* The step's share of every peak. */
static json_t *shares_object(const BenchResult *result) {
    json_t *shares = json_object();
    for (int rate = 0; rate < MACHINE_READ; rate++)
        if (result->machine.rate[rate] > 0)
            json_object_set_new(shares, machine_rate_key((MachineRate)rate),
                                json_real(result->flops_per_second / result->machine.rate[rate]));
    return shares;
}

static json_t *speed_object(const BenchResult *result) {
    const BenchTurn *turn = &result->turn;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:i, s:f, s:f, s:f, s:f, s:f}", "tokens_per_second",
                     result->tokens_per_second, "tokens_per_second_best", result->best_tokens_per_second,
                     "flops_per_second", result->flops_per_second, "peak_flops", result->peak_flops, "mfu", result->mfu,
                     "steps", turn->steps, "step_seconds", turn->median_seconds, "step_seconds_best",
                     turn->best_seconds, "update_seconds", turn->update_seconds, "copy_bytes_per_second",
                     result->machine.rate[MACHINE_COPY], "loss", turn->loss);
}

static json_t *model_object(const BenchResult *result) {
    const BenchModel *model = &result->model;
    uint64_t parameters = model->trained + model->frozen;
    return json_pack("{s:I, s:I, s:I, s:I, s:i, s:s, s:s, s:i, s:f, s:f, s:f}", "parameters", (json_int_t)parameters,
                     "trained_parameters", (json_int_t)model->trained, "frozen_parameters", (json_int_t)model->frozen,
                     "tokens_per_step", (json_int_t)model->tokens_per_step, "micro_batches", model->micro_batches,
                     "precision", precision_name(model->precision), "kernels", kernels()->name, "threads",
                     threads_count(), "flops_per_token", model->flops_per_token, "attention_flops_share",
                     model->attention_flops_share, "attention_time_share", result->attention_time_share);
}

static json_t *memory_object(const BenchResult *result) {
    return json_pack("{s:I, s:I, s:I, s:I}", "peak_memory_bytes", (json_int_t)result->turn.peak_memory_bytes,
                     "excess_bytes", (json_int_t)result->excess_bytes, "activation_bytes",
                     (json_int_t)result->activation_bytes, "allocated_bytes", (json_int_t)result->turn.allocated_bytes);
}

static json_t *adamw_object(const BenchResult *result) {
    return json_pack("{s:f, s:f, s:f}", "seconds", result->adamw_seconds, "bytes_per_parameter",
                     result->adamw_bytes / (double)result->model.trained, "bytes_per_second",
                     result->adamw_bytes / result->adamw_seconds);
}

static int dump(json_t *root, FILE *out) {
    if (!root) FAIL(ERR_FAILED, "out of memory");
    int failed = json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) != 0 || fputs("\n", out) < 0;
    json_decref(root);
    if (failed) FAIL(ERR_FAILED, "the JSON object could not be written");
    return OK;
}

int machine_print_json(const MachineSpeed *machine, FILE *out) {
    json_t *root = machine_object(machine);
    json_object_set_new(root, "kernels", json_string(kernels()->name));
    json_object_set_new(root, "threads", json_integer(threads_count()));
    return dump(root, out);
}

int bench_print_json(const BenchResult *result, FILE *out) {
    json_t *root = speed_object(result);
    json_object_update_new(root, model_object(result));
    json_object_update_new(root, memory_object(result));
    json_object_set_new(root, "adamw", adamw_object(result));
    json_object_set_new(root, "machine", machine_object(&result->machine));
    json_object_set_new(root, "sittings", sittings_array(result));
    json_object_set_new(root, "shares", shares_object(result));
    json_object_set_new(root, "ops", ops_array(result));
    return dump(root, out);
}
