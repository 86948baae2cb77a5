/* The verbs of `cria eval` that have a file of their own. */
#ifndef CRIA_TRAIN_CMD_EVAL_H
#define CRIA_TRAIN_CMD_EVAL_H

/* argv[0] is the command's name, argv[1] what follows the verb. */
int eval_pairs_command(int argc, char **argv);
int eval_policy_command(int argc, char **argv);
int eval_reward_command(int argc, char **argv);

#endif
