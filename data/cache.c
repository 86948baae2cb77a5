/* Opening a token cache: a file is used only when its header, its tables and its ids have the checksums they were
 * written with, and the source's files are those it was made of. Anything else is a reason to make it again, never an
 * error of its own.
 *
 * A source file counts as unchanged when its size and times are as before and older than the build (by RACY_TIME: a
 * file may be written twice within one tick of the clock); otherwise its bytes are read and their CRC32C decides. */
#include "data/cache.h"
#include "data/cache_format.h"
#include "data/source.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "model/core/threads.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const int64_t RACY_TIME = 2000000000; /* ns: the coarsest clock of file systems in use (FAT) */
enum { NAME_LENGTH = 40 /* of the source's name inside a cache's file name */ };

/* What one open works with. */
typedef struct {
    const CacheOptions *options;
    char **files;
    size_t n_files;
    uint64_t key;
    char *path, *lock_path;
} Opening;

/* ---- checking --------------------------------------------------------------------------------------------------- */

static int check_header(const CacheHeader *header, const FileMap *map, const Opening *opening) {
    const char *path = opening->path;
    if (memcmp(header->magic, CACHE_MAGIC, sizeof header->magic) != 0) FAIL(ERR_REFUSED, "%s: not a token cache", path);
    if (header->version != CACHE_VERSION)
        FAIL(ERR_REFUSED, "%s: a cache of version %u; this program has %d", path, header->version, CACHE_VERSION);
    if (crc32c(0, header, offsetof(CacheHeader, header_crc)) != header->header_crc)
        FAIL(ERR_REFUSED, "%s: the header is damaged", path);
    if (header->key != opening->key) FAIL(ERR_REFUSED, "%s: made for another source or tokenizer", path);
    if (header->bytes_per_id != 2 && header->bytes_per_id != 4 && header->bytes_per_id != 8)
        FAIL(ERR_REFUSED, "%s: %u bytes per id", path, header->bytes_per_id);
    /* each bounded by the file's size first, so that no product or sum below can overflow */
    uint64_t size = map->size;
    if (header->n_documents > size || header->n_tokens > size || header->n_files > size || header->n_chunks > size ||
        size > (uint64_t)1 << 56)
        FAIL(ERR_REFUSED, "%s: cut short", path);
    uint64_t id_bytes = header->n_tokens * header->bytes_per_id;
    uint64_t total = sizeof *header + (id_bytes + 7) / 8 * 8 + cache_tables_size(header);
    if (header->samples !=
        (opening->options->source->encoder ? opening->options->source->encoder->samples : SAMPLE_DOCUMENT))
        FAIL(ERR_REFUSED, "%s: samples of another kind", path);
    if (total != size || header->n_chunks != (id_bytes + CACHE_CHUNK - 1) / CACHE_CHUNK)
        FAIL(ERR_REFUSED, "%s: %llu bytes where its header asks for %llu", path, (unsigned long long)size,
             (unsigned long long)total);
    if (header->n_documents == 0 || header->n_documents > UINT32_MAX)
        FAIL(ERR_REFUSED, "%s: %llu documents", path, (unsigned long long)header->n_documents);
    return OK;
}

static int check_starts(const TokenCache *cache, const char *path) {
    int64_t n = cache->n_documents;
    bool rising = cache->start[0] == 0 && cache->start[n] == (uint64_t)cache->n_tokens;
    for (int64_t i = 0; i < n && rising; i++) rising = cache->start[i] < cache->start[i + 1];
    for (int64_t i = 0; cache->second && i < n && rising; i++)
        rising = cache->start[i] < cache->second[i] && cache->second[i] < cache->start[i + 1];
    if (!rising) FAIL(ERR_REFUSED, "%s: its table of documents is out of order", path);
    return OK;
}

static int check_sources(const CacheHeader *header, const FileStamp *stamps, const Opening *opening) {
    if (header->n_files != opening->n_files)
        FAIL(ERR_REFUSED, "%s: made of %llu files; now there are %zu", opening->path,
             (unsigned long long)header->n_files, opening->n_files);
    for (size_t i = 0; i < opening->n_files; i++) {
        const FileStamp *was = &stamps[i];
        FileStamp is;
        TRY(file_stamp(&is, opening->files[i]));
        bool same_times = is.modified == was->modified && is.changed == was->changed;
        bool settled = is.modified < header->built - RACY_TIME && is.changed < header->built - RACY_TIME;
        bool same = is.size == was->size;
        if (same && !(same_times && settled)) {
            TRY(file_crc32c(&is.crc, &is.size, opening->files[i]));
            same = is.crc == was->crc && is.size == was->size;
        }
        if (!same) FAIL(ERR_REFUSED, "%s has changed", opening->files[i]);
    }
    return OK;
}

typedef struct {
    const TokenCache *cache;
    const uint32_t *crcs;
    uint32_t vocab_size;
    int n_bad; /* chunks; counted atomically */
} IdCheck;

static bool ids_below(const TokenCache *cache, size_t first, size_t end, uint32_t bound) {
    uint32_t greatest = 0;
    if (cache->bytes_per_id == 8) {
        const WeightedId *ids = cache->ids;
        for (size_t i = first; i < end; i++) greatest = ids[i].id > greatest ? ids[i].id : greatest;
    } else if (cache->bytes_per_id == 2) {
        const uint16_t *ids = cache->ids;
        for (size_t i = first; i < end; i++) greatest = ids[i] > greatest ? ids[i] : greatest;
    } else {
        const uint32_t *ids = cache->ids;
        for (size_t i = first; i < end; i++) greatest = ids[i] > greatest ? ids[i] : greatest;
    }
    return greatest < bound;
}

static void check_chunks(void *context, size_t begin, size_t end, int thread) {
    (void)thread;
    IdCheck *check = context;
    const TokenCache *cache = check->cache;
    size_t width = (size_t)cache->bytes_per_id, n_bytes = (size_t)cache->n_tokens * width;
    for (size_t chunk = begin; chunk < end; chunk++) {
        size_t first = chunk * CACHE_CHUNK, last = first + CACHE_CHUNK < n_bytes ? first + CACHE_CHUNK : n_bytes;
        bool good = crc32c(0, (const char *)cache->ids + first, last - first) == check->crcs[chunk] &&
                    ids_below(cache, first / width, last / width, check->vocab_size);
        if (!good) __atomic_fetch_add(&check->n_bad, 1, __ATOMIC_RELAXED);
    }
}

/* Maps opening->path and checks all of it. ERR_REFUSED: it must be made again, and why. */
static int check_all(TokenCache *cache, const Opening *opening) {
    const FileMap *map = &cache->map;
    CacheHeader header;
    if (map->size < sizeof header) FAIL(ERR_REFUSED, "%s: cut short", opening->path);
    memcpy(&header, map->bytes, sizeof header);
    TRY(check_header(&header, map, opening));
    uint64_t id_bytes = (header.n_tokens * header.bytes_per_id + 7) / 8 * 8;
    const unsigned char *tables = map->bytes + sizeof header + id_bytes;
    size_t tables_size = map->size - sizeof header - id_bytes;
    if (crc32c(0, tables, tables_size) != header.tables_crc)
        FAIL(ERR_REFUSED, "%s: its tables are damaged", opening->path);
    cache->ids = map->bytes + sizeof header;
    cache->start = (const uint64_t *)(const void *)tables;
    cache->bytes_per_id = (int)header.bytes_per_id;
    cache->n_documents = (int64_t)header.n_documents;
    cache->n_tokens = (int64_t)header.n_tokens;
    cache->n_skipped = cache->counts.n[RECORD_BAD] = (int64_t)header.n_skipped;
    cache->counts.n[RECORD_TRUNCATED] = (int64_t)header.n_truncated;
    cache->counts.n[RECORD_DROPPED] = (int64_t)header.n_dropped;
    cache->counts.n[RECORD_MASKED] = (int64_t)header.n_masked;
    cache->samples = (SampleKind)header.samples;
    const uint64_t *after = cache->start + header.n_documents + 1;
    if (cache->samples != SAMPLE_DOCUMENT) {
        cache->second = after;
        cache->marks = (const SampleMark *)(const void *)(cache->second + header.n_documents);
        after = (const uint64_t *)(const void *)(cache->marks + header.n_documents);
    }
    const FileStamp *stamps = (const FileStamp *)(const void *)after;
    const uint32_t *crcs = (const uint32_t *)(const void *)(stamps + header.n_files);
    if (header.n_skipped && opening->options->fail_on_error)
        FAIL(ERR_REFUSED, "%s: made with on_error: skip", opening->path);
    TRY(check_sources(&header, stamps, opening));
    TRY(check_starts(cache, opening->path));
    IdCheck check = {cache, crcs, header.vocab_size, 0};
    parallel_for(header.n_chunks, 1, check_chunks, &check);
    if (check.n_bad) FAIL(ERR_REFUSED, "%s: %d blocks of ids are damaged", opening->path, check.n_bad);
    uint64_t sums[] = {header.n_documents, header.n_tokens, header.bytes_per_id,
                       crc32c(0, cache->start, (size_t)((const char *)stamps - (const char *)cache->start))};
    cache->fingerprint = hash_bytes(crcs, 4 * header.n_chunks, hash_bytes(sums, sizeof sums, HASH_START));
    return OK;
}

/* OK and mapped; or ERR_REFUSED. */
static int map_checked(TokenCache *cache, const Opening *opening) {
    memset(cache, 0, sizeof *cache);
    TRY(file_map(&cache->map, opening->path));
    int rc = check_all(cache, opening);
    if (rc != OK) token_cache_close(cache);
    return rc;
}

/* ---- names and locks -------------------------------------------------------------------------------------------- */

/* A hash of all that the ids depend on but the files' contents. */
static int cache_key(uint64_t *key, const CacheOptions *options, char *const *files, size_t n_files) {
    const SourceOptions *source = options->source;
    const char *field = source->field ? source->field : "text", *separator = source->separator ? source->separator : "";
    uint64_t tokenizer = tokenizer_fingerprint(options->tokenizer);
    int32_t numbers[3] = {CACHE_VERSION, options->flags, tokenizer_vocab_size(options->tokenizer)};
    uint64_t hash = hash_bytes(&tokenizer, sizeof tokenizer, HASH_START);
    hash = hash_bytes(numbers, sizeof numbers, hash);
    hash = hash_bytes(field, strlen(field) + 1, hash); /* with the NUL, so that parts do not run together */
    hash = hash_bytes(separator, strlen(separator) + 1, hash);
    if (source->encoder) hash = hash_bytes(&source->encoder->key, sizeof source->encoder->key, hash);
    for (size_t i = 0; i < n_files; i++) {
        char *absolute = realpath(files[i], NULL);
        if (!absolute) FAIL(ERR_FAILED, "%s: realpath: %s", files[i], strerror(errno));
        hash = hash_bytes(absolute, strlen(absolute) + 1, hash);
        free(absolute);
    }
    *key = hash;
    return OK;
}

static int name_files(Opening *opening) {
    const CacheOptions *options = opening->options;
    Text path = {0};
    text_puts(&path, options->directory);
    text_puts(&path, "/");
    for (int i = 0; i < NAME_LENGTH && options->name[i]; i++) {
        unsigned char c = (unsigned char)options->name[i];
        text_append(&path, c < 128 && (isalnum(c) || c == '-' || c == '.') ? (const char *)&c : "_", 1);
    }
    text_printf(&path, "-%016llx.tokens", (unsigned long long)opening->key);
    opening->path = path.bytes;
    TRY(text_check(&path));
    if (asprintf(&opening->lock_path, "%s.lock", opening->path) < 0) {
        opening->lock_path = NULL;
        FAIL(ERR_FAILED, "out of memory");
    }
    return OK;
}

static void opening_free(Opening *opening) {
    names_free(opening->files, opening->n_files);
    free(opening->path);
    free(opening->lock_path);
}

/* The lock's descriptor, or -1 where the file system has no locks. It is given back by closing; the empty file stays:
 * removing it would let two processes hold "the" lock. */
static int take_lock(int *descriptor, const Opening *opening) {
    *descriptor = open(opening->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*descriptor < 0) FAIL(ERR_FAILED, "%s: open: %s", opening->lock_path, strerror(errno));
    if (flock(*descriptor, LOCK_EX | LOCK_NB) == 0) return OK;
    if (errno == EWOULDBLOCK) log_info("%s: waiting for the process that makes this token cache", opening->path);
    int result;
    do result = flock(*descriptor, LOCK_EX);
    while (result != 0 && errno == EINTR);
    if (result != 0) {
        close(*descriptor);
        *descriptor = -1;
    }
    return OK;
}

/* What killed builds left behind. Only under the lock: nobody else can be writing then. */
static void remove_leftovers(const Opening *opening) {
    char **names;
    size_t n;
    const char *base = path_base(opening->path);
    size_t length = strlen(base);
    if (directory_list(&names, &n, opening->options->directory) != OK) return;
    for (size_t i = 0; i < n; i++) {
        if (strncmp(names[i], base, length) != 0 || strncmp(names[i] + length, ".tmp-", 5) != 0) continue;
        char *path = path_join(opening->options->directory, names[i]);
        if (path) unlink(path);
        free(path);
    }
    names_free(names, n);
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static int build_under_lock(TokenCache *cache, const Opening *opening) {
    int rc = OK, lock = -1;
    TRY(take_lock(&lock, opening));
    if (file_exists(opening->path) && map_checked(cache, opening) == OK) goto done; /* another process made it */
    if (lock >= 0) remove_leftovers(opening);
    TRY_TO(done, token_cache_build(opening->path, opening->options, opening->files, opening->n_files, opening->key));
    TRY_TO(done, map_checked(cache, opening));
    cache->was_built = true;
done:
    if (lock >= 0) close(lock);
    return rc;
}

int token_cache_open(TokenCache *cache, const CacheOptions *options) {
    int rc = OK;
    Opening opening = {.options = options};
    memset(cache, 0, sizeof *cache);
    TRY_TO(done, source_files(&opening.files, &opening.n_files, options->source->path));
    TRY_TO(done, cache_key(&opening.key, options, opening.files, opening.n_files));
    TRY_TO(done, directory_make(options->directory));
    TRY_TO(done, name_files(&opening));
    if (file_exists(opening.path)) {
        rc = map_checked(cache, &opening);
        if (rc == OK) goto done;
        log_info("tokenising again: %s", error_text());
        error_clear();
    }
    TRY_TO(done, build_under_lock(cache, &opening));
done:
    opening_free(&opening);
    return rc;
}

static bool read_header(CacheHeader *header, const char *path) {
    FILE *file = fopen(path, "rbe");
    if (!file) return false;
    bool whole = fread(header, sizeof *header, 1, file) == 1;
    fclose(file);
    return whole && memcmp(header->magic, CACHE_MAGIC, sizeof header->magic) == 0 && header->version == CACHE_VERSION &&
           crc32c(0, header, offsetof(CacheHeader, header_crc)) == header->header_crc;
}

int token_cache_peek(bool *found, int64_t *n_documents, int64_t *n_tokens, const CacheOptions *options) {
    int rc = OK;
    Opening opening = {.options = options};
    CacheHeader header;
    *found = false;
    TRY_TO(done, source_files(&opening.files, &opening.n_files, options->source->path));
    TRY_TO(done, cache_key(&opening.key, options, opening.files, opening.n_files));
    TRY_TO(done, name_files(&opening));
    if (!read_header(&header, opening.path) || header.key != opening.key) goto done;
    if (header.n_documents > UINT32_MAX || header.n_tokens > (uint64_t)1 << 56) goto done;
    *found = true;
    *n_documents = (int64_t)header.n_documents;
    *n_tokens = (int64_t)header.n_tokens;
done:
    opening_free(&opening);
    return rc;
}

void token_cache_close(TokenCache *cache) {
    file_unmap(&cache->map);
    memset(cache, 0, sizeof *cache);
}

void token_cache_read(const TokenCache *cache, int64_t first, int64_t n, int32_t *out) {
    if (cache->bytes_per_id == 8) {
        const WeightedId *ids = (const WeightedId *)cache->ids + first;
        for (int64_t i = 0; i < n; i++) out[i] = (int32_t)ids[i].id;
    } else if (cache->bytes_per_id == 2) {
        const uint16_t *ids = (const uint16_t *)cache->ids + first;
        for (int64_t i = 0; i < n; i++) out[i] = ids[i];
    } else {
        const int32_t *ids = (const int32_t *)cache->ids + first;
        memcpy(out, ids, (size_t)n * sizeof *out);
    }
}

int64_t token_cache_document(const TokenCache *cache, int64_t token) {
    int64_t low = 0, high = cache->n_documents; /* start[low] <= token < start[high] */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (cache->start[middle] <= (uint64_t)token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

bool token_cache_has_weights(const TokenCache *cache) {
    return cache->bytes_per_id == sizeof(WeightedId);
}

void token_cache_weights(const TokenCache *cache, int64_t first, int64_t n, float *out) {
    const WeightedId *ids = (const WeightedId *)cache->ids + (token_cache_has_weights(cache) ? first : 0);
    for (int64_t i = 0; i < n; i++) out[i] = token_cache_has_weights(cache) ? ids[i].weight : 1.0f;
}

double token_cache_weight_sum(const TokenCache *cache, int64_t first, int64_t n) {
    if (!token_cache_has_weights(cache)) return (double)n;
    const WeightedId *ids = (const WeightedId *)cache->ids + first;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)ids[i].weight;
    return sum;
}
