/* The token cache: made once, checked when opened, made again when its source changes or it is damaged. */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "data/cache.h"
#include "data/cache_format.h"
#include "data/input.h"
#include "model/core/text.h"
#include "tests/data_fixture.h"

static Tokenizer *tokenizer;
static SourceOptions source;

static void setup(void) {
    fixture_setup();
    CHECK_OK(tokenizer_load(&tokenizer, "bytes"));
}
static void teardown(void) {
    tokenizer_free(tokenizer);
    fixture_teardown();
}

static int open_cache(TokenCache *cache, const char *path, int flags, bool fail_on_error) {
    source.path = path;
    return token_cache_open(cache, &(CacheOptions){.directory = fixture_path("cache"),
                                                   .name = "my source",
                                                   .source = &source,
                                                   .tokenizer = tokenizer,
                                                   .flags = flags,
                                                   .fail_on_error = fail_on_error});
}

/* The one file of tokens in the cache's folder. */
static const char *cache_file(void) {
    static char path[512];
    char **names;
    size_t n, found = 0;
    CHECK_OK(directory_list(&names, &n, fixture_path("cache")));
    for (size_t i = 0; i < n; i++) {
        ck_assert_ptr_null(strstr(names[i], ".tmp-"));
        if (!text_ends_with(names[i], ".tokens")) continue;
        snprintf(path, sizeof path, "%s/cache/%s", fixture_folder, names[i]);
        found++;
    }
    names_free(names, n);
    ck_assert_uint_eq(found, 1);
    return path;
}

/* The file is as old as the sources of a real run: no doubt about changes within one tick of the clock. */
static void settle(const char *path) {
    ck_assert_int_eq(utimensat(AT_FDCWD, path, (struct timespec[2]){{1000000000, 0}, {1000000000, 0}}, 0), 0);
}

/* Documents as "ids,ids|…". */
static void check_tokens(const TokenCache *cache, const char *expected) {
    Text text = {0};
    for (int64_t d = 0; d < cache->n_documents; d++) {
        for (uint64_t t = cache->start[d]; t < cache->start[d + 1]; t++) {
            int32_t id;
            token_cache_read(cache, (int64_t)t, 1, &id);
            text_printf(&text, id < 256 ? "%c" : "<%d>", id);
        }
        text_puts(&text, "|");
    }
    ck_assert_str_eq(text.bytes, expected);
    text_free(&text);
}

static void check_open(const char *path, int flags, bool is_built, const char *expected) {
    TokenCache cache;
    CHECK_OK(open_cache(&cache, path, flags, true));
    ck_assert(cache.was_built == is_built);
    check_tokens(&cache, expected);
    token_cache_close(&cache);
}

START_TEST(a_source_is_tokenised_once) {
    setup();
    const char *path = fixture_text("a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"\"}\n{\"text\": \"two\"}\n");
    check_open(path, 0, true, "one|two|"); /* an empty document has no tokens and is left out */
    struct stat before, after;
    ck_assert_int_eq(stat(cache_file(), &before), 0);
    check_open(path, 0, false, "one|two|");
    ck_assert_int_eq(stat(cache_file(), &after), 0);
    ck_assert_uint_eq(before.st_ino, after.st_ino);
    ck_assert_int_eq(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
    teardown();
}
END_TEST

START_TEST(what_the_ids_depend_on_is_in_the_key) {
    setup();
    const char *path = fixture_text("a.jsonl", "{\"text\": \"one\", \"b\": \"x\"}\n");
    check_open(path, 0, true, "one|");
    check_open(path, TOKENIZE_BOS, true, "<256>one|");
    check_open(path, TOKENIZE_BOS | TOKENIZE_EOS, true, "<256>one<257>|");
    source.field = "b";
    check_open(path, 0, true, "x|");
    source.field = NULL;
    check_open(path, 0, false, "one|");
    const char *plain = fixture_text("a.txt", "a,b");
    check_open(plain, 0, true, "a,b|");
    source.separator = ",";
    check_open(plain, 0, true, "a|b|");
    source.separator = NULL;
    teardown();
}
END_TEST

START_TEST(a_changed_source_is_tokenised_again) {
    setup();
    const char *path = fixture_text("d/a.txt", "one");
    const char *folder = fixture_path("d");
    check_open(folder, 0, true, "one|");
    fixture_text("d/a.txt", "two"); /* the same size, perhaps within the same tick */
    check_open(folder, 0, true, "two|");
    struct stat status;
    ck_assert_int_eq(stat(path, &status), 0);
    fixture_text("d/a.txt", "six");
    ck_assert_int_eq(utimensat(AT_FDCWD, path, (struct timespec[2]){status.st_atim, status.st_mtim}, 0), 0);
    check_open(folder, 0, true, "six|"); /* the same size and time of modification */
    settle(path);
    check_open(folder, 0, false, "six|"); /* other times, the same bytes */
    fixture_text("d/b.txt", "more");
    check_open(folder, 0, true, "six|more|");
    ck_assert_int_eq(unlink(path), 0);
    check_open(folder, 0, true, "more|");
    teardown();
}
END_TEST

/* Rewrites the cache of one file of one three-byte document as if it had been built at `built` and, where given, from a
 * file with the times of `times`. */
static void alter_cache(const FileStamp *times, int64_t built) {
    char *bytes, name[512];
    size_t size;
    snprintf(name, sizeof name, "%s", cache_file());
    CHECK_OK(file_read(&bytes, &size, name, 0));
    CacheHeader header;
    FileStamp stamp;
    memcpy(&header, bytes, sizeof header);
    size_t tables = sizeof header + 8, at = tables + 8 * 2; /* six bytes of ids, padded; two starts */
    memcpy(&stamp, bytes + at, sizeof stamp);
    if (times) stamp.modified = times->modified, stamp.changed = times->changed;
    memcpy(bytes + at, &stamp, sizeof stamp);
    header.built = built;
    header.tables_crc = crc32c(0, bytes + tables, size - tables);
    header.header_crc = crc32c(0, &header, offsetof(CacheHeader, header_crc));
    memcpy(bytes, &header, sizeof header);
    CHECK_OK(file_write_atomic(name, bytes, size));
    free(bytes);
}

START_TEST(an_old_file_is_trusted_by_its_times_a_young_one_by_its_bytes) {
    setup();
    const char *path = fixture_text("a.txt", "one");
    FileStamp now;
    check_open(path, 0, true, "one|");
    fixture_text("a.txt", "two");
    CHECK_OK(file_stamp(&now, path));
    alter_cache(&now, now.modified); /* both writes and the build in one tick of the clock: the times are the same */
    check_open(path, 0, true, "two|");

    CHECK_OK(file_stamp(&now, path));
    int64_t later = now.changed + 60 * (int64_t)1000000000;
    fixture_text("a.txt", "six");
    struct timespec same = {now.modified / 1000000000, now.modified % 1000000000};
    ck_assert_int_eq(utimensat(AT_FDCWD, path, (struct timespec[2]){same, same}, 0), 0);
    alter_cache(NULL, later); /* as if built a minute after the file was written; only its ctime tells */
    check_open(path, 0, true, "six|");

    fixture_text("a.txt", "ten");
    CHECK_OK(file_stamp(&now, path));
    alter_cache(&now, later); /* old, with the times it had: its bytes are not read again */
    check_open(path, 0, false, "six|");
    teardown();
}
END_TEST

START_TEST(a_cache_cut_short_or_with_any_bit_turned_is_made_again) {
    setup();
    Text lines = {0}, expected = {0};
    for (int i = 0; i < 20; i++) {
        text_printf(&lines, "{\"text\": \"document %d\"}\n", i * i);
        text_printf(&expected, "document %d|", i * i);
    }
    const char *path = fixture_write("a.jsonl.gz", lines.bytes, lines.length);
    check_open(path, 0, true, expected.bytes);
    char *bytes, name[512];
    size_t size;
    snprintf(name, sizeof name, "%s", cache_file());
    CHECK_OK(file_read(&bytes, &size, name, 0));
    int n_built = 0, n_flips = 0;
    for (size_t bit = 0; bit < 8 * size; bit += 1 + 8 * size / 300, n_flips++) {
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        CHECK_OK(file_write_atomic(name, bytes, size));
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        TokenCache cache;
        CHECK_OK(open_cache(&cache, path, 0, true));
        check_tokens(&cache, expected.bytes);
        n_built += cache.was_built;
        token_cache_close(&cache);
    }
    ck_assert_int_ge(n_flips, 200);
    ck_assert_int_ge(n_built, n_flips - 8); /* all but turns of the zeros between ids and tables */
    for (size_t cut = 0; cut < size; cut += cut < 200 ? 13 : 61) {
        CHECK_OK(file_write_atomic(name, bytes, cut));
        check_open(path, 0, true, expected.bytes);
    }
    free(bytes);
    text_free(&lines);
    text_free(&expected);
    teardown();
}
END_TEST

/* A header that asks for more than there is, with its checksum right: only the sizes can tell. */
START_TEST(impossible_sizes_are_found_before_they_are_used) {
    setup();
    const char *path = fixture_text("a.txt", "some text");
    check_open(path, 0, true, "some text|");
    char *bytes, name[512];
    size_t size;
    snprintf(name, sizeof name, "%s", cache_file());
    CHECK_OK(file_read(&bytes, &size, name, 0));
    static const uint64_t values[] = {0, 1, 1000, UINT32_MAX, UINT64_MAX, UINT64_MAX / 2, UINT64_MAX / 8, 1ull << 61};
    for (size_t field = 0; field < 5; field++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            CacheHeader header;
            memcpy(&header, bytes, sizeof header);
            uint64_t *fields[] = {&header.n_documents, &header.n_tokens, &header.n_files, &header.n_chunks,
                                  &header.key};
            if (*fields[field] == values[v]) continue;
            *fields[field] = values[v];
            header.header_crc = crc32c(0, &header, offsetof(CacheHeader, header_crc));
            char *changed = malloc(size);
            memcpy(changed, bytes, size);
            memcpy(changed, &header, sizeof header);
            CHECK_OK(file_write_atomic(name, changed, size));
            free(changed);
            check_open(path, 0, true, "some text|");
        }
    free(bytes);
    teardown();
}
END_TEST

START_TEST(skipped_records_are_remembered_and_not_accepted_where_they_must_fail) {
    setup();
    const char *path = fixture_text("a.jsonl", "{\"text\": \"one\"}\nbad\n{\"text\": \"two\"}\n");
    for (int i = 0; i < 2; i++) {
        TokenCache cache;
        CHECK_OK(open_cache(&cache, path, 0, false));
        ck_assert_int_eq(cache.n_skipped, 1);
        ck_assert(cache.was_built == (i == 0));
        check_tokens(&cache, "one|two|");
        token_cache_close(&cache);
    }
    TokenCache cache;
    CHECK_ERROR(open_cache(&cache, path, 0, true), ERR_REFUSED, "a.jsonl:2: not a JSON object");
    CHECK_ERROR(open_cache(&cache, fixture_text("b.jsonl", "bad\n"), 0, false), ERR_REFUSED, "no text in it");
    CHECK_ERROR(open_cache(&cache, fixture_path("none.txt"), 0, false), ERR_REFUSED, "none.txt");
    teardown();
}
END_TEST

START_TEST(processes_that_build_at_once_all_end_with_a_good_cache) {
    setup();
    enum { N = 6 };
    Text text = {0};
    for (int i = 0; i < 200000; i++) text_printf(&text, "%d, ", i);
    const char *path = fixture_write("a.txt", text.bytes, text.length);
    pid_t children[N];
    for (int i = 0; i < N; i++) {
        fflush(NULL);
        children[i] = fork();
        if (children[i] == 0) {
            TokenCache cache;
            if (open_cache(&cache, path, 0, true) != OK) _exit(100);
            bool good = cache.n_tokens == (int64_t)text.length && cache.bytes_per_id == 2;
            for (size_t t = 0; t < text.length && good; t++)
                good = ((const uint16_t *)cache.ids)[t] == (unsigned char)text.bytes[t];
            _exit(good ? cache.was_built : 101);
        }
    }
    int n_built = 0;
    for (int i = 0; i < N; i++) {
        int status;
        ck_assert_int_eq(waitpid(children[i], &status, 0), children[i]);
        ck_assert(WIFEXITED(status));
        ck_assert_int_le(WEXITSTATUS(status), 1);
        n_built += WEXITSTATUS(status);
    }
    ck_assert_int_eq(n_built, 1); /* the others waited for it */
    cache_file();
    text_free(&text);
    teardown();
}
END_TEST

START_TEST(a_build_killed_at_any_instant_leaves_nothing_that_harms) {
    setup();
    Text text = {0};
    for (int i = 0; i < 300000; i++) text_printf(&text, "%d, ", i);
    const char *path = fixture_write("a.txt", text.bytes, text.length);
    int n_killed = 0;
    for (int i = 0; i < 25; i++) {
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            TokenCache cache;
            _exit(open_cache(&cache, path, 0, true) != OK);
        }
        usleep((useconds_t)(i * 1500));
        ck_assert_int_eq(kill(child, SIGKILL), 0);
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        n_killed += WIFSIGNALED(status);
        if (!WIFSIGNALED(status)) ck_assert_int_eq(WEXITSTATUS(status), 0);
        if (i % 5 < 4) continue;
        TokenCache cache; /* and once in a while somebody finishes, then the file is lost again */
        CHECK_OK(open_cache(&cache, path, 0, true));
        ck_assert_int_eq(cache.n_tokens, (int64_t)text.length);
        token_cache_close(&cache);
        ck_assert_int_eq(unlink(cache_file()), 0);
    }
    ck_assert_int_ge(n_killed, 5);
    text_free(&text);
    teardown();
}
END_TEST

START_TEST(what_a_killed_build_left_is_removed_by_the_next) {
    setup();
    const char *path = fixture_text("a.txt", "text");
    check_open(path, 0, true, "text|");
    char left[600];
    snprintf(left, sizeof left, "%s.tmp-1-2", cache_file());
    CHECK_OK(file_write_atomic(left, "x", 1));
    fixture_text("a.txt", "other");
    check_open(path, 0, true, "other|");
    ck_assert(!file_exists(left));
    teardown();
}
END_TEST

CHECK_MAIN("cache", a_source_is_tokenised_once, what_the_ids_depend_on_is_in_the_key,
           a_changed_source_is_tokenised_again, an_old_file_is_trusted_by_its_times_a_young_one_by_its_bytes,
           a_cache_cut_short_or_with_any_bit_turned_is_made_again, impossible_sizes_are_found_before_they_are_used,
           skipped_records_are_remembered_and_not_accepted_where_they_must_fail,
           processes_that_build_at_once_all_end_with_a_good_cache,
           a_build_killed_at_any_instant_leaves_nothing_that_harms, what_a_killed_build_left_is_removed_by_the_next)
