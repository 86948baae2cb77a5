/* The form of a cache file: between cache.c (opening) and cache_build.c (making). */
#ifndef CRIA_DATA_CACHE_FORMAT_H
#define CRIA_DATA_CACHE_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "data/cache.h"
#include "data/input.h"

#define CACHE_MAGIC "CRIATOKS"

/* A cache file, in the byte order of the machine that made it (another order shows as another version):
 *
 *      0  magic "CRIATOKS"                     64  CRC32C of start, stamps and chunk CRCs
 *      8  version, bytes_per_id (u32 each)     68  vocabulary size (u32)
 *     16  key                                  72  when the build began (ns since 1970)
 *     24  n_documents                          80  records truncated, dropped, masked (u64 each)
 *     32  n_tokens                            104  zeros
 *     40  n_files                             120  SampleKind (u32)
 *     48  n_skipped                           124  CRC32C of bytes 0..123
 *     56  n_chunks                            128  ids, then zeros up to a multiple of 8
 *                                               …  start       u64[n_documents + 1]
 *                                               …  second      u64[n_documents], of SAMPLE_PAIR and SAMPLE_LABELLED
 *                                               …  marks       SampleMark[n_documents], of these too
 *                                               …  stamps      FileStamp[n_files]
 *                                               …  chunk CRCs  u32[n_chunks], one per CACHE_CHUNK bytes of ids
 *
 * bytes_per_id is 2 (u16), 4 (u32), or 8: a u32 and then the weight of its loss, fp32.
 */
enum { CACHE_VERSION = 2, CACHE_CHUNK = 4 << 20 };
/* What is encoded at once while a cache is made: no more text, or records, unless one record is larger. */
enum { CACHE_BATCH_BYTES = 16 << 20, CACHE_BATCH_RECORDS = 16384 };

typedef struct {
    char magic[8];
    uint32_t version, bytes_per_id;
    uint64_t key, n_documents, n_tokens, n_files, n_skipped, n_chunks;
    uint32_t tables_crc, vocab_size;
    int64_t built;
    uint64_t n_truncated, n_dropped, n_masked;
    char zeros[16];
    uint32_t samples;
    uint32_t header_crc;
} CacheHeader;
_Static_assert(sizeof(CacheHeader) == 128, "the header is 128 bytes");

/* A token with the weight of its loss. */
typedef struct {
    uint32_t id;
    float weight;
} WeightedId;
_Static_assert(sizeof(WeightedId) == 8, "a weighted id is 8 bytes");

/* Bytes of all that follows the ids. */
static inline uint64_t cache_tables_size(const CacheHeader *header) {
    uint64_t extra = header->samples == SAMPLE_DOCUMENT ? 0 : sizeof(uint64_t) + sizeof(SampleMark);
    return sizeof(uint64_t) * (header->n_documents + 1) + extra * header->n_documents +
           sizeof(FileStamp) * header->n_files + sizeof(uint32_t) * header->n_chunks;
}

/* Tokenises the files into a new cache file at `path`: complete, or absent. */
int token_cache_build(const char *path, const CacheOptions *options, char *const *files, size_t n_files, uint64_t key);

#endif
