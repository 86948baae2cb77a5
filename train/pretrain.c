/* cria pretrain: a Llama from text. */
#include "model/shape.h"
#include "train/commands.h"
#include "train/run.h"
#include "train/sample.h"

static void about(Text *out) {
    text_puts(out, "Trains a Llama from text. The same command on the same output resumes.\nPresets:");
    for (size_t p = 0; p < llama_preset_count(); p++) text_printf(out, "%s %s", p ? "," : "", llama_preset_name(p));
}

static void sample(Run *run, int64_t step) {
    sample_text(run->model, run->tokenizer, run->config, step);
}

static int objective(Objective **out, Run *run, int capacity) {
    (void)run;
    return nll_objective_new(out, capacity);
}

const Stage stage_pretrain = {.name = "pretrain",
                              .about = about,
                              .sections = "output seed precision model tokenizer data optim train parallel",
                              .objective = objective,
                              .sample = sample};

int command_pretrain(int argc, char **argv) {
    return run_command(&stage_pretrain, argc, argv);
}
