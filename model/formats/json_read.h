/* Reading JSON with errors that name the file and the key. An absent key and null both leave *value as it was. */
#ifndef CRIA_FORMATS_JSON_READ_H
#define CRIA_FORMATS_JSON_READ_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Parses an object; json_decref it. `name` is for messages, here and below. */
int json_read_object(json_t **object, const char *json, size_t size, const char *name);

int json_read_int(int64_t *value, const json_t *object, const char *key, int64_t min, int64_t max, const char *name);
int json_read_int32(int *value, const json_t *object, const char *key, int min, int max, const char *name);
int json_read_number(double *value, const json_t *object, const char *key, const char *name);
int json_read_bool(bool *value, const json_t *object, const char *key, const char *name);
/* The text lives as long as the object. */
int json_read_text(const char **value, const json_t *object, const char *key, const char *name);

/* malloc'd text with sorted keys, indented, every real in the fewest digits that read back as the same double. */
int json_write_text(char **text, const json_t *object);

#endif
