/* Records of a source: which files a path means, and the texts in them, one at a time. */
#ifndef CRIA_DATA_SOURCE_H
#define CRIA_DATA_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/input.h"

/* The files behind a path, sorted bytewise: the file itself; what a glob matches; or, of a directory, every file within
 * (at any depth; names that begin with a dot excepted) that ends in .txt, .jsonl, .ndjson or .json, each also with .gz
 * or .zst. Having none is an error. Free with names_free (model/core/file.h). */
int source_files(char ***paths, size_t *n, const char *path);

/* Whether a name means JSONL (.jsonl, .ndjson, .json, also compressed); anything else is plain text. */
bool source_is_jsonl(const char *path);

typedef struct {
    char *const *paths; /* the caller's; must outlive the reader */
    size_t n_paths;
    const char *field;     /* JSONL: the key that holds the text; NULL: "text" */
    const char *separator; /* plain text: what ends a document; NULL or "": a file is one document */
    bool fail_on_error;    /* else a bad record is counted, reported and left out */
    bool whole;            /* every file is JSONL, or one JSON array of objects; a record's text is the object's bytes,
                              which nobody has parsed yet */
} RecordOptions;

typedef struct {
    const char *text; /* `size` bytes, not NUL-terminated; the reader's, valid until the next call */
    size_t size;
    const char *path;
    int64_t line;   /* where it begins, from 1 */
    int64_t number; /* of an array's elements, from 1: a line may hold many; 0: it is of no array */
} Record;

enum { RECORD_NUMBER_SIZE = 40 };
/* What a message about a record has behind its line: "record 17: ", or "" of a record that is of no array. Returns out.
 */
const char *record_number_text(char out[RECORD_NUMBER_SIZE], int64_t number);

typedef struct RecordReader RecordReader;

int records_open(RecordReader **reader, const RecordOptions *options);
void records_close(RecordReader *reader);

/* The next record, in the order of the files; *found is false at the end. Bad records (a line that is not one JSON
 * object, a field that is absent or no string, text that is not UTF-8; compressed data that is damaged or cut short,
 * which ends its file; an array that does not end) are ERR_REFUSED with file and line, or left out; a caller may go on
 * with the next. Memory: one record, and a read buffer. */
int records_next(RecordReader *reader, Record *record, bool *found);

int64_t records_skipped(const RecordReader *reader);
uint64_t records_bytes_read(const RecordReader *reader);
/* [n_paths], of the bytes that were read; whole once records_next has found the end. */
const FileStamp *records_stamps(const RecordReader *reader);

#endif
