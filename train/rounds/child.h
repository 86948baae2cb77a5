/* A command of this program as a process of its own. */
#ifndef CRIA_TRAIN_ROUNDS_CHILD_H
#define CRIA_TRAIN_ROUNDS_CHILD_H

typedef struct {
    char *const *arguments; /* "sft", "config.yaml", NULL */
    const char *launcher;   /* a shell's words that start it, "mpirun -n 4"; "": nothing */
    int output;             /* a descriptor that its standard output goes to */
    int lock;               /* one that it inherits, so that a lock lasts as long as it does; -1: none */
} ChildOptions;

/* From here until children_end, Ctrl-C, SIGTERM and SIGHUP are passed on to the child that runs, which saves and stops
 * (interrupt.h); none is started after one. A child is in a process group of its own, so that a terminal's Ctrl-C
 * reaches it through here alone, once. Signals are process-wide, so this is too. */
void children_begin(void);
void children_end(void);

/* Runs it to its end. It does not outlive this process. OK, or its status, as an error that the child has told already;
 * ERR_INTERRUPTED where a signal came before it was started, or ended it; ERR_FAILED, to be told here, where it could
 * not be started or died of a signal. */
int child_run(const ChildOptions *options);

#endif
