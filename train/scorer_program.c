/* See scorer.h: a program of the user's. Its input is written to an unnamed file first, so that neither side can wait
 * for the other with a full pipe. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/text.h"
#include "train/scorer.h"

typedef struct {
    Scorer base;
    char *command;
} Program;

/* ---- what it reads ---- */

static int write_answer(FILE *input, const ScoredAnswer *answer) {
    json_t *completion = json_stringn(answer->text, answer->size); /* NULL where it is not UTF-8 */
    json_t *line = json_pack("{s:O?, s:o?, s:b, s:i, s:O?}", "prompt", answer->prompt->prompt, "completion", completion,
                             "finished", answer->finished, "tokens", answer->n_ids - answer->n_prompt, "record",
                             answer->prompt->record);
    int rc = line ? json_dumpf(line, input, JSON_COMPACT) : -1;
    json_decref(line);
    if (rc != 0 || fputc('\n', input) == EOF) FAIL(ERR_FAILED, "ppo.program: writing its input: %s", strerror(errno));
    return OK;
}

static int write_answers(FILE *input, const ScoredAnswer *answers, size_t n) {
    for (size_t i = 0; i < n; i++) TRY(write_answer(input, &answers[i]));
    if (fflush(input) != 0 || lseek(fileno(input), 0, SEEK_SET) != 0)
        FAIL(ERR_FAILED, "ppo.program: writing its input: %s", strerror(errno));
    return OK;
}

/* ---- what it writes ---- */

static int parse_score(const char *command, const char *line, size_t number, double *score) {
    char word[64];
    size_t n = strcspn(line, "\r\n");
    snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), line);
    *score = NAN;
    if (strcmp(word, "null") == 0) return OK;
    if (n >= sizeof word || !text_parse_double(word, score) || !isfinite(*score))
        FAIL(ERR_FAILED, "'%s' wrote '%s' in line %zu; a number is expected, or null where an answer cannot be judged",
             command, word, number);
    return OK;
}

static int read_scores(const char *command, FILE *output, size_t n, double *scores) {
    int rc = OK;
    char *line = NULL;
    size_t room = 0, i = 0;
    while (rc == OK && getline(&line, &room, output) > 0) {
        if (i < n) rc = parse_score(command, line, i + 1, &scores[i]);
        i++;
    }
    free(line);
    TRY(rc);
    if (i != n) FAIL(ERR_FAILED, "'%s' wrote %zu lines for %zu answers; one for each is expected", command, i, n);
    return OK;
}

/* ---- the process ---- */

static int start(const char *command, int input, int *output, pid_t *child) {
    int ends[2];
    if (pipe(ends) != 0) FAIL(ERR_FAILED, "'%s': pipe: %s", command, strerror(errno));
    *child = fork();
    if (*child < 0) {
        close(ends[0]);
        close(ends[1]);
        FAIL(ERR_FAILED, "'%s': fork: %s", command, strerror(errno));
    }
    if (*child == 0) {
        if (dup2(input, STDIN_FILENO) >= 0 && dup2(ends[1], STDOUT_FILENO) >= 0) {
            close(ends[0]);
            close(ends[1]);
            execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        }
        _exit(127);
    }
    close(ends[1]);
    *output = ends[0];
    return OK;
}

/* The scores first: what it wrote says more than that it failed, and failing says more than too few lines. */
static int finish(const char *command, pid_t child, int rc) {
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    if (WIFSIGNALED(status)) FAIL(ERR_FAILED, "'%s' was ended by signal %d", command, WTERMSIG(status));
    if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
        FAIL(ERR_FAILED, "'%s' ended with status %d", command, WEXITSTATUS(status));
    return rc;
}

static int run(const char *command, FILE *input, size_t n, double *scores) {
    int output;
    pid_t child;
    TRY(start(command, fileno(input), &output, &child));
    FILE *stream = fdopen(output, "r");
    int rc = stream ? read_scores(command, stream, n, scores)
                    : error_set(ERR_FAILED, __FILE__, __LINE__, "'%s': fdopen: %s", command, strerror(errno));
    if (stream)
        fclose(stream);
    else
        close(output);
    return finish(command, child, rc);
}

static int score(Scorer *base, const ScoredAnswer *answers, size_t n, double *scores) {
    const Program *program = (const Program *)base;
    if (n == 0) return OK;
    FILE *input = tmpfile();
    if (!input) FAIL(ERR_FAILED, "ppo.program: no temporary file for its input: %s", strerror(errno));
    int rc = write_answers(input, answers, n);
    if (rc == OK) rc = run(program->command, input, n, scores);
    fclose(input);
    return rc;
}

static void program_free(Scorer *base) {
    Program *program = (Program *)base;
    free(program->command);
    free(program);
}

int scorer_program_new(Scorer **scorer, const char *command) {
    Program *program = calloc(1, sizeof *program);
    *scorer = NULL;
    if (!program) FAIL(ERR_FAILED, "out of memory");
    program->base = (Scorer){.name = "program", .score = score, .free = program_free};
    program->command = strdup(command);
    if (!program->command) {
        free(program);
        FAIL(ERR_FAILED, "out of memory");
    }
    *scorer = &program->base;
    return OK;
}
