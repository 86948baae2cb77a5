/* Thread-local error text and trace. Fixed buffers, so that reporting "out of memory" needs none. */
#include "model/core/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { TEXT_SIZE = 2048, TRACE_SIZE = 1024 };

static _Thread_local char current_text[TEXT_SIZE];
static _Thread_local char current_trace[TRACE_SIZE];
static _Thread_local bool reported;

int error_set(int code, const char *file, int line, const char *format, ...) {
    char text[TEXT_SIZE]; /* the arguments may point into current_text */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(current_text, text, sizeof text);
    snprintf(current_trace, sizeof current_trace, "%s:%d", file, line);
    reported = false;
    return code;
}

int error_context(int code, const char *format, ...) {
    char prefix[TEXT_SIZE / 2], text[TEXT_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    snprintf(text, sizeof text, "%s: %.*s", prefix, (int)(sizeof text - sizeof prefix - 3), current_text);
    memcpy(current_text, text, sizeof text);
    return code;
}

void error_replace(const char *from, const char *to) {
    char text[TEXT_SIZE];
    size_t used = 0, length = strlen(from);
    const char *at = current_text;
    for (const char *found; length > 0 && used < sizeof text && (found = strstr(at, from)); at = found + length)
        used += (size_t)snprintf(text + used, sizeof text - used, "%.*s%s", (int)(found - at), at, to);
    if (used < sizeof text) snprintf(text + used, sizeof text - used, "%s", at);
    memcpy(current_text, text, sizeof text);
}

int error_trace(int code, const char *file, int line) {
    size_t used = strlen(current_trace);
    snprintf(current_trace + used, sizeof current_trace - used, " < %s:%d", file, line);
    return code;
}

const char *error_text(void) {
    return current_text;
}
const char *error_trace_text(void) {
    return current_trace;
}

void error_clear(void) {
    current_text[0] = '\0';
    current_trace[0] = '\0';
    reported = false;
}

void error_mark_reported(void) {
    reported = true;
}
bool error_is_reported(void) {
    return reported;
}
