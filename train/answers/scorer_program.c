/* A scorer that is a program. Lines are written and scores read at the same time, so that neither side waits for the
 * other with a full pipe. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/core/clock.h"
#include "model/core/error.h"
#include "model/core/text.h"
#include "train/console/interrupt.h"
#include "train/answers/scorer.h"

typedef struct {
    Scorer scorer;
    const char *command;
    double timeout;
    const char *section; /* of the config, for messages */
} Program;

/* One run of it. */
typedef struct {
    const Program *program;
    pid_t pid;
    int to, from; /* -1: closed */
    Text lines;   /* for its standard input */
    size_t written;
    Text line; /* of its output, so far */
    double *scores;
    size_t n, n_scores;
    double progress; /* when it last took or gave something */
} Conversing;

enum { LONGEST_LINE = 4096, SHOWN = 80, POLL_MS = 100 };

static int add_line(Text *out, const ScoredAnswer *answer) {
    json_t *object =
        json_pack("{s:I, s:O?, s:o, s:O?}", "index", (json_int_t)answer->index, "prompt", answer->prompt->prompt,
                  "answer", json_stringn(answer->text, answer->size), "record", answer->prompt->record);
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (!text) FAIL(ERR_FAILED, "out of memory");
    text_puts(out, text);
    text_puts(out, "\n");
    free(text);
    return text_check(out);
}

extern char **environ;

/* With these two pipe ends as its standard input and output, in a group of its own. */
static int spawn(pid_t *pid, const Program *program, int input, int output) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t defaults;
    char shell[] = "sh", flag[] = "-c", *text = strdup(program->command);
    char *const arguments[] = {shell, flag, text, NULL};
    if (!text) FAIL(ERR_FAILED, "out of memory");
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, input, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF);
    int code = posix_spawn(pid, "/bin/sh", &files, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    free(text);
    if (code != 0) FAIL(ERR_FAILED, "%s.program: it cannot be started: %s", program->section, strerror(code));
    return OK;
}

static void close_end(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static int start(Conversing *c) {
    int input[2] = {-1, -1}, output[2] = {-1, -1};
    int rc =
        pipe2(input, O_CLOEXEC) == 0 && pipe2(output, O_CLOEXEC) == 0
            ? OK
            : error_set(ERR_FAILED, __FILE__, __LINE__, "%s.program: pipe: %s", c->program->section, strerror(errno));
    if (rc == OK) rc = spawn(&c->pid, c->program, input[0], output[1]);
    close_end(&input[0]);
    close_end(&output[1]);
    c->to = input[1];
    c->from = output[0];
    if (rc != OK) return rc;
    fcntl(c->to, F_SETFL, O_NONBLOCK);
    fcntl(c->from, F_SETFL, O_NONBLOCK);
    c->progress = clock_seconds();
    return OK;
}

/* A program that ends before it has read everything is told of by its status, or by the scores that are missing. */
static int give(Conversing *c) {
    ssize_t n = write(c->to, c->lines.bytes + c->written, c->lines.length - c->written);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return OK;
    if (n < 0 && errno != EPIPE) FAIL(ERR_FAILED, "%s.program: write: %s", c->program->section, strerror(errno));
    if (n > 0) {
        c->written += (size_t)n;
        c->progress = clock_seconds();
    }
    if (n < 0 || c->written == c->lines.length) close_end(&c->to);
    return OK;
}

static int take_score(Conversing *c, const char *line) {
    double score;
    if (c->n_scores == c->n)
        FAIL(ERR_REFUSED, "%s.program: it wrote more than a line for each of the %zu answers: '%.*s'",
             c->program->section, c->n, SHOWN, line);
    if (!text_parse_double(line, &score) || !isfinite(score))
        FAIL(ERR_REFUSED, "%s.program: its line %zu is '%.*s'; a score, which is a finite number, is expected",
             c->program->section, c->n_scores + 1, SHOWN, line);
    c->scores[c->n_scores++] = score;
    return OK;
}

static int take_bytes(Conversing *c, const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] == '\n') {
            size_t end = c->line.length;
            while (end > 0 && strchr(" \t\r", c->line.bytes[end - 1])) c->line.bytes[--end] = '\0';
            TRY(take_score(c, c->line.bytes ? c->line.bytes + strspn(c->line.bytes, " \t") : ""));
            text_clear(&c->line);
        } else if (c->line.length == LONGEST_LINE) {
            FAIL(ERR_REFUSED, "%s.program: its line %zu is longer than %d bytes; a score is expected: '%.*s'",
                 c->program->section, c->n_scores + 1, LONGEST_LINE, SHOWN, c->line.bytes);
        } else {
            text_append(&c->line, bytes + i, 1);
        }
    }
    return text_check(&c->line);
}

static int take(Conversing *c) {
    char bytes[LONGEST_LINE];
    ssize_t n = read(c->from, bytes, sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return OK;
    if (n < 0) FAIL(ERR_FAILED, "%s.program: read: %s", c->program->section, strerror(errno));
    c->progress = clock_seconds();
    if (n > 0) return take_bytes(c, bytes, (size_t)n);
    close_end(&c->from);
    if (c->line.length > 0) return take_bytes(c, "\n", 1); /* the last line had no end */
    return OK;
}

static int check_time(const Conversing *c) {
    if (interrupt_requested()) FAIL(ERR_INTERRUPTED, "interrupted while %s.program was scoring", c->program->section);
    if (clock_seconds() - c->progress <= c->program->timeout) return OK;
    FAIL(ERR_FAILED,
         "%s.program: for %g s it has neither taken a line nor given a score (%zu of %zu came); it was ended "
         "(%s.timeout)",
         c->program->section, c->program->timeout, c->n_scores, c->n, c->program->section);
}

static int converse(Conversing *c) {
    while (c->from >= 0) {
        struct pollfd wait[2] = {{.fd = c->from, .events = POLLIN}, {.fd = c->to, .events = POLLOUT}};
        poll(wait, 2, POLL_MS);
        if (c->to >= 0 && wait[1].revents) TRY(give(c));
        if (wait[0].revents) TRY(take(c));
        TRY(check_time(c));
    }
    close_end(&c->to);
    return OK;
}

/* Its end, within the time that it has. */
static int finish(Conversing *c) {
    int status = 0;
    while (waitpid(c->pid, &status, WNOHANG) == 0) {
        poll(NULL, 0, 1);
        TRY(check_time(c));
    }
    c->pid = 0;
    if (WIFSIGNALED(status))
        FAIL(ERR_FAILED, "%s.program: it was ended by signal %d", c->program->section, WTERMSIG(status));
    if (WEXITSTATUS(status) != 0)
        FAIL(ERR_FAILED, "%s.program: it ended with status %d after %zu of %zu scores", c->program->section,
             WEXITSTATUS(status), c->n_scores, c->n);
    if (c->n_scores < c->n)
        FAIL(ERR_REFUSED, "%s.program: it gave %zu scores for %zu answers", c->program->section, c->n_scores, c->n);
    return OK;
}

static int score(Scorer *scorer, const ScoredAnswer *answers, size_t n, double *scores) {
    int rc = OK;
    Conversing c = {.program = (const Program *)scorer, .to = -1, .from = -1, .scores = scores, .n = n};
    struct sigaction before, ignore = {.sa_handler = SIG_IGN};
    if (n == 0) return OK;
    sigaction(SIGPIPE, &ignore, &before);
    for (size_t i = 0; i < n; i++) TRY_TO(done, add_line(&c.lines, &answers[i]));
    TRY_TO(done, start(&c));
    TRY_TO(done, converse(&c));
    TRY_TO(done, finish(&c));
done:
    close_end(&c.to);
    close_end(&c.from);
    if (c.pid > 0) {
        kill(-c.pid, SIGKILL);
        waitpid(c.pid, NULL, 0);
    }
    sigaction(SIGPIPE, &before, NULL);
    text_free(&c.lines);
    text_free(&c.line);
    return rc;
}

static void program_free(Scorer *scorer) {
    free(scorer);
}

int scorer_program_new(Scorer **scorer, const ScorerOptions *options) {
    Program *program = calloc(1, sizeof *program);
    *scorer = NULL;
    if (!program) FAIL(ERR_FAILED, "out of memory");
    *program = (Program){{score, program_free}, options->program, options->timeout, options->section};
    *scorer = &program->scorer;
    return OK;
}
