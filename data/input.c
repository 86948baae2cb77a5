/* Streaming reads through zlib and libzstd. The file's own bytes pass through one place, fill(), which also takes
 * their CRC32C: the stamp in a cache is that of the very bytes that were tokenised. */
#include "data/input.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum { RAW_SIZE = 256 * 1024, GZIP_WINDOW = 15 + 16 /* the largest window; a gzip header is required */ };

typedef enum { INPUT_PLAIN, INPUT_GZIP, INPUT_ZSTD } InputKind;

struct Input {
    InputKind kind;
    int fd;
    char *path;
    FileStamp stamp;
    unsigned char *raw; /* [RAW_SIZE]; bytes raw_begin..raw_end are not yet decompressed */
    size_t raw_begin, raw_end;
    bool at_end;    /* of the file */
    bool in_member; /* inside a gzip member or zstd frame: the file must not end here */
    z_stream gzip;
    bool gzip_ready;
    ZSTD_DCtx *zstd;
};

static int64_t nanoseconds(struct timespec time) {
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void stamp_from_status(FileStamp *stamp, const struct stat *status) {
    *stamp = (FileStamp){.size = (uint64_t)status->st_size,
                         .modified = nanoseconds(status->st_mtim),
                         .changed = nanoseconds(status->st_ctim)};
}

int file_stamp(FileStamp *stamp, const char *path) {
    struct stat status;
    if (stat(path, &status) != 0) FAIL(ERR_FAILED, "%s: stat: %s", path, strerror(errno));
    stamp_from_status(stamp, &status);
    return OK;
}

static int start(Input *input) {
    struct stat status;
    input->fd = open(input->path, O_RDONLY | O_CLOEXEC);
    if (input->fd < 0) FAIL(ERR_FAILED, "%s: open: %s", input->path, strerror(errno));
    if (fstat(input->fd, &status) != 0) FAIL(ERR_FAILED, "%s: stat: %s", input->path, strerror(errno));
    if (!S_ISREG(status.st_mode)) FAIL(ERR_REFUSED, "%s: not a regular file", input->path);
    stamp_from_status(&input->stamp, &status);
    input->stamp.size = 0; /* counted as it is read: the file may be growing */
    if (input->kind == INPUT_GZIP) {
        if (inflateInit2(&input->gzip, GZIP_WINDOW) != Z_OK) FAIL(ERR_FAILED, "%s: out of memory", input->path);
        input->gzip_ready = true;
    } else if (input->kind == INPUT_ZSTD) {
        input->zstd = ZSTD_createDCtx();
        if (!input->zstd) FAIL(ERR_FAILED, "%s: out of memory", input->path);
    }
    input->in_member = input->kind != INPUT_PLAIN; /* an empty file is no gzip or zstd file */
    return OK;
}

int input_open(Input **out, const char *path) {
    *out = NULL;
    Input *input = calloc(1, sizeof *input);
    if (!input) FAIL(ERR_FAILED, "out of memory");
    input->fd = -1;
    input->path = strdup(path);
    input->raw = malloc(RAW_SIZE);
    input->kind = text_ends_with(path, ".gz") ? INPUT_GZIP : text_ends_with(path, ".zst") ? INPUT_ZSTD : INPUT_PLAIN;
    int rc = input->path && input->raw ? start(input) : error_set(ERR_FAILED, __FILE__, __LINE__, "out of memory");
    if (rc != OK) {
        input_close(input);
        return error_trace(rc, __FILE__, __LINE__);
    }
    *out = input;
    return OK;
}

void input_close(Input *input) {
    if (!input) return;
    if (input->fd >= 0) close(input->fd);
    if (input->gzip_ready) inflateEnd(&input->gzip);
    ZSTD_freeDCtx(input->zstd);
    free(input->raw);
    free(input->path);
    free(input);
}

uint64_t input_position(const Input *input) {
    return input->stamp.size;
}

/* Up to `capacity` of the file's own bytes. */
static int fill(Input *input, void *out, size_t capacity, size_t *n) {
    ssize_t got;
    do got = read(input->fd, out, capacity);
    while (got < 0 && errno == EINTR);
    if (got < 0) FAIL(ERR_FAILED, "%s: read: %s", input->path, strerror(errno));
    *n = (size_t)got;
    input->at_end = got == 0;
    input->stamp.size += *n;
    input->stamp.crc = crc32c(input->stamp.crc, out, *n);
    return OK;
}

/* One call of zlib on what is in `raw`. */
static int inflate_some(Input *input, char *out, size_t capacity, size_t *n) {
    z_stream *gzip = &input->gzip;
    if (!input->in_member) {
        if (inflateReset(gzip) != Z_OK) FAIL(ERR_FAILED, "%s: zlib could not be reset", input->path);
        input->in_member = true;
    }
    uInt room = capacity > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uInt)capacity;
    gzip->next_in = input->raw + input->raw_begin;
    gzip->avail_in = (uInt)(input->raw_end - input->raw_begin);
    gzip->next_out = (unsigned char *)out;
    gzip->avail_out = room;
    int result = inflate(gzip, Z_NO_FLUSH);
    input->raw_begin = input->raw_end - gzip->avail_in;
    *n = room - gzip->avail_out;
    if (result == Z_MEM_ERROR) FAIL(ERR_FAILED, "%s: out of memory", input->path);
    if (result == Z_STREAM_END)
        input->in_member = false;
    else if (result != Z_OK && result != Z_BUF_ERROR)
        FAIL(ERR_REFUSED, "damaged gzip data before byte %llu: %s",
             (unsigned long long)(input->stamp.size - (input->raw_end - input->raw_begin)),
             gzip->msg ? gzip->msg : "not gzip");
    return OK;
}

/* One call of libzstd on what is in `raw`. Frames that want a window above libzstd's 128 MiB are refused by it. */
static int zstd_some(Input *input, char *out, size_t capacity, size_t *n) {
    ZSTD_inBuffer in = {input->raw + input->raw_begin, input->raw_end - input->raw_begin, 0};
    ZSTD_outBuffer room = {out, capacity, 0};
    size_t result = ZSTD_decompressStream(input->zstd, &room, &in);
    input->raw_begin += in.pos;
    *n = room.pos;
    if (ZSTD_isError(result))
        FAIL(ERR_REFUSED, "damaged zstd data before byte %llu: %s",
             (unsigned long long)(input->stamp.size - (input->raw_end - input->raw_begin)), ZSTD_getErrorName(result));
    input->in_member = result != 0; /* 0: a frame is complete and flushed */
    return OK;
}

int input_read(Input *input, char *out, size_t capacity, size_t *n) {
    *n = 0;
    if (input->kind == INPUT_PLAIN) return fill(input, out, capacity, n);
    for (;;) {
        bool starved = input->raw_begin == input->raw_end;
        if (starved && !input->at_end) {
            input->raw_begin = input->raw_end = 0;
            TRY(fill(input, input->raw, RAW_SIZE, &input->raw_end));
            starved = input->raw_end == 0;
        }
        if (starved && !input->in_member) return OK;
        /* even with no input left there may be output inside the decompressor */
        TRY(input->kind == INPUT_GZIP ? inflate_some(input, out, capacity, n) : zstd_some(input, out, capacity, n));
        if (*n) return OK;
        if (starved && input->in_member)
            FAIL(ERR_REFUSED, "cut short: the file ends at byte %llu in the middle of a %s",
                 (unsigned long long)input->stamp.size, input->kind == INPUT_GZIP ? "gzip member" : "zstd frame");
    }
}

int input_finish(Input *input, FileStamp *stamp) {
    while (!input->at_end) TRY(fill(input, input->raw, RAW_SIZE, &input->raw_end));
    input->raw_begin = input->raw_end = 0;
    *stamp = input->stamp;
    return OK;
}
