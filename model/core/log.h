/* Lines for people, on stderr; stdout belongs to results. Each line is one write, so ranks do not mix within a line. */
#ifndef CRIA_CORE_LOG_H
#define CRIA_CORE_LOG_H

#include <stdbool.h>

typedef enum { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR } LogLevel;

void log_set_level(LogLevel lowest);      /* default LOG_INFO */
void log_set_rank(int rank, int n_ranks); /* with several ranks, lines below LOG_WARNING come from rank 0 only */
bool log_is_quiet_rank(void);             /* a rank other than 0 */

/* A live line (progress) registers how to clear itself, so that log lines do not land in the middle of it. */
void log_set_before_line(void (*clear)(void *), void *context);

void log_line(LogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)

#endif
