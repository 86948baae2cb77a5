/* One formatted line, one write(2). */
#include "model/core/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/core/text.h"

static LogLevel lowest_level = LOG_INFO;
static int this_rank = 0, rank_count = 1;
static void (*before_line)(void *);
static void *before_context;

void log_set_level(LogLevel lowest) {
    lowest_level = lowest;
}

void log_set_rank(int rank, int n_ranks) {
    this_rank = rank;
    rank_count = n_ranks;
}

bool log_is_quiet_rank(void) {
    return this_rank != 0;
}

void log_set_before_line(void (*clear)(void *), void *context) {
    before_line = clear;
    before_context = context;
}

/* What a file, a name or a young model says may hold escape sequences and half characters: a terminal sees '?'. */
static void make_printable(char *line, size_t length) {
    for (size_t at = 0; at < length;) {
        uint32_t code = 0;
        int n = utf8_decode(line + at, length - at, &code);
        bool control = (code < 0x20 && code != '\n' && code != '\t') || (code >= 0x7f && code < 0xa0);
        size_t size = n > 0 ? (size_t)n : 1;
        if (n == 0 || control) memset(line + at, '?', size);
        at += size;
    }
}

void log_line(LogLevel level, const char *format, ...) {
    static const char *const labels[] = {"debug: ", "", "warning: ", "error: "};
    if (level < lowest_level || (this_rank != 0 && level < LOG_WARNING)) return;
    enum { LONGEST_LINE = 8192 }; /* a plotted curve fits */
    char line[LONGEST_LINE];
    int used = 0;
    if (rank_count > 1 && level >= LOG_WARNING) used = snprintf(line, sizeof line, "[rank %d] ", this_rank);
    used += snprintf(line + used, sizeof line - (size_t)used, "%s", labels[level]);
    va_list args;
    va_start(args, format);
    vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    va_end(args);
    size_t length = strlen(line);
    make_printable(line, length);
    line[length++] = '\n';
    if (before_line) before_line(before_context);
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written; /* a closed stderr must not stop a run */
}
