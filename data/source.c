/* Plain text and JSONL (one JSON object per line, RFC 8259; blank lines are passed over) are both "pieces of a stream
 * that end with a delimiter": the newline, the separator, or the end of the file. A piece is found in a buffer that
 * grows to the longest one. The elements of a JSON array are found by counting brackets outside strings. */
#include "data/source.h"
#include "data/json_doc.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    READ_SIZE = 256 * 1024,
    MAX_DEPTH = 32,           /* of folders in folders: a loop of links ends here */
    MAX_REPORTED_SKIPS = 5,   /* bad records shown one by one; the rest are only counted */
    MAX_KEPT_BUFFER = 1 << 24 /* a buffer that a giant record left behind is given back */
};

struct RecordReader {
    RecordOptions options;
    size_t next_path; /* of the file to open after this one */
    Input *input;     /* NULL between files */
    const char *path; /* of `input` */
    bool is_jsonl;
    int64_t line; /* number of the line at `begin` */
    char *buffer; /* bytes begin..end are read but not yet taken */
    size_t begin, end, capacity;
    bool in_array;      /* `begin` is inside a JSON array */
    int64_t n_elements; /* of it so far */
    bool at_end;        /* of the file's bytes */
    bool is_broken;     /* the file's bytes end in damage */
    JsonDoc json;       /* of a line; the record handed out points into it */
    int64_t n_skipped;
    uint64_t bytes_done; /* of the files before this one */
    FileStamp *stamps;
};

/* ---- which files ------------------------------------------------------------------------------------------------ */

static size_t stem_length(const char *path) {
    size_t n = strlen(path);
    if (text_ends_with(path, ".gz")) return n - 3;
    if (text_ends_with(path, ".zst")) return n - 4;
    return n;
}

static bool stem_ends_with(const char *path, const char *ending) {
    size_t n = stem_length(path), m = strlen(ending);
    return n >= m && memcmp(path + n - m, ending, m) == 0;
}

bool source_is_jsonl(const char *path) {
    return stem_ends_with(path, ".jsonl") || stem_ends_with(path, ".ndjson") || stem_ends_with(path, ".json");
}

static int add_path(char ***paths, size_t *n, char *path) {
    char **grown = realloc(*paths, (*n + 1) * sizeof *grown);
    if (!grown) {
        free(path);
        FAIL(ERR_FAILED, "out of memory");
    }
    *paths = grown;
    grown[(*n)++] = path;
    return OK;
}

static int add_directory(char ***paths, size_t *n, const char *directory, int depth) {
    int rc = OK;
    char **names, *path = NULL;
    size_t n_names;
    if (depth > MAX_DEPTH)
        FAIL(ERR_REFUSED, "%s: more than %d folders deep; is there a link in a circle?", directory, MAX_DEPTH);
    TRY(directory_list(&names, &n_names, directory));
    for (size_t i = 0; i < n_names; i++) {
        if (names[i][0] == '.') continue;
        path = path_join(directory, names[i]);
        if (!path) FAIL_TO(done, ERR_FAILED, "out of memory");
        if (directory_exists(path)) {
            TRY_TO(done, add_directory(paths, n, path, depth + 1));
        } else if (source_is_jsonl(path) || stem_ends_with(path, ".txt")) {
            char *owned = path;
            path = NULL;
            TRY_TO(done, add_path(paths, n, owned));
        }
        free(path);
        path = NULL;
    }
done:
    free(path);
    names_free(names, n_names);
    return rc;
}

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int source_files(char ***paths, size_t *n, const char *path) {
    int rc = OK;
    char **matches = NULL;
    size_t n_matches = 0;
    *paths = NULL;
    *n = 0;
    if (directory_exists(path)) {
        TRY_TO(done, add_directory(paths, n, path, 0));
    } else if (file_exists(path)) { /* before globbing: a name may contain brackets */
        char *copy = strdup(path);
        if (!copy) FAIL_TO(done, ERR_FAILED, "out of memory");
        TRY_TO(done, add_path(paths, n, copy));
    } else {
        TRY_TO(done, glob_list(&matches, &n_matches, path));
        for (size_t i = 0; i < n_matches; i++) {
            if (directory_exists(matches[i])) {
                TRY_TO(done, add_directory(paths, n, matches[i], 0));
                continue;
            }
            char *owned = matches[i];
            matches[i] = NULL;
            TRY_TO(done, add_path(paths, n, owned));
        }
    }
    if (*n == 0)
        FAIL_TO(done, ERR_REFUSED, "%s: no file in it ends in .txt, .jsonl, .ndjson or .json (also .gz, .zst)", path);
    qsort(*paths, *n, sizeof **paths, compare_paths);
done:
    names_free(matches, n_matches);
    if (rc != OK) {
        names_free(*paths, *n);
        *paths = NULL;
        *n = 0;
    }
    return rc;
}

/* ---- opening and closing ---------------------------------------------------------------------------------------- */

int records_open(RecordReader **out, const RecordOptions *options) {
    *out = NULL;
    RecordReader *reader = calloc(1, sizeof *reader);
    if (!reader) FAIL(ERR_FAILED, "out of memory");
    reader->options = *options;
    if (!options->field) reader->options.field = "text";
    if (options->separator && !*options->separator) reader->options.separator = NULL;
    reader->stamps = calloc(options->n_paths + 1, sizeof *reader->stamps);
    if (!reader->stamps) {
        records_close(reader);
        FAIL(ERR_FAILED, "out of memory");
    }
    *out = reader;
    return OK;
}

void records_close(RecordReader *reader) {
    if (!reader) return;
    input_close(reader->input);
    json_doc_free(&reader->json);
    free(reader->buffer);
    free(reader->stamps);
    free(reader);
}

int64_t records_skipped(const RecordReader *reader) {
    return reader->n_skipped;
}
uint64_t records_bytes_read(const RecordReader *reader) {
    return reader->bytes_done + (reader->input ? input_position(reader->input) : 0);
}
const FileStamp *records_stamps(const RecordReader *reader) {
    return reader->stamps;
}

static int open_next(RecordReader *reader) {
    reader->path = reader->options.paths[reader->next_path];
    reader->is_jsonl = reader->options.whole || source_is_jsonl(reader->path);
    reader->line = 1;
    reader->begin = reader->end = 0;
    reader->at_end = reader->is_broken = reader->in_array = false;
    reader->n_elements = 0;
    return input_open(&reader->input, reader->path);
}

static int finish_file(RecordReader *reader) {
    TRY(input_finish(reader->input, &reader->stamps[reader->next_path]));
    reader->bytes_done += reader->stamps[reader->next_path].size;
    input_close(reader->input);
    reader->input = NULL;
    reader->next_path++;
    if (reader->capacity > MAX_KEPT_BUFFER) {
        free(reader->buffer);
        reader->buffer = NULL;
        reader->capacity = 0;
    }
    return OK;
}

/* ---- pieces of a stream ----------------------------------------------------------------------------------------- */

/* Makes room for READ_SIZE bytes more and reads. */
static int read_more(RecordReader *reader) {
    if (reader->begin > 0 && reader->begin >= reader->end / 2) { /* moves each byte a bounded number of times */
        memmove(reader->buffer, reader->buffer + reader->begin, reader->end - reader->begin);
        reader->end -= reader->begin;
        reader->begin = 0;
    }
    if (reader->capacity - reader->end < READ_SIZE) {
        size_t capacity = 2 * reader->capacity + READ_SIZE;
        char *grown = capacity > reader->capacity ? realloc(reader->buffer, capacity) : NULL;
        if (!grown)
            FAIL(ERR_FAILED, "%s:%lld: out of memory: a record of more than %zu bytes", reader->path,
                 (long long)reader->line, reader->end - reader->begin);
        reader->buffer = grown;
        reader->capacity = capacity;
    }
    size_t n;
    TRY(input_read(reader->input, reader->buffer + reader->end, reader->capacity - reader->end, &n));
    reader->end += n;
    reader->at_end = n == 0;
    return OK;
}

/* The bytes up to the next delimiter (NULL: the end of the file), which is taken too. *found is false when nothing is
 * left. */
static int next_piece(RecordReader *reader, const char *delimiter, size_t *size, size_t *taken, bool *found) {
    size_t width = delimiter ? strlen(delimiter) : 0, searched = 0;
    for (;;) {
        size_t n = reader->end - reader->begin;
        if (width && n >= width) {
            size_t from = searched >= width ? searched - width + 1 : 0;
            const char *begin = reader->buffer + reader->begin;
            const char *hit = memmem(begin + from, n - from, delimiter, width);
            if (hit) {
                *size = (size_t)(hit - begin);
                *taken = *size + width;
                *found = true;
                return OK;
            }
            searched = n;
        }
        if (reader->at_end) {
            *size = *taken = n;
            *found = n > 0;
            return OK;
        }
        TRY(read_more(reader));
    }
}

static int64_t count_newlines(const char *p, size_t n) {
    int64_t count = 0;
    for (const char *end = p + n; p < end && (p = memchr(p, '\n', (size_t)(end - p))); p++) count++;
    return count;
}

/* ---- records ---------------------------------------------------------------------------------------------------- */

/* The text of one line of JSONL. */
static int parse_line(RecordReader *reader, const char *line, size_t size, Record *record) {
    const char *field = reader->options.field;
    long long number = (long long)record->line;
    int rc = json_doc_read(&reader->json, line, size);
    if (rc != OK) return error_context(rc, "%s:%lld: not a JSON object", record->path, number);
    const JsonNode *root = reader->json.nodes, *value = json_node_member(root, field);
    if (!json_node_is(root, NODE_OBJECT))
        FAIL(ERR_REFUSED, "%s:%lld: %s was found where each line must be one JSON object", record->path, number,
             json_node_type_name(root));
    if (!value)
        FAIL(ERR_REFUSED, "%s:%lld: no field \"%s\"; set `field` to the key that holds the text", record->path, number,
             field);
    if (!json_node_is(value, NODE_STRING))
        FAIL(ERR_REFUSED, "%s:%lld: field \"%s\" is %s, not a string", record->path, number, field,
             json_node_type_name(value));
    record->text = value->bytes;
    record->size = value->size;
    return OK;
}

static bool is_blank(const char *line, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strchr(" \t\r\n", line[i]) || !line[i]) return false;
    return true;
}

/* ---- elements of a JSON array ------------------------------------------------------------------------------------
 */

/* Skips white space, and commas in an array; *c is the next character, or 0 at the end of the file. */
static int next_character(RecordReader *reader, char *c) {
    static const char byte_order_mark[] = "\xef\xbb\xbf";
    for (;; reader->begin++) {
        while (reader->begin == reader->end && !reader->at_end) TRY(read_more(reader));
        if (reader->begin == reader->end) {
            *c = 0;
            return OK;
        }
        *c = reader->buffer[reader->begin];
        bool skipped = strchr(reader->in_array ? " \t\r\n," : " \t\r\n", *c) && *c;
        bool is_mark = !reader->in_array && memchr(byte_order_mark, *c, sizeof byte_order_mark - 1);
        if (!skipped && !is_mark) return OK;
        reader->line += *c == '\n';
    }
}

/* The value that begins at `begin`: *size bytes, *lines newlines in it. A string or a bare word is a value too (and no
 * record, as its parser will say); *closed is false where the file ends within it. */
static int measure_value(RecordReader *reader, size_t *size, int64_t *lines, bool *closed) {
    size_t at = 0;
    int64_t depth = 0;
    bool in_string = false;
    *lines = 0;
    *closed = false;
    for (;; at++) {
        while (reader->begin + at == reader->end && !reader->at_end) TRY(read_more(reader));
        *size = at;
        if (reader->begin + at == reader->end) return OK;
        char c = reader->buffer[reader->begin + at];
        if (depth == 0 && !in_string && (c == ',' || c == ']')) break;
        *lines += c == '\n';
        if (in_string && c == '\\') {
            at++; /* whatever follows; a file that ends here is seen above */
            while (reader->begin + at >= reader->end && !reader->at_end) TRY(read_more(reader));
            if (reader->begin + at >= reader->end) return OK;
            *lines += reader->buffer[reader->begin + at] == '\n';
        } else if (c == '"') {
            in_string = !in_string;
        } else if (!in_string) {
            depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        }
    }
    *closed = true;
    return OK;
}

const char *record_number_text(char out[RECORD_NUMBER_SIZE], int64_t number) {
    *out = '\0';
    if (number > 0) snprintf(out, RECORD_NUMBER_SIZE, "record %lld: ", (long long)number);
    return out;
}

static int next_element(RecordReader *reader, Record *record, bool *found) {
    char c;
    *found = false;
    TRY(next_character(reader, &c));
    if (c == ']') {
        reader->begin++;
        reader->in_array = false;
        TRY(next_character(reader, &c));
        if (c == 0) return OK;
        reader->is_broken = true;
        FAIL(ERR_REFUSED, "%s:%lld: '%c' follows the end of the JSON array", reader->path, (long long)reader->line, c);
    }
    size_t size = 0;
    int64_t lines = 0;
    bool closed = false;
    *record = (Record){.path = reader->path, .line = reader->line, .number = ++reader->n_elements};
    if (c) TRY(measure_value(reader, &size, &lines, &closed));
    if (!closed) {
        reader->is_broken = true;
        FAIL(ERR_REFUSED, "%s:%lld: the file ends here, within its JSON array; is it cut short, or is a quote missing?",
             reader->path, (long long)record->line);
    }
    record->text = reader->buffer + reader->begin;
    record->size = size;
    reader->begin += size;
    reader->line += lines;
    *found = true;
    return OK;
}

/* ---- lines and documents ------------------------------------------------------------------------------------------
 */

/* Whether the file is one JSON array, by its first character. */
static int find_array(RecordReader *reader) {
    char c;
    if (!reader->options.whole || reader->begin > 0 || reader->end > 0) return OK;
    TRY(next_character(reader, &c));
    if (c != '[') return OK;
    reader->begin++;
    reader->in_array = true;
    return OK;
}

/* The next record of this file; *found is false at its end. ERR_REFUSED: a bad one, which is passed over. */
static int next_in_file(RecordReader *reader, Record *record, bool *found) {
    static const char byte_order_mark[] = "\xef\xbb\xbf";
    int begun = find_array(reader);
    if (begun == OK && reader->in_array) begun = next_element(reader, record, found);
    if (begun == ERR_REFUSED && !reader->is_broken) { /* the compressed bytes */
        reader->is_broken = true;
        return error_context(begun, "%s:%lld", reader->path, (long long)reader->line);
    }
    TRY(begun);
    if (reader->in_array || reader->is_broken) return OK;
    for (;;) {
        size_t size = 0, taken = 0;
        int rc = next_piece(reader, reader->is_jsonl ? "\n" : reader->options.separator, &size, &taken, found);
        if (rc == ERR_REFUSED) {
            reader->is_broken = true;
            return error_context(rc, "%s:%lld", reader->path, (long long)reader->line);
        }
        TRY(rc);
        if (!*found) return OK;
        const char *piece = reader->buffer + reader->begin;
        *record = (Record){.text = piece, .size = size, .path = reader->path, .line = reader->line};
        reader->line += reader->is_jsonl ? 1 : count_newlines(piece, taken);
        reader->begin += taken;
        if (!reader->is_jsonl) return OK;
        if (record->line == 1 && size >= 3 && memcmp(piece, byte_order_mark, 3) == 0) {
            piece += 3;
            size -= 3;
        }
        if (is_blank(piece, size)) continue;
        if (reader->options.whole) {
            record->text = piece;
            record->size = size;
            return OK;
        }
        return parse_line(reader, piece, size, record);
    }
}

static void report_skip(RecordReader *reader) {
    reader->n_skipped++;
    if (reader->n_skipped <= MAX_REPORTED_SKIPS) log_warning("skipped: %s", error_text());
    if (reader->n_skipped == MAX_REPORTED_SKIPS) log_warning("further bad records are only counted");
    error_clear();
}

int records_next(RecordReader *reader, Record *record, bool *found) {
    *found = false;
    *record = (Record){0};
    while (reader->next_path < reader->options.n_paths) {
        if (!reader->input) TRY(open_next(reader));
        if (reader->is_broken) {
            TRY(finish_file(reader));
            continue;
        }
        int rc = next_in_file(reader, record, found);
        if (rc == OK && *found) return OK;
        if (rc != OK) {
            *record = (Record){.path = reader->path, .line = record->line ? record->line : reader->line};
            if (rc != ERR_REFUSED || reader->options.fail_on_error) return error_trace(rc, __FILE__, __LINE__);
            report_skip(reader);
            *found = false;
            if (!reader->is_broken) continue; /* the next line may be good */
        }
        TRY(finish_file(reader));
    }
    return OK;
}
