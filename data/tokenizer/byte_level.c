/* The spelling of byte-level tokens (GPT-2's encoder.py, bytes_to_unicode): a byte that is a printable character of
 * Latin-1 is that character; the others, in order, are U+0100, U+0101, … */
#include "data/tokenizer/json.h"

enum { FIRST_SHIFTED = 0x100 };

static bool is_printable(unsigned byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

/* The unprintable bytes in order are 0–0x20, 0x7f–0xa0 and 0xad. */
static uint32_t code_of_byte(unsigned byte) {
    if (is_printable(byte)) return byte;
    if (byte <= 0x20) return FIRST_SHIFTED + byte;
    return byte <= 0xa0 ? FIRST_SHIFTED + 0x21 + (byte - 0x7f) : FIRST_SHIFTED + 0x21 + 0x22;
}

static int byte_of_code(uint32_t code) {
    if (code < FIRST_SHIFTED) return is_printable(code) ? (int)code : -1;
    uint32_t place = code - FIRST_SHIFTED;
    if (place <= 0x20) return (int)place;
    if (place < 0x21 + 0x22) return (int)(place - 0x21 + 0x7f);
    return place == 0x21 + 0x22 ? 0xad : -1;
}

bool byte_level_unspell(const char *text, size_t length, Text *out) {
    for (size_t at = 0; at < length;) {
        uint32_t code;
        int n = utf8_decode(text + at, length - at, &code), byte = n > 0 ? byte_of_code(code) : -1;
        if (byte < 0) return false;
        text_append(out, &(char){(char)byte}, 1);
        at += (size_t)n;
    }
    return true;
}

void byte_level_spell(const char *bytes, size_t length, Text *out) {
    for (size_t i = 0; i < length; i++) {
        char character[4];
        int n = utf8_encode(character, code_of_byte((unsigned char)bytes[i]));
        text_append(out, character, (size_t)n);
    }
}
