/* What the readers in this room share: the inside of a NamedFile. */
#ifndef CRIA_FORMATS_NAMED_FILE_H
#define CRIA_FORMATS_NAMED_FILE_H

#include "model/formats/named.h"

struct NamedFile {
    Arena arena; /* names, texts, paths */
    const char *path, *format;
    NamedArray *arrays;
    size_t n, capacity;
    size_t *slots; /* open addressing on the name's hash; index + 1, 0 is empty */
    size_t n_slots;
    NamedText *texts;
    size_t n_texts, texts_capacity;
    /* Reads arrays whose data is NULL; [first, first + n) was checked. */
    int (*read)(const NamedFile *file, const NamedArray *array, size_t first, size_t n, void *out);
    void (*close)(void *state);
    void *state;
};

int named_file_new(NamedFile **file, const char *format, const char *path);
/* Adds an array (its name is copied) after named_check. */
int named_file_add(NamedFile *file, const NamedArray *array);
int named_file_add_text(NamedFile *file, const char *key, const char *value);
/* Makes names findable; refuses a name that occurs twice. Called once, after the last add. */
int named_file_finish(NamedFile *file);

#endif
