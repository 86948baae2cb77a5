/* The commands that a stage of cria rounds may be. */
#ifndef CRIA_TRAIN_ROUNDS_COMMAND_H
#define CRIA_TRAIN_ROUNDS_COMMAND_H

#include "train/run.h"

/* What a stage leaves for later ones; bits. */
enum { MAKES_POLICY = 1, MAKES_REWARD = 2, MAKES_RECORDS = 4, MAKES_FIGURES = 8 };

typedef struct {
    const char *name;      /* "sft" */
    const Stage *training; /* NULL: it does not train */
    const char *sections;  /* of options that it reads, where it does not train: see stage_sections */
    const char *idle;      /* of these, what has no part in what it leaves (sample texts) */
    int makes;
    bool resumes; /* it goes on by itself; else its product is there complete, or not at all */
} StageCommand;

const char *stage_sections(const StageCommand *command);
/* NULL where there is none of that name. */
const StageCommand *stage_command(const char *name);
/* "sft, reward, …" */
void stage_commands_list(Text *out);

/* What eval leaves: the policy's figures, and those of the model that it is compared with. */
#define POLICY_FIGURES "policy.json"
#define REFERENCE_FIGURES "reference.json"

#endif
