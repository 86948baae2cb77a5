/* A record (TensorFlow, core/lib/io/record_writer.cc):
 *
 *   uint64 length | uint32 masked CRC-32C of those 8 bytes | length bytes | uint32 masked CRC-32C of them
 *   masked(c) = rotate_right(c, 15) + 0xa282ead8; everything little-endian
 *
 * Its bytes are an Event (event.proto), in protocol buffers' wire format (field << 3 | wire type, then the value):
 *
 *   1 double wall_time · 2 int64 step · 3 string file_version · 5 Summary · 7 SessionLog
 *   Summary: 1 repeated Value; Value: 1 string tag, 2 float simple_value     SessionLog: 1 status (START = 1)
 *
 * The first event is the version "brain.Event:2"; a SessionLog START at step s makes TensorBoard purge what earlier
 * files say of steps from s on, which is how a resumed run replaces the steps it repeats. */
#include "train/console/events.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };
enum { EVENT_WALL_TIME = 1, EVENT_STEP = 2, EVENT_FILE_VERSION = 3, EVENT_SUMMARY = 5, EVENT_SESSION_LOG = 7 };
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE = 2, SESSION_STATUS = 1, SESSION_START = 1 };

struct EventFile {
    int fd;
    char *path;
};

static void put_little_endian(Text *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) {
        char byte = (char)(value >> (8 * i) & 0xff);
        text_append(out, &byte, 1);
    }
}

static void put_varint(Text *out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) put_little_endian(out, (value & 0x7f) | 0x80, 1);
    put_little_endian(out, value, 1);
}

static void put_key(Text *out, unsigned field, unsigned wire) {
    put_varint(out, field << 3 | wire);
}

static void put_bytes(Text *out, unsigned field, const void *bytes, size_t n) {
    put_key(out, field, WIRE_BYTES);
    put_varint(out, n);
    text_append(out, bytes, n);
}

static void put_double(Text *out, unsigned field, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(out, field, WIRE_FIXED64);
    put_little_endian(out, bits, 8);
}

static void put_float(Text *out, unsigned field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(out, field, WIRE_FIXED32);
    put_little_endian(out, bits, 4);
}

static uint32_t masked_crc(const void *bytes, size_t n) {
    uint32_t crc = crc32c(0, bytes, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static int write_record(EventFile *file, const Text *event) {
    Text record = {0};
    int rc = OK;
    TRY_TO(done, text_check(event));
    put_little_endian(&record, event->length, 8);
    put_little_endian(&record, masked_crc(record.bytes, record.failed ? 0 : 8), 4);
    text_append(&record, event->bytes, event->length);
    put_little_endian(&record, masked_crc(event->bytes, event->length), 4);
    TRY_TO(done, text_check(&record));
    if (write(file->fd, record.bytes, record.length) != (ssize_t)record.length)
        FAIL_TO(done, ERR_FAILED, "%s: write: %s", file->path, strerror(errno));
done:
    text_free(&record);
    return rc;
}

/* wall_time and step, which every event begins with. */
static void begin_event(Text *event, double wall_time, int64_t step) {
    put_double(event, EVENT_WALL_TIME, wall_time);
    put_key(event, EVENT_STEP, WIRE_VARINT);
    put_varint(event, (uint64_t)step);
}

static int write_header(EventFile *file, double wall_time, int64_t next_step) {
    static const char version[] = "brain.Event:2";
    Text event = {0}, session = {0};
    int rc = OK;
    put_double(&event, EVENT_WALL_TIME, wall_time);
    put_bytes(&event, EVENT_FILE_VERSION, version, sizeof version - 1);
    TRY_TO(done, write_record(file, &event));
    text_clear(&event);
    begin_event(&event, wall_time, next_step);
    put_key(&session, SESSION_STATUS, WIRE_VARINT);
    put_varint(&session, SESSION_START);
    put_bytes(&event, EVENT_SESSION_LOG, session.bytes, session.length);
    TRY_TO(done, write_record(file, &event));
done:
    text_free(&event);
    text_free(&session);
    return rc;
}

static int create(EventFile *file, const char *directory, double wall_time) {
    char host[128] = "localhost", name[256];
    gethostname(host, sizeof host - 1);
    for (int number = 0; number < 1000; number++) { /* names sort in the order of their making, within a second too */
        snprintf(name, sizeof name, "events.out.tfevents.%010lld.%03d.%s.%ld", (long long)wall_time, number, host,
                 (long)getpid());
        free(file->path);
        file->path = path_join(directory, name);
        if (!file->path) FAIL(ERR_FAILED, "out of memory for a path in %s", directory);
        file->fd = open(file->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (file->fd >= 0 || errno != EEXIST) break;
    }
    if (file->fd < 0) FAIL(ERR_FAILED, "%s: open: %s", file->path, strerror(errno));
    return OK;
}

int events_open(EventFile **out, const char *directory, int64_t next_step) {
    *out = NULL;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double wall_time = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    TRY(directory_make(directory));
    EventFile *file = calloc(1, sizeof *file);
    if (!file) FAIL(ERR_FAILED, "out of memory for an event file");
    file->fd = -1;
    int rc = OK;
    TRY_TO(failed, create(file, directory, wall_time));
    TRY_TO(failed, write_header(file, wall_time, next_step));
    *out = file;
    return OK;
failed:
    events_close(file);
    return rc;
}

int events_scalar(EventFile *file, int64_t step, double wall_time, const char *tag, double value) {
    Text event = {0}, summary = {0}, point = {0};
    put_bytes(&point, VALUE_TAG, tag, strlen(tag));
    put_float(&point, VALUE_SIMPLE, (float)value);
    put_bytes(&summary, SUMMARY_VALUE, point.bytes ? point.bytes : "", point.length);
    begin_event(&event, wall_time, step);
    put_bytes(&event, EVENT_SUMMARY, summary.bytes ? summary.bytes : "", summary.length);
    int rc = write_record(file, &event);
    text_free(&event);
    text_free(&summary);
    text_free(&point);
    return rc;
}

int events_sync(EventFile *file) {
    if (fsync(file->fd) != 0) FAIL(ERR_FAILED, "%s: fsync: %s", file->path, strerror(errno));
    return OK;
}

void events_close(EventFile *file) {
    if (!file) return;
    if (file->fd >= 0) close(file->fd);
    free(file->path);
    free(file);
}
