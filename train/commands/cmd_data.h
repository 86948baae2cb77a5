/* The verbs of `cria data`. */
#ifndef CRIA_TRAIN_CMD_DATA_H
#define CRIA_TRAIN_CMD_DATA_H

int data_lint_command(int argc, char **argv);
int data_show_command(int argc, char **argv);

#endif
