/* The program's commands, from commands.def: a prototype for each row, and the table. */
#ifndef CRIA_TRAIN_COMMANDS_H
#define CRIA_TRAIN_COMMANDS_H

#include <stddef.h>
#include <stdio.h>

#define COMMAND(name, function, help) int function(int argc, char **argv);
#include "train/commands.def"
#undef COMMAND

typedef struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} Command;

const Command *command_table(size_t *n);
/* The row with this name, or ERR_USAGE with a text that offers the nearest one. */
int command_find(const Command **command, const char *name);

/* Shows the current error, once: main does so for every command; a command whose ranks are about to part does it before
 * they do, since mpirun ends the others when the first one exits with a status other than 0. */
void command_report(int status);

/* What `cria help` says. */
void commands_list(FILE *out);

#endif
