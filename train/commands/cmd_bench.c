/* cria bench: what this machine can do, and what share of it a training step reaches. The step is loop_step, the same
 * that cria pretrain repeats (micro-batches, forward, backward, gradient norm, clipping, AdamW); the tokens are random,
 * so no data is needed. */
#include <stdio.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/threads.h"
#include "model/kernels/kernels.h"
#include "train/commands/bench.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/setup.h"

typedef struct {
    BenchOptions options;
    const char *file; /* "": none */
    bool json, machine, serve;
} Arguments;

static int write_file(const BenchResult *result, const char *path) {
    FILE *file = fopen(path, "w");
    if (!file) FAIL(ERR_FAILED, "%s: cannot be written", path);
    int rc = bench_print_json(result, file);
    if (fclose(file) != 0 && rc == OK) FAIL(ERR_FAILED, "%s: cannot be written", path);
    return rc;
}

static int measure(const Arguments *arguments, Config *config) {
    int rc = OK;
    BenchResult result = {.ops = NULL};
    TRY_TO(done, bench_run(&result, config, &arguments->options));
    if (*arguments->file) TRY_TO(done, write_file(&result, arguments->file));
    if (arguments->json)
        rc = bench_print_json(&result, stdout);
    else
        bench_print(&result, stdout);
done:
    bench_free(&result);
    return rc;
}

static int measure_machine(bool json) {
    MachineSpeed machine = probe_machine(true);
    if (json) return machine_print_json(&machine, stdout);
    machine_print(&machine, stdout);
    return OK;
}

static int bench(const Arguments *arguments, Config *config) {
    if (arguments->machine && arguments->serve) FAIL(ERR_USAGE, "--machine and --serve are two different things");
    if (arguments->machine) return measure_machine(arguments->json);
    if (arguments->options.sampling > 0)
        return bench_sampling(config, &arguments->options, arguments->serve ? stdin : NULL, stdout);
    if (arguments->serve) return bench_serve(config, &arguments->options, stdin, stdout);
    return measure(arguments, config);
}

int command_bench(int argc, char **argv) {
    int rc = OK;
    Arguments arguments = {.options = {.warmup = 2, .steps = 5, .seconds = 5}, .file = ""};
    BenchOptions *options = &arguments.options;
    Config *config = NULL;
    CliResult cli;
    const Flag flags[] = {
        {"steps", 'n', FLAG_INT, &options->steps, "N", ">= 1 <= 1000000", "measured steps, at least (5)"},
        {"seconds", 0, FLAG_REAL, &options->seconds, "S", ">= 0", "go on for so long, at least (5)"},
        {"warmup", 0, FLAG_INT, &options->warmup, "N", ">= 1 <= 1000000", "steps before, not measured (2)"},
        {"frozen", 0, FLAG_SWITCH, &options->frozen, "", "",
         "matrices frozen as lora.base says (16bit), only norms' gains trained"},
        {"sampling", 0, FLAG_INT, &options->sampling, "B", ">= 1 <= 65536",
         "instead of training: tokens/s of B sequences sampled together, 128 tokens each, as JSON; from weights as "
         "generate.weights says, or from an adapter with lora.rank"},
        {"machine", 0, FLAG_SWITCH, &arguments.machine, "", "", "measure the machine alone, no model"},
        {"serve", 0, FLAG_SWITCH, &arguments.serve, "", "", "steps on request: lines 'STEPS SECONDS' on stdin"},
        {"json", 0, FLAG_SWITCH, &arguments.json, "", "", "print one JSON object"},
        {"output", 'o', FLAG_TEXT, &arguments.file, "FILE", "", "write the JSON object there too"},
    };
    TRY(config_new(&config));
    CliSpec spec = {.usage = "[CONFIG.yaml] [key=value ...] [flags]",
                    .about =
                        "Measures this machine (large products, their innermost loop with operands from the\n"
                        "second-level cache, memory), then training steps of the config's model on random\n"
                        "tokens: tokens/s, FLOP/s and share of each peak, time by operation, memory. A step is one\n"
                        "micro-batch where train.tokens_per_batch is not given. --frozen is the ground of\n"
                        "fine-tuning by adapters: forward and backward through matrices that are not trained;\n"
                        "lora.rank=16 adds the adapters.\n"
                        "No data is needed: cria bench model.preset=15m train.context=256\n"
                        "train.tokens_per_batch=2048 train.tokens_per_microbatch=2048.",
                    .flags = flags,
                    .n_flags = sizeof flags / sizeof *flags,
                    .min_words = 0,
                    .max_words = 1,
                    .config = config,
                    .config_file = true,
                    .sections = "seed precision model tokenizer data lora optim train generate"};
    TRY_TO(done, cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) goto done;
    TRY_TO(done, config_check(config));
    setup_resolve_precision(config);
    threads_init((int)config->train_threads);
    rc = bench(&arguments, config);
done:
    config_free(config);
    return rc;
}
