/* Errors are values: every fallible function returns int, 0 (OK) or one of the codes below, and leaves a text and a
 * trace in thread-local storage. The codes are also the program's exit statuses.
 *
 *   FAIL(code, "...")      start an error: what was found, what was expected, what to do
 *   TRY(call)              pass an error up, adding this place to its trace
 *   TRY_TO(label, call)    the same where there is something to release: sets `rc` and goes to `label`
 *   FAIL_TO(label, code, "...")
 *
 * The text is for the user, the trace (file:line of each TRY passed) for the developer.
 */
#ifndef CRIA_CORE_ERROR_H
#define CRIA_CORE_ERROR_H

#include <stdbool.h>

enum {
    OK = 0,
    ERR_FAILED = 1,        /* an I/O error, out of memory, a bug */
    ERR_USAGE = 2,         /* wrong command line or config */
    ERR_REFUSED = 3,       /* bad data, or it does not fit */
    ERR_INTERRUPTED = 130, /* a signal asked for a stop; a checkpoint was saved */
};

/* Starts a new error in this thread: replaces the text, empties the trace. Returns `code`. */
int error_set(int code, const char *file, int line, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Puts "context: " before the current text, for a caller that knows the file or key being worked on. Returns `code`. */
int error_context(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts `to` wherever the current text has `from`: the name that the user knows for a temporary one. */
void error_replace(const char *from, const char *to);

/* Adds a place to the trace. Returns `code`. */
int error_trace(int code, const char *file, int line);

const char *error_text(void);       /* "" when there is none; valid until the next error in this thread */
const char *error_trace_text(void); /* "train/loop/loop.c:120 < optim/adamw.c:33 …" , innermost first */
void error_clear(void);

/* Whether the current error has been shown to the user, so that it is shown once whoever comes first. */
void error_mark_reported(void);
bool error_is_reported(void);

/* The code is returned here, not by error_set, so that an analyser sees that what follows TRY succeeded. */
#define FAIL(code, ...) return error_set((code), __FILE__, __LINE__, __VA_ARGS__), (code)
#define TRY(call)                                                                    \
    do {                                                                             \
        int try_rc_ = (call);                                                        \
        if (try_rc_ != OK) return error_trace(try_rc_, __FILE__, __LINE__), try_rc_; \
    } while (0)
#define FAIL_TO(label, code, ...)                       \
    do {                                                \
        rc = (code);                                    \
        error_set(rc, __FILE__, __LINE__, __VA_ARGS__); \
        goto label;                                     \
    } while (0)
#define TRY_TO(label, call)                      \
    do {                                         \
        rc = (call);                             \
        if (rc != OK) {                          \
            error_trace(rc, __FILE__, __LINE__); \
            goto label;                          \
        }                                        \
    } while (0)

#endif
