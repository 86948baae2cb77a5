/* See gguf_output.h; gguf.h has the layout. */
#include "model/formats/gguf_output.h"

#include <string.h>

#include "model/formats/gguf_metadata.h"

static void put_little_endian(Text *out, uint64_t value, int n) {
    for (int i = 0; i < n; i++) text_append(out, &(char){(char)(value >> 8 * i & 0xff)}, 1);
}

void gguf_put_u32(Text *out, uint32_t value) {
    put_little_endian(out, value, 4);
}
void gguf_put_u64(Text *out, uint64_t value) {
    put_little_endian(out, value, 8);
}
void gguf_put_string(Text *out, const char *bytes, size_t length) {
    gguf_put_u64(out, length);
    text_append(out, bytes, length);
}

static void put_key(GgufOutput *out, const char *key, GgufType type) {
    gguf_put_string(&out->values, key, strlen(key));
    gguf_put_u32(&out->values, type);
    out->n_values++;
}

static void put_array(GgufOutput *out, const char *key, GgufType type, size_t n) {
    put_key(out, key, GGUF_ARRAY);
    gguf_put_u32(&out->values, type);
    gguf_put_u64(&out->values, n);
}

static void put_f32(Text *out, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    gguf_put_u32(out, bits);
}

void gguf_put_value_u32(GgufOutput *out, const char *key, uint32_t value) {
    put_key(out, key, GGUF_U32);
    gguf_put_u32(&out->values, value);
}

void gguf_put_value_f32(GgufOutput *out, const char *key, float value) {
    put_key(out, key, GGUF_F32);
    put_f32(&out->values, value);
}

void gguf_put_value_bool(GgufOutput *out, const char *key, bool value) {
    put_key(out, key, GGUF_BOOL);
    put_little_endian(&out->values, value, 1);
}

void gguf_put_value_text(GgufOutput *out, const char *key, const char *value) {
    put_key(out, key, GGUF_STRING);
    gguf_put_string(&out->values, value, strlen(value));
}

void gguf_put_texts(GgufOutput *out, const char *key, const TokenText *texts, size_t n) {
    put_array(out, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) gguf_put_string(&out->values, texts[i].bytes, texts[i].length);
}

void gguf_put_f32s(GgufOutput *out, const char *key, const float *values, size_t n) {
    put_array(out, key, GGUF_F32, n);
    for (size_t i = 0; i < n; i++) put_f32(&out->values, values[i]);
}

void gguf_put_i32s(GgufOutput *out, const char *key, const int32_t *values, size_t n) {
    put_array(out, key, GGUF_I32, n);
    for (size_t i = 0; i < n; i++) gguf_put_u32(&out->values, (uint32_t)values[i]);
}
