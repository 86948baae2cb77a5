/* Writing, reading and checking manifest.json; its form is in manifest.h. */
#include "model/formats/manifest.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"
#include "model/formats/json_read.h"

enum {
    VERSION = 1,
    MAX_NAME = 255,          /* of a file name, as in POSIX file systems */
    MAX_MANIFEST = 16 << 20, /* bytes; about 200,000 files */
    CRC_DIGITS = 8,
};
static const char format_name[] = "cria checkpoint";
static const char last_line[] = "  \"crc32c\": \"", closing[] = "\"\n}\n";

static bool name_is_plain(const char *name) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t n = strlen(name);
    return n > 0 && n <= MAX_NAME && strspn(name, allowed) == n && name[0] != '.' && strcmp(name, MANIFEST_NAME) != 0;
}

int manifest_add(Manifest *manifest, const char *name, const FileSum *sum) {
    if (!name_is_plain(name))
        FAIL(ERR_REFUSED,
             "'%.64s' cannot be in a manifest: a plain file name of letters, digits, '.', '_' and '-' is "
             "expected",
             name);
    if (manifest_find(manifest, name)) FAIL(ERR_REFUSED, "'%s' is in the manifest twice", name);
    ManifestFile *grown = realloc(manifest->files, (manifest->n + 1) * sizeof *grown);
    if (!grown) FAIL(ERR_FAILED, "out of memory");
    manifest->files = grown;
    grown[manifest->n] = (ManifestFile){strdup(name), *sum};
    if (!grown[manifest->n].name) FAIL(ERR_FAILED, "out of memory");
    manifest->n++;
    return OK;
}

const ManifestFile *manifest_find(const Manifest *manifest, const char *name) {
    for (size_t i = 0; i < manifest->n; i++)
        if (strcmp(manifest->files[i].name, name) == 0) return &manifest->files[i];
    return NULL;
}

void manifest_free(Manifest *manifest) {
    for (size_t i = 0; i < manifest->n; i++) free(manifest->files[i].name);
    free(manifest->files);
    *manifest = (Manifest){0};
}

/* ---- reading ---- */

static bool parse_crc(uint32_t *crc, const char *digits, size_t n) {
    if (n != CRC_DIGITS || strspn(digits, "0123456789abcdef") < CRC_DIGITS) return false;
    *crc = (uint32_t)strtoul(digits, NULL, 16);
    return true;
}

/* The manifest's own CRC32C, in its last line. */
static int check_own_crc(const char *bytes, size_t size, const char *path) {
    const size_t opening = sizeof last_line - 1, end = sizeof closing - 1, tail = opening + CRC_DIGITS + end;
    uint32_t stored = 0;
    char digits[CRC_DIGITS + 1] = "";
    const char *line = bytes + size - tail;
    if (size < tail || memcmp(line, last_line, opening) != 0 || memcmp(bytes + size - end, closing, end) != 0)
        FAIL(ERR_REFUSED, "%s: does not end with its own CRC32C: it is truncated or damaged", path);
    memcpy(digits, line + opening, CRC_DIGITS);
    if (!parse_crc(&stored, digits, strlen(digits)))
        FAIL(ERR_REFUSED, "%s: its own CRC32C is not 8 hexadecimal digits: it is damaged", path);
    uint32_t crc = crc32c(0, bytes, size - tail);
    if (crc != stored) FAIL(ERR_REFUSED, "%s: its CRC32C is %08x and it says %08x: it is damaged", path, crc, stored);
    return OK;
}

static int parse_files(Manifest *manifest, const json_t *root, const char *path) {
    const json_t *files = json_object_get(root, "files");
    if (!json_is_array(files)) FAIL(ERR_REFUSED, "%s: 'files' must be a list", path);
    for (size_t i = 0; i < json_array_size(files); i++) {
        const json_t *entry = json_array_get(files, i);
        const char *name = "", *digits = "";
        int64_t size = -1;
        FileSum sum;
        TRY(json_read_text(&name, entry, "name", path));
        TRY(json_read_text(&digits, entry, "crc32c", path));
        TRY(json_read_int(&size, entry, "size", 0, INT64_MAX, path));
        if (size < 0 || !parse_crc(&sum.crc32c, digits, strlen(digits)))
            FAIL(ERR_REFUSED, "%s: file %zu: expected {\"name\": …, \"size\": …, \"crc32c\": \"8 digits\"}", path, i);
        sum.size = (uint64_t)size;
        TRY(manifest_add(manifest, name, &sum));
    }
    return OK;
}

int manifest_parse(Manifest *manifest, const char *bytes, size_t size, const char *path) {
    int rc = OK;
    json_t *root;
    const char *format = "";
    int64_t version = 0;
    *manifest = (Manifest){.step = -1};
    TRY(check_own_crc(bytes, size, path));
    TRY(json_read_object(&root, bytes, size, path));
    TRY_TO(done, json_read_text(&format, root, "format", path));
    TRY_TO(done, json_read_int(&version, root, "version", 0, INT64_MAX, path));
    if (strcmp(format, format_name) != 0)
        FAIL_TO(done, ERR_REFUSED, "%s: 'format' is '%.32s'; '%s' is expected", path, format, format_name);
    if (version != VERSION)
        FAIL_TO(done, ERR_REFUSED, "%s: 'version' is %lld; this program reads version %d", path, (long long)version,
                VERSION);
    TRY_TO(done, json_read_int(&manifest->step, root, "step", 0, INT64_MAX, path));
    if (manifest->step < 0) FAIL_TO(done, ERR_REFUSED, "%s: 'step' is missing", path);
    TRY_TO(done, parse_files(manifest, root, path));
done:
    json_decref(root);
    if (rc != OK) manifest_free(manifest);
    return rc;
}

int manifest_read(Manifest *manifest, const char *directory) {
    char *bytes = NULL, *path = path_join(directory, MANIFEST_NAME);
    size_t size;
    *manifest = (Manifest){0};
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = file_read(&bytes, &size, path, MAX_MANIFEST);
    if (rc == OK) rc = manifest_parse(manifest, bytes, size, path);
    free(bytes);
    free(path);
    return rc;
}

/* ---- writing ---- */

static void format(Text *text, const Manifest *manifest) {
    text_printf(text, "{\n  \"format\": \"%s\",\n  \"version\": %d,\n  \"step\": %lld,\n  \"files\": [", format_name,
                VERSION, (long long)manifest->step);
    for (size_t i = 0; i < manifest->n; i++)
        text_printf(text, "%s\n    {\"name\": \"%s\", \"size\": %llu, \"crc32c\": \"%08x\"}", i ? "," : "",
                    manifest->files[i].name, (unsigned long long)manifest->files[i].sum.size,
                    manifest->files[i].sum.crc32c);
    text_puts(text, "\n  ],\n");
    if (!text->failed) text_printf(text, "%s%08x%s", last_line, crc32c(0, text->bytes, text->length), closing);
}

int manifest_write(const Manifest *manifest, const char *directory) {
    int rc = OK;
    Text text = {0};
    char *path = path_join(directory, MANIFEST_NAME);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    format(&text, manifest);
    TRY_TO(done, text_check(&text));
    TRY_TO(done, file_write_atomic(path, text.bytes, text.length));
done:
    free(path);
    text_free(&text);
    return rc;
}

/* ---- checking ---- */

static int check_path(const ManifestFile *file, const char *path, bool bytes) {
    FileSum found = {0};
    if (!file_exists(path)) FAIL(ERR_REFUSED, "%s: is missing", path);
    TRY(file_size(&found.size, path));
    if (found.size != file->sum.size)
        FAIL(ERR_REFUSED, "%s: has %llu bytes where its manifest says %llu: it is truncated or was replaced", path,
             (unsigned long long)found.size, (unsigned long long)file->sum.size);
    if (!bytes) return OK;
    TRY(file_crc32c(&found.crc32c, &found.size, path));
    if (found.crc32c != file->sum.crc32c)
        FAIL(ERR_REFUSED, "%s: its CRC32C is %08x where its manifest says %08x: it is damaged", path, found.crc32c,
             file->sum.crc32c);
    return OK;
}

static int check_file(const ManifestFile *file, const char *directory, bool bytes) {
    char *path = path_join(directory, file->name);
    if (!path) FAIL(ERR_FAILED, "out of memory");
    int rc = check_path(file, path, bytes);
    free(path);
    return rc;
}

int manifest_check_file(const ManifestFile *file, const char *directory) {
    TRY(check_file(file, directory, true));
    return OK;
}

static int check_files(const Manifest *manifest, const char *directory, bool bytes) {
    for (size_t i = 0; i < manifest->n; i++) TRY(check_file(&manifest->files[i], directory, bytes));
    return OK;
}

int manifest_check_sizes(const Manifest *manifest, const char *directory) {
    TRY(check_files(manifest, directory, false));
    return OK;
}

int manifest_check_bytes(const Manifest *manifest, const char *directory) {
    TRY(check_files(manifest, directory, true));
    return OK;
}
