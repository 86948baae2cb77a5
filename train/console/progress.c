/* One write(2) per redraw: carriage return, the line cut to the terminal's width, "erase to end of line" (ECMA-48 EL).
 */
#include "train/console/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "model/core/clock.h"
#include "model/core/log.h"
#include "model/core/memory.h"
#include "model/core/text.h"

#define ERASE_LINE "\r\033[K"

enum { DEFAULT_WIDTH = 80, NARROWEST = 20, WIDEST = 400 };
static const double live_interval = 0.1, plain_interval = 10.0; /* seconds */

int terminal_width(void) {
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    int width = columns ? atoi(columns) : 0;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) width = size.ws_col;
    if (width <= 0) return DEFAULT_WIDTH;
    return width < NARROWEST ? NARROWEST : width > WIDEST ? WIDEST : width;
}

bool terminal_is_utf8(void) {
    static const char *const variables[] = {"LC_ALL", "LC_CTYPE", "LANG"}; /* the first that is set decides */
    for (size_t i = 0; i < 3; i++) {
        const char *locale = getenv(variables[i]);
        if (locale && *locale) return strcasestr(locale, "utf-8") || strcasestr(locale, "utf8");
    }
    return false;
}

static bool terminal_is_live(void) {
    const char *type = getenv("TERM");
    return isatty(STDERR_FILENO) && type && *type && strcmp(type, "dumb") != 0;
}

static void put(const char *bytes, size_t n) {
    ssize_t written = write(STDERR_FILENO, bytes, n);
    (void)written; /* a closed stderr must not stop a run */
}

/* Bytes of `text` that fill at most `columns` columns, one per code point. */
static size_t fit(const char *text, int columns) {
    size_t length = strlen(text), at = 0;
    uint32_t code;
    for (; at < length && columns > 0; columns--) {
        int n = utf8_decode(text + at, length - at, &code);
        at += n > 0 ? (size_t)n : 1;
    }
    return at;
}

static void clear(void *context) {
    Progress *progress = context;
    if (progress->live && progress->shown) put(ERASE_LINE, sizeof ERASE_LINE - 1);
    progress->shown = false;
}

/* What a live line gives up, one after the other, to fit the terminal. */
static const struct {
    int bar;
    bool percent, title;
} layouts[] = {{20, true, true}, {10, true, true}, {6, false, true}, {6, false, false}};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

static void draw_bar(Text *out, double share, int width, bool unicode) {
    double filled = share * width;
    for (int i = 0; i < width; i++) {
        bool full = filled >= i + 1, half = filled >= i + 0.5;
        if (unicode)
            text_puts(out, full ? "━" : half ? "╸" : "┄");
        else
            text_puts(out, full ? "#" : "-");
    }
}

static void add_time_left(Text *out, const Progress *progress, int64_t done, double now) {
    char duration[32];
    if (done <= progress->first || progress->total <= done) return;
    double each = (now - progress->begun) / (double)(done - progress->first);
    text_printf(out, "%s%s left", progress->unicode ? " · " : ", ",
                text_duration(duration, each * (double)(progress->total - done)));
}

static void compose(Progress *progress, int64_t done, const char *details, double now, int layout) {
    Text line = {0};
    char count[32], total[32];
    if (layouts[layout].title) text_printf(&line, "%s ", progress->title);
    if (progress->total > 0) {
        double share = (double)done / (double)progress->total;
        share = share < 0 ? 0 : share > 1 ? 1 : share;
        if (progress->live) {
            draw_bar(&line, share, layouts[layout].bar, progress->unicode);
            text_puts(&line, " ");
        }
        if (layouts[layout].percent) text_printf(&line, "%3d%% ", (int)(share * 100));
        text_printf(&line, "%s/%s %s", text_thousands(count, (uint64_t)(done > 0 ? done : 0)),
                    text_thousands(total, (uint64_t)progress->total), progress->unit);
    } else {
        text_printf(&line, "%s %s", text_thousands(count, (uint64_t)(done > 0 ? done : 0)), progress->unit);
    }
    if (*details) text_printf(&line, "%s%s", progress->unicode ? " · " : ", ", details);
    add_time_left(&line, progress, done, now);
    snprintf(progress->line, sizeof progress->line, "%s", line.bytes ? line.bytes : "");
    text_free(&line);
}

void progress_begin(Progress *progress, const char *title, const char *unit, int64_t first, int64_t total) {
    *progress = (Progress){.title = title, .unit = unit, .first = first, .total = total};
    progress->begun = clock_seconds();
    progress->drawn = progress->begun; /* work shorter than an interval shows nothing */
    progress->live = terminal_is_live();
    progress->unicode = terminal_is_utf8();
    log_set_before_line(clear, progress);
}

void progress_draw(Progress *progress, int64_t done, const char *details) {
    if (log_is_quiet_rank()) return;
    double now = clock_seconds();
    progress->drawn = now;
    compose(progress, done, details, now, 0);
    if (!progress->live) {
        log_info("%s", progress->line);
        return;
    }
    int columns = terminal_width() - 1; /* the last column may wrap */
    for (int layout = 1; layout < N_LAYOUTS && progress->line[fit(progress->line, columns)]; layout++)
        compose(progress, done, details, now, layout);
    Text out = {0};
    text_puts(&out, "\r");
    text_append(&out, progress->line, fit(progress->line, columns));
    text_puts(&out, "\033[K");
    if (out.bytes) put(out.bytes, out.length);
    text_free(&out);
    progress->shown = true;
}

bool progress_due(const Progress *progress) {
    return clock_seconds() - progress->drawn >= (progress->live ? live_interval : plain_interval);
}

void progress_update(Progress *progress, int64_t done, const char *details) {
    if (progress_due(progress)) progress_draw(progress, done, details);
}

void progress_show(Progress *progress, int64_t done) {
    if (progress->live) progress_draw(progress, done, "");
}

void progress_end(Progress *progress) {
    clear(progress);
    log_set_before_line(NULL, NULL);
}

const char *progress_training_details(char *out, size_t size, double loss, double tokens_per_second) {
    char rate[32], memory[32];
    const char *separator = terminal_is_utf8() ? " · " : ", ";
    double bounded = tokens_per_second > 0 && tokens_per_second < 1e15 ? tokens_per_second : 0;
    snprintf(out, size, "loss %.4f%s%s tok/s%s%s", loss, separator, text_thousands(rate, (uint64_t)bounded), separator,
             text_bytes(memory, memory_use().resident));
    return out;
}
