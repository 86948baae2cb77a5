/* cria rounds: see train/rounds/rounds.h. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/threads.h"
#include "train/commands.h"
#include "train/console/cli.h"
#include "train/console/output_folder.h"
#include "train/rounds/record.h"

typedef struct {
    Rounds rounds;
    RoundState *states;
    bool plan;
    int lock;
} RoundsCommand;

/* MPI starts once in a process, and a stage is a process: ranks are started for each. */
static int check_alone(void) {
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        if (getenv(variables[i]))
            FAIL(ERR_USAGE, "cria rounds starts the ranks of each stage itself: run it without mpirun, and with "
                            "rounds.launcher=\"mpirun -n 4\"");
    return OK;
}

/* What the command line sets, for the saved config. */
static int note_arguments(Rounds *rounds) {
    for (int i = 0; i < OPTION_COUNT; i++) {
        OptionId id = (OptionId)i;
        Text value = {0};
        bool from_file = strncmp(config_where(rounds->config, id), rounds->path, strlen(rounds->path)) == 0;
        if (!config_is_set(rounds->config, id) || from_file) continue;
        if (config_value_text(rounds->config, id, &value) == OK)
            text_printf(&rounds->arguments, "# with %s=%s\n", option_table[id].key, value.bytes);
        text_free(&value);
    }
    return text_check(&rounds->arguments);
}

static int read_states(RoundsCommand *command) {
    const Rounds *rounds = &command->rounds;
    command->states = calloc(rounds->n_stages, sizeof *command->states);
    if (!command->states) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < rounds->n_stages; i++) TRY(record_read(&rounds->stages[i], &command->states[i]));
    return OK;
}

/* A stage that was ended with its run may take a moment to be gone. */
static int lock_folder(RoundsCommand *command) {
    enum { TRIES = 30, PAUSE = 100000000 /* ns */ };
    const char *output = command->rounds.config->output;
    for (int i = 0;; i++) {
        int rc = output_folder_lock(output, &command->lock);
        if (rc != ERR_REFUSED || i == TRIES) return rc;
        nanosleep(&(struct timespec){.tv_nsec = PAUSE}, NULL);
    }
}

static int run(RoundsCommand *command) {
    Rounds *rounds = &command->rounds;
    static const OutputOwner owner = {ROUNDS_CONFIG, ROUNDS_WRITTEN};
    bool resuming;
    TRY(rounds_make(rounds));
    TRY(note_arguments(rounds));
    TRY(output_folder_check_owner(rounds->config->output, &owner, &resuming));
    TRY(read_states(command));
    TRY(rounds_check(rounds, command->states));
    TRY(rounds_plan(rounds, command->states, command->plan));
    if (command->plan) return OK;
    TRY(lock_folder(command));
    return rounds_run(rounds, command->states, command->lock);
}

int command_rounds(int argc, char **argv) {
    int rc = OK;
    RoundsCommand command = {.lock = -1};
    CliResult cli;
    const Flag flags[] = {
        {"plan", 0, FLAG_SWITCH, &command.plan, "", "", "list what would run, and the memory it needs, and stop"},
    };
    TRY(config_new(&command.rounds.config));
    CliSpec spec = {
        .usage = "CONFIG.yaml [key=value …] [--plan]",
        .about = "Runs whole rounds of alignment: the config's `stages`, one after the other, rounds.count times.\n"
                 "A stage is {stage: NAME, run: COMMAND} and options of that command, over those that all stages\n"
                 "share; COMMAND is sft, reward, rejection, dpo, ppo, merge (models: [...], weights: [...]) or eval\n"
                 "(cria eval policy). first_round and last_round say in which rounds it has a part. Paths may refer\n"
                 "to other stages: {policy} is the newest model, from which a stage begins unless it says otherwise;\n"
                 "{start} the one that the round began with; {NAME} the newest folder of that stage, {NAME@2} that\n"
                 "of round 2, and in lists {NAME@earlier} those of earlier rounds, {NAME@all} with this one's;\n"
                 "{round} is the round's number. Seeds grow by one each round.\n"
                 "\n"
                 "Everything is checked before the first stage starts. The same command goes on where it was\n"
                 "stopped. OUTPUT/round-1/NAME/ is a stage's folder, OUTPUT/report.md tells what came of them.",
        .flags = flags,
        .n_flags = sizeof flags / sizeof *flags,
        .min_words = 0,
        .max_words = 1,
        .config = command.rounds.config,
        .config_file = true,
        .load = rounds_load,
        .load_context = &command.rounds,
        .sections = "output rounds"};
    TRY_TO(done, cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) goto done;
    TRY_TO(done, check_alone());
    rc = run(&command);
done:
    free(command.states);
    output_folder_unlock(command.lock);
    rounds_free(&command.rounds);
    return rc;
}
