/* See command.h. */
#include "train/rounds/command.h"

#include <string.h>

#include "train/ppo/stage.h"
#include "train/sampling/rejection.h"

/* eval measures the policy by rejection.*, and its divergence from dpo.reference. */
#define EVAL_SECTIONS "output model template generate rejection dpo"

/* The sections of those that train are their Stage's own. */
static const StageCommand commands[] = {
    {.name = "sft", .training = &stage_sft, .idle = "generate", .makes = MAKES_POLICY, .resumes = true},
    {.name = "reward", .training = &stage_reward, .idle = "", .makes = MAKES_REWARD, .resumes = true},
    {.name = "rejection", .sections = REJECTION_SECTIONS, .idle = "", .makes = MAKES_RECORDS, .resumes = true},
    {.name = "dpo", .training = &stage_dpo, .idle = "generate", .makes = MAKES_POLICY, .resumes = true},
    {.name = "ppo", .training = &stage_ppo, .idle = "", .makes = MAKES_POLICY, .resumes = true},
    {.name = "merge", .sections = "", .idle = "", .makes = MAKES_POLICY},
    {.name = "eval", .sections = EVAL_SECTIONS, .idle = "", .makes = MAKES_FIGURES},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

const StageCommand *stage_command(const char *name) {
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

void stage_commands_list(Text *out) {
    for (size_t i = 0; i < N_COMMANDS; i++) text_printf(out, "%s%s", i ? ", " : "", commands[i].name);
}

const char *stage_sections(const StageCommand *command) {
    return command->training ? command->training->sections : command->sections;
}
