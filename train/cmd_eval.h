/* What `cria eval` measures. */
#ifndef CRIA_TRAIN_CMD_EVAL_H
#define CRIA_TRAIN_CMD_EVAL_H

int eval_reward_command(int argc, char **argv);

#endif
