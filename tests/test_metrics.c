/* What a run shows and records: metrics.jsonl, TensorBoard's event files, the live line, the curve, interrupts. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pty.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/memory.h"
#include "tests/check_main.h"
#include "train/console/curve.h"
#include "train/console/events.h"
#include "train/console/interrupt.h"
#include "train/console/metrics.h"
#include "train/console/progress.h"

static char *scratch(void) {
    static char directory[64];
    snprintf(directory, sizeof directory, "/tmp/cria-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    return directory;
}

static char *slurp(const char *directory, const char *name, size_t *size) {
    char *path = path_join(directory, name), *bytes;
    size_t n;
    CHECK_OK(file_read(&bytes, size ? size : &n, path, 0));
    free(path);
    return bytes;
}

static void write_steps(MetricsWriter *writer, int from, int to, double base) {
    for (int step = from; step < to; step++)
        CHECK_OK(metrics_write(
            writer, step,
            (Metric[]){{"loss", base / (step + 1), NULL}, {"num_tokens", 1e12 + step, NULL}, {"eval_loss", 0.1, NULL}},
            3));
}

START_TEST(a_line_is_one_json_object_with_all_digits) {
    char *directory = scratch();
    MetricsWriter *writer;
    CHECK_OK(metrics_open(&writer, directory, 0));
    CHECK_OK(metrics_write(writer, 3,
                           (Metric[]){{"loss", 1.0 / 3, NULL},
                                      {"num_tokens", 123456789012345, NULL},
                                      {"bad", NAN, NULL},
                                      {"worse", INFINITY, NULL},
                                      {"loss/a \"b\"", -2.5, NULL},
                                      {"note", 0, "line\n\"two\""}},
                           6));
    CHECK_OK(metrics_sync(writer));
    metrics_close(writer);
    char *line = slurp(directory, "metrics.jsonl", NULL);
    ck_assert_ptr_eq(strstr(line, "{\"step\": 3, \"time\": "), line);
    ck_assert_ptr_nonnull(strstr(line,
                                 ", \"loss\": 0.3333333333333333, \"num_tokens\": 123456789012345, \"bad\": null, "
                                 "\"worse\": null, \"loss/a \\\"b\\\"\": -2.5, \"note\": \"line\\n\\\"two\\\"\"}\n"));
    free(line);
    char *path = path_join(directory, "metrics.jsonl");
    double *steps, *values;
    size_t n;
    CHECK_OK(metrics_read(path, "loss", &steps, &values, &n));
    ck_assert(n == 1 && steps[0] == 3.0 && values[0] == 1.0 / 3);
    free(steps);
    free(values);
    CHECK_OK(metrics_read(path, "bad", &steps, &values, &n));
    ck_assert_uint_eq(n, 0);
    free(steps);
    free(values);
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(a_resumed_run_replaces_the_steps_it_repeats) {
    char *directory = scratch();
    MetricsWriter *writer;
    CHECK_OK(metrics_open(&writer, directory, 0));
    write_steps(writer, 0, 10, 4.0);
    metrics_close(writer);
    char *path = path_join(directory, "metrics.jsonl");
    int fd = open(path, O_WRONLY | O_APPEND);
    ck_assert_int_eq(write(fd, "{\"step\": 2, \"time\": 17", 22), 22); /* torn by a crash */
    close(fd);
    log_set_level(LOG_ERROR);
    CHECK_OK(metrics_open(&writer, directory, 6));
    write_steps(writer, 6, 12, 8.0);
    CHECK_OK(metrics_rewind(writer, 11));
    write_steps(writer, 11, 13, 16.0);
    metrics_close(writer);
    log_set_level(LOG_INFO);
    double *steps, *values;
    size_t n;
    CHECK_OK(metrics_read(path, "loss", &steps, &values, &n));
    ck_assert_uint_eq(n, 13);
    for (size_t i = 0; i < n; i++) {
        double base = i < 6 ? 4.0 : i < 11 ? 8.0 : 16.0;
        ck_assert(steps[i] == (double)i && values[i] == base / ((double)i + 1));
    }
    free(steps);
    free(values);
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(opening_again_without_loss_rewrites_nothing) {
    char *directory = scratch();
    MetricsWriter *writer;
    CHECK_OK(metrics_open(&writer, directory, 0));
    write_steps(writer, 0, 3, 1.0);
    metrics_close(writer);
    size_t before, after;
    char *first = slurp(directory, "metrics.jsonl", &before);
    CHECK_OK(metrics_open(&writer, directory, 3));
    metrics_close(writer);
    char *second = slurp(directory, "metrics.jsonl", &after);
    ck_assert_uint_eq(before, after);
    ck_assert_mem_eq(first, second, before);
    free(first);
    free(second);
    CHECK_ERROR(metrics_open(&writer, "/proc/nonexistent", 0), ERR_FAILED, "/proc/nonexistent");
    CHECK_OK(directory_remove(directory));
}
END_TEST

static uint64_t little_endian(const unsigned char *p, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)p[i] << (8 * i);
    return value;
}

/* The value that TFRecord stores for a CRC, from the inverse of its masking. */
static uint32_t unmask(uint32_t masked) {
    uint32_t rotated = masked - 0xa282ead8u;
    return rotated >> 17 | rotated << 15;
}

START_TEST(event_files_are_framed_records) {
    char *directory = scratch();
    EventFile *file;
    CHECK_OK(events_open(&file, directory, 5));
    CHECK_OK(events_scalar(file, 300, 1.5, "train/loss", 0.25));
    CHECK_OK(events_sync(file));
    events_close(file);
    char **names;
    size_t n_names, size, records = 0;
    CHECK_OK(directory_list(&names, &n_names, directory));
    ck_assert_uint_eq(n_names, 1);
    ck_assert_ptr_eq(strstr(names[0], "events.out.tfevents."), names[0]);
    unsigned char *bytes = (unsigned char *)slurp(directory, names[0], &size);
    /* the third record byte by byte, from the wire format by hand: 1: double 1.5, 2: varint 300,
     * 5: {1: {1: "train/loss", 2: float 0.25}} */
    static const unsigned char expected[] = {9,   0,   0,   0,   0,   0,   0,  0xf8, 0x3f, 16,   0xac,
                                             2,   42,  19,  10,  17,  10,  10, 't',  'r',  'a',  'i',
                                             'n', '/', 'l', 'o', 's', 's', 21, 0,    0,    0x80, 0x3e};
    for (size_t at = 0; at < size; records++) {
        ck_assert(size - at >= 16);
        uint64_t length = little_endian(bytes + at, 8);
        ck_assert(length <= size - at - 16);
        ck_assert_uint_eq(unmask((uint32_t)little_endian(bytes + at + 8, 4)), crc32c(0, bytes + at, 8));
        ck_assert_uint_eq(unmask((uint32_t)little_endian(bytes + at + 12 + length, 4)),
                          crc32c(0, bytes + at + 12, length));
        if (records == 0)
            ck_assert_mem_eq(bytes + at + 12 + 9,
                             "\x1a\x0d"
                             "brain.Event:2",
                             15);
        if (records == 1) ck_assert_mem_eq(bytes + at + 12 + 9, "\x10\x05\x3a\x02\x08\x01", 6);
        if (records == 2) {
            ck_assert_uint_eq(length, sizeof expected);
            ck_assert_mem_eq(bytes + at + 12, expected, sizeof expected);
        }
        at += 16 + length;
    }
    ck_assert_uint_eq(records, 3);
    free(bytes);
    names_free(names, n_names);
    CHECK_OK(directory_remove(directory));
}
END_TEST

/* Run with a Python that has tensorboard: CRIA_PYTHON names it. */
START_TEST(tensorboard_reads_the_resumed_run) {
    static const char script[] =
        "import sys\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "a = EventAccumulator(sys.argv[1]); a.Reload()\n"
        "p = [(s.step, s.value) for s in a.Scalars('train/loss')]\n"
        "e = [(i, 4 / (i + 1)) for i in range(6)] + [(i, 8 / (i + 1)) for i in range(6, 12)]\n"
        "assert [s for s, _ in p] == [s for s, _ in e], p\n"
        "assert all(abs(v - w) < 1e-6 for (_, v), (_, w) in zip(p, e)), p\n"
        "assert sorted(a.Tags()['scalars']) == ['eval/loss', 'train/loss', 'train/num_tokens'], a.Tags()\n";
    const char *python = getenv("CRIA_PYTHON");
    char command[4096];
    if (!python) {
        printf("skipped: TensorBoard's own reader (CRIA_PYTHON names a Python that has it)\n");
        return;
    }
    char *directory = scratch();
    MetricsWriter *writer;
    CHECK_OK(metrics_open(&writer, directory, 0));
    write_steps(writer, 0, 10, 4.0);
    metrics_close(writer);
    CHECK_OK(metrics_open(&writer, directory, 6));
    write_steps(writer, 6, 12, 8.0);
    metrics_close(writer);
    char *path = path_join(directory, "check.py");
    CHECK_OK(file_write_atomic(path, script, sizeof script - 1));
    snprintf(command, sizeof command, "%s %s %s/tensorboard", python, path, directory);
    ck_assert_int_eq(system(command), 0);
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

/* Some containers and chroots have no /dev/pts. */
static bool terminals_exist(void) {
    int reader, writer;
    if (openpty(&reader, &writer, NULL, NULL, NULL) != 0) {
        printf("skipped: no terminal can be opened here (openpty: %s)\n", strerror(errno));
        return false;
    }
    close(reader);
    close(writer);
    return true;
}

/* Runs `body` in a child whose stderr is a terminal of `columns` (0: a pipe); returns what it wrote there. */
static char *stderr_of(void (*body)(void), unsigned short columns, char *out, size_t size) {
    int reader, writer;
    if (columns) {
        struct winsize window = {.ws_row = 24, .ws_col = columns};
        ck_assert_int_eq(openpty(&reader, &writer, NULL, NULL, &window), 0);
    } else {
        int ends[2];
        ck_assert_int_eq(pipe(ends), 0);
        reader = ends[0];
        writer = ends[1];
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(writer, STDERR_FILENO);
        body();
        _exit(0);
    }
    close(writer);
    size_t used = 0;
    ssize_t n;
    while (used + 1 < size && (n = read(reader, out + used, size - 1 - used)) > 0) used += (size_t)n;
    out[used] = '\0';
    close(reader);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    return out;
}

static void show_progress(void) {
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    Progress progress;
    progress_begin(&progress, "training", "steps", 0, 2000);
    progress_draw(&progress, 700, "loss 2.134");
    for (int i = 701; i < 2000; i++) progress_update(&progress, i, "too early");
    log_info("a line between");
    progress_draw(&progress, 1000, "loss 2.000");
    progress_end(&progress);
    log_info("after the end");
}

static void show_training(void) {
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    Progress progress;
    progress_begin(&progress, "training", "steps", 0, 2000);
    progress_draw(&progress, 700, "loss 2.1346 · 41,203 tok/s · 312.50 MiB");
    progress_end(&progress);
}

START_TEST(the_live_line_is_redrawn_in_place_and_gives_way_to_log_lines) {
    static char out[65536];
    if (!terminals_exist()) return;
    stderr_of(show_progress, 120, out, sizeof out);
    ck_assert_ptr_eq(strstr(out, "\rtraining ━━━━━━━┄┄┄┄┄┄┄┄┄┄┄┄┄  35% 700/2,000 steps · loss 2.134 · "), out);
    ck_assert_ptr_nonnull(strstr(out, " left\033[K\r\033[Ka line between\r\n\rtraining ━"));
    ck_assert_ptr_nonnull(strstr(out, "loss 2.000 · "));
    ck_assert_ptr_nonnull(strstr(out, "\r\033[Kafter the end\r\n"));
    ck_assert_ptr_null(strstr(out, "too early")); /* within a tenth of a second */
}
END_TEST

START_TEST(the_live_line_fits_a_narrow_terminal) {
    static char out[65536];
    if (!terminals_exist()) return;
    stderr_of(show_progress, 30, out, sizeof out);
    ck_assert_ptr_eq(strstr(out, "\r━━┄┄┄┄ 700/2,000 steps · loss\033[K"), out); /* 29 columns */
    stderr_of(show_training, 80, out, sizeof out);
    ck_assert_ptr_eq(strstr(out, "\r━━┄┄┄┄ 700/2,000 steps · loss 2.1346 · 41,203 tok/s · "), out);
    ck_assert_ptr_nonnull(strstr(out, " left\033[K")); /* nothing is cut at 80 columns */
}
END_TEST

START_TEST(a_file_gets_plain_lines_without_control_characters) {
    static char out[65536];
    stderr_of(show_progress, 0, out, sizeof out);
    ck_assert_ptr_eq(strstr(out, "training  35% 700/2,000 steps · loss 2.134 · "), out);
    ck_assert_ptr_null(strchr(out, '\033'));
    ck_assert_ptr_null(strchr(out, '\r'));
    ck_assert_ptr_null(strstr(out, "too early"));
}
END_TEST

START_TEST(training_details_show_loss_speed_and_memory) {
    char details[128];
    setenv("LC_ALL", "C", 1);
    progress_training_details(details, sizeof details, 2.13456, 41203.7);
    ck_assert_ptr_eq(strstr(details, "loss 2.1346, 41,203 tok/s, "), details);
    progress_training_details(details, sizeof details, NAN, NAN);
    ck_assert_ptr_eq(strstr(details, "loss nan, 0 tok/s, "), details);
}
END_TEST

/* Columns of the widest line; and every line is measured. */
static int widest(const char *text, int *lines) {
    int most = 0, now = 0;
    *lines = 0;
    for (const char *at = text; *at; at++) {
        if (*at == '\n') {
            most = now > most ? now : most;
            now = 0;
            ++*lines;
        } else if (((unsigned char)*at & 0xc0) != 0x80) {
            now++;
        }
    }
    return most;
}

START_TEST(the_curve_fits_and_falls_when_the_loss_falls) {
    enum { N = 5000 };
    static double x[N], y[N];
    for (int i = 0; i < N; i++) {
        x[i] = i;
        y[i] = 1 + 3 * exp(-i / 500.0);
    }
    y[100] = NAN;
    Text out = {0};
    int lines;
    curve_draw(&out, "loss", &(CurveSeries){x, y, N}, NULL, CURVE_WIDTH, CURVE_HEIGHT, true);
    ck_assert_int_le(widest(out.bytes, &lines), CURVE_WIDTH);
    ck_assert_int_eq(lines, CURVE_HEIGHT + 3);
    text_clear(&out);
    curve_draw(&out, "loss", &(CurveSeries){x, y, N}, &(CurveSeries){(double[]){2500}, (double[]){3.5}, 1}, 40, 6,
               false);
    ck_assert_int_eq(widest(out.bytes, &lines), 40);
    /* the first row has the beginning, the last row the end, the mark stands alone */
    const char *first = strchr(out.bytes, '|') + 1, *last = strrchr(out.bytes, '|') + 1;
    ck_assert_int_eq(*first, '*');
    ck_assert_int_eq(last[30], '*');
    ck_assert_int_eq(*last, ' ');
    ck_assert_ptr_nonnull(strchr(first, 'o'));
    ck_assert_ptr_nonnull(strstr(out.bytes, "4999"));
    text_free(&out);
}
END_TEST

START_TEST(the_curve_survives_any_points) {
    static const double odd[][4] = {
        {1, 1, 1, 1}, {NAN, NAN, NAN, NAN}, {INFINITY, -INFINITY, 0, 1}, {1e308, -1e308, 0, 1}, {0, 0, 5e-324, 0}};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        for (size_t n = 0; n <= 4; n++)
            for (int width = -1; width < 100; width += 25) {
                Text out = {0};
                curve_draw(&out, "t", &(CurveSeries){odd[i], odd[(i + 1) % 5], n}, NULL, width, width / 8, i % 2 == 0);
                ck_assert(out.length > 2 && !out.failed);
                text_free(&out);
            }
}
END_TEST

START_TEST(the_first_signal_asks_and_a_second_ctrl_c_ends) {
    for (int second = 0; second < 2; second++) {
        pid_t child = fork();
        if (child == 0) {
            interrupt_install(NULL);
            if (interrupt_requested()) _exit(10);
            raise(second ? SIGINT : SIGTERM);
            if (!interrupt_requested() || strcmp(interrupt_name(), second ? "SIGINT" : "SIGTERM") != 0) _exit(11);
            raise(SIGINT);
            _exit(second ? 12 : 0); /* after SIGTERM, one Ctrl-C is still the first */
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFEXITED(status));
        ck_assert_int_eq(WEXITSTATUS(status), second ? ERR_FAILED : 0); /* 130 would promise a checkpoint */
    }
}
END_TEST

/* nohup(1) begins a program with SIGHUP ignored. */
START_TEST(a_closed_terminal_asks_unless_nohup_has_it_ignored) {
    for (int ignored = 0; ignored < 2; ignored++) {
        pid_t child = fork();
        if (child == 0) {
            signal(SIGHUP, ignored ? SIG_IGN : SIG_DFL);
            interrupt_install(NULL);
            raise(SIGHUP);
            if (interrupt_requested() == (ignored == 1)) _exit(10);
            interrupt_restore();
            struct sigaction after;
            sigaction(SIGHUP, NULL, &after);
            _exit(after.sa_handler == (ignored ? SIG_IGN : SIG_DFL) ? 0 : 11);
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFEXITED(status));
        ck_assert_int_eq(WEXITSTATUS(status), 0);
    }
}
END_TEST

START_TEST(memory_is_counted_when_it_is_touched) {
    /* proc(5): "some of these values are inaccurate", since each CPU and thread counts pages in batches. */
    enum { SIZE = 32 << 20, BATCHES = 1 << 20 };
    MemoryUse before = memory_use();
    ck_assert(before.resident > 0 && before.peak >= before.resident);
    char *block = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i += 4096) ((volatile char *)block)[i] = 1;
    MemoryUse during = memory_use();
    ck_assert_uint_ge(during.anonymous, before.anonymous + SIZE - BATCHES);
    ck_assert_uint_le(during.anonymous, before.anonymous + SIZE + (8 << 20));
    free(block);
    MemoryUse after = memory_use();
    ck_assert_uint_ge(after.peak, before.resident + SIZE - BATCHES);
}
END_TEST

CHECK_MAIN("metrics", a_line_is_one_json_object_with_all_digits, a_resumed_run_replaces_the_steps_it_repeats,
           opening_again_without_loss_rewrites_nothing, event_files_are_framed_records,
           tensorboard_reads_the_resumed_run, the_live_line_is_redrawn_in_place_and_gives_way_to_log_lines,
           the_live_line_fits_a_narrow_terminal, a_file_gets_plain_lines_without_control_characters,
           training_details_show_loss_speed_and_memory, the_curve_fits_and_falls_when_the_loss_falls,
           the_curve_survives_any_points, the_first_signal_asks_and_a_second_ctrl_c_ends,
           a_closed_terminal_asks_unless_nohup_has_it_ignored, memory_is_counted_when_it_is_touched)
