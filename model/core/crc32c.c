/* CRC-32C, reflected polynomial 0x82F63B78: eight bytes a step with the SSE4.2 instruction where there is one, else
 * bit by bit. */
#include "model/core/file.h"

#include <string.h>

static uint32_t table_crc(uint32_t crc, const unsigned char *p, size_t n) {
    static const uint32_t polynomial = 0x82F63B78u;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? polynomial : 0);
    }
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t hardware_crc(uint32_t crc, const unsigned char *p, size_t n) {
    uint64_t wide = crc;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    for (; n > 0; p++, n--) crc = __builtin_ia32_crc32qi(crc, *p);
    return crc;
}
#endif

uint32_t crc32c(uint32_t crc, const void *bytes, size_t size) {
    crc = ~crc;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return ~hardware_crc(crc, bytes, size);
#endif
    return ~table_crc(crc, bytes, size);
}
