/* metrics.jsonl: each line is one write(2) to a file opened for appending, so a crash can tear the last line only, and
 * metrics_open removes such a line. A line: {"step": 12, "time": 1732255200.125, "loss": 2.5}; what is not finite is
 * null, as JSON has no NaN. */
#include "train/console/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"
#include "train/console/events.h"

struct MetricsWriter {
    int fd;
    char *path, *events_directory;
    EventFile *events;
};

/* "step" of a line [line, end): false where the line is torn or is not ours. */
static bool line_step(const char *line, const char *end, long long *step) {
    static const char start[] = "{\"step\": ";
    size_t n = sizeof start - 1;
    if ((size_t)(end - line) < n + 2 || memcmp(line, start, n) != 0 || end[-1] != '}') return false;
    return sscanf(line + n, "%lld", step) == 1;
}

/* Replaces the file by its lines of steps before next_step, if any other is in it. */
static int cut(const char *path, int64_t next_step) {
    if (!file_exists(path)) return OK;
    char *bytes;
    size_t size, dropped = 0;
    Text kept = {0};
    int rc = OK;
    TRY(file_read(&bytes, &size, path, 0));
    for (const char *line = bytes, *next; line < bytes + size; line = next) {
        const char *end = memchr(line, '\n', (size_t)(bytes + size - line));
        next = end ? end + 1 : bytes + size;
        long long step;
        if (end && line_step(line, end, &step) && step < next_step)
            text_append(&kept, line, (size_t)(next - line));
        else
            dropped++;
    }
    TRY_TO(done, text_check(&kept));
    if (dropped) {
        TRY_TO(done, file_write_atomic(path, kept.bytes ? kept.bytes : "", kept.length));
        log_info("%s: %zu lines of step %lld and later dropped", path, dropped, (long long)next_step);
    }
done:
    text_free(&kept);
    free(bytes);
    return rc;
}

static int open_files(MetricsWriter *writer, int64_t next_step) {
    TRY(cut(writer->path, next_step));
    writer->fd = open(writer->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (writer->fd < 0) FAIL(ERR_FAILED, "%s: open: %s", writer->path, strerror(errno));
    TRY(events_open(&writer->events, writer->events_directory, next_step));
    return OK;
}

static void close_files(MetricsWriter *writer) {
    if (writer->fd >= 0) close(writer->fd);
    writer->fd = -1;
    events_close(writer->events);
    writer->events = NULL;
}

int metrics_open(MetricsWriter **out, const char *directory, int64_t next_step) {
    *out = NULL;
    TRY(directory_make(directory));
    MetricsWriter *writer = calloc(1, sizeof *writer);
    if (!writer) FAIL(ERR_FAILED, "out of memory for the metrics");
    writer->fd = -1;
    writer->path = path_join(directory, "metrics.jsonl");
    writer->events_directory = path_join(directory, "tensorboard");
    int rc = OK;
    if (!writer->path || !writer->events_directory) FAIL_TO(failed, ERR_FAILED, "out of memory for a path");
    TRY_TO(failed, open_files(writer, next_step));
    *out = writer;
    return OK;
failed:
    metrics_close(writer);
    return rc;
}

int metrics_rewind(MetricsWriter *writer, int64_t next_step) {
    close_files(writer);
    return open_files(writer, next_step);
}

static void add_text(Text *line, const char *text) {
    json_t *string = json_string(text); /* NULL where it is not UTF-8 */
    char *quoted = string ? json_dumps(string, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    text_puts(line, quoted ? quoted : "null");
    free(quoted);
    json_decref(string);
}

/* Null, a whole number, or as few digits as read back the same double. */
static void add_number(Text *line, double value) {
    char digits[40];
    if (!isfinite(value)) {
        text_puts(line, "null");
        return;
    }
    if (value == floor(value) && fabs(value) < 0x1p53) {
        text_printf(line, "%.0f", value);
        return;
    }
    for (int precision = 6; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        double again = strtod(digits, NULL);
        if (again == value) break;
    }
    text_puts(line, digits);
}

/* TensorBoard's tag for a metric, as transformers' TensorBoardCallback makes it. */
static void make_tag(char *out, size_t size, const char *name) {
    static const char eval[] = "eval_";
    if (text_starts_with(name, eval))
        snprintf(out, size, "eval/%s", name + sizeof eval - 1);
    else
        snprintf(out, size, "train/%s", name);
}

int metrics_write(MetricsWriter *writer, int64_t step, const Metric *metrics, size_t n) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double wall_time = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    Text line = {0};
    int rc = OK;
    text_printf(&line, "{\"step\": %lld, \"time\": %.3f", (long long)step, wall_time);
    for (size_t i = 0; i < n; i++) {
        text_puts(&line, ", ");
        add_text(&line, metrics[i].name);
        text_puts(&line, ": ");
        if (metrics[i].text)
            add_text(&line, metrics[i].text);
        else
            add_number(&line, metrics[i].value);
    }
    text_puts(&line, "}\n");
    TRY_TO(done, text_check(&line));
    if (write(writer->fd, line.bytes, line.length) != (ssize_t)line.length)
        FAIL_TO(done, ERR_FAILED, "%s: write: %s", writer->path, strerror(errno));
    for (size_t i = 0; i < n; i++) {
        char tag[256];
        if (metrics[i].text) continue;
        make_tag(tag, sizeof tag, metrics[i].name);
        TRY_TO(done, events_scalar(writer->events, step, wall_time, tag, metrics[i].value));
    }
done:
    text_free(&line);
    return rc;
}

int metrics_sync(MetricsWriter *writer) {
    if (fsync(writer->fd) != 0) FAIL(ERR_FAILED, "%s: fsync: %s", writer->path, strerror(errno));
    TRY(events_sync(writer->events));
    return OK;
}

void metrics_close(MetricsWriter *writer) {
    if (!writer) return;
    close_files(writer);
    free(writer->path);
    free(writer->events_directory);
    free(writer);
}

/* The step and the wanted value of one line; false where either is absent or null. */
static bool read_line(const char *line, size_t length, const char *name, double *step, double *value) {
    json_t *object = json_loadb(line, length, 0, NULL);
    const json_t *found = json_object_get(object, name), *at = json_object_get(object, "step");
    bool good = json_is_number(found) && json_is_number(at);
    if (good) {
        *step = json_number_value(at);
        *value = json_number_value(found);
    }
    json_decref(object);
    return good;
}

int metrics_read(const char *path, const char *name, double **steps, double **values, size_t *n) {
    char *bytes;
    size_t size, lines = 1;
    *n = 0;
    *steps = *values = NULL;
    TRY(file_read(&bytes, &size, path, 0));
    for (size_t i = 0; i < size; i++) lines += bytes[i] == '\n';
    *steps = calloc(lines, sizeof **steps);
    *values = calloc(lines, sizeof **values);
    if (!*steps || !*values) {
        free(bytes);
        free(*steps);
        free(*values);
        FAIL(ERR_FAILED, "%s: out of memory for %zu lines", path, lines);
    }
    for (const char *line = bytes, *next; line < bytes + size; line = next) {
        const char *end = memchr(line, '\n', (size_t)(bytes + size - line));
        if (!end) end = bytes + size;
        next = end + (end < bytes + size);
        *n += read_line(line, (size_t)(end - line), name, &(*steps)[*n], &(*values)[*n]);
    }
    free(bytes);
    return OK;
}
