/* Records of plain text and JSONL, plain and compressed; which files a path means; what bad records do. */
#include "data/source.h"
#include "model/core/text.h"
#include "tests/data_fixture.h"

/* All records of a path as "text|text|…" and where they begin. */
typedef struct {
    Text texts, places;
    int n;
    int64_t skipped;
} Found;

static int read_all(Found *found, const char *path, const char *field, const char *separator, bool fail_on_error) {
    int rc = OK;
    char **paths = NULL;
    size_t n = 0;
    RecordReader *reader = NULL;
    *found = (Found){0};
    TRY_TO(done, source_files(&paths, &n, path));
    TRY_TO(done, records_open(&reader, &(RecordOptions){.paths = paths,
                                                        .n_paths = n,
                                                        .field = field,
                                                        .separator = separator,
                                                        .fail_on_error = fail_on_error}));
    for (;;) {
        Record record;
        bool more;
        TRY_TO(done, records_next(reader, &record, &more));
        if (!more) break;
        text_append(&found->texts, record.text, record.size);
        text_puts(&found->texts, "|");
        text_printf(&found->places, "%s:%lld ", path_base(record.path), (long long)record.line);
        found->n++;
    }
    for (size_t i = 0; i < n; i++) { /* the stamps are those of the files as they lie there */
        FileStamp now = {0};
        uint64_t size;
        CHECK_OK(file_stamp(&now, paths[i]));
        CHECK_OK(file_crc32c(&now.crc, &size, paths[i]));
        ck_assert_mem_eq(&now, &records_stamps(reader)[i], sizeof now);
    }
    found->skipped = records_skipped(reader);
done:
    records_close(reader);
    names_free(paths, n);
    return rc;
}

static void found_free(Found *found) {
    text_free(&found->texts);
    text_free(&found->places);
}

static void check_found(const char *path, const char *separator, const char *texts, const char *places) {
    Found found;
    CHECK_OK(read_all(&found, path, NULL, separator, true));
    ck_assert_str_eq(found.texts.bytes ? found.texts.bytes : "", texts);
    ck_assert_str_eq(found.places.bytes ? found.places.bytes : "", places);
    ck_assert_int_eq(found.skipped, 0);
    found_free(&found);
}

START_TEST(a_text_file_is_one_document_or_split_at_the_separator) {
    fixture_setup();
    const char *path = fixture_text("a.txt", "one\ntwo\n--\nthree\n--\n\n--\nfour");
    check_found(path, NULL, "one\ntwo\n--\nthree\n--\n\n--\nfour|", "a.txt:1 ");
    check_found(path, "", "one\ntwo\n--\nthree\n--\n\n--\nfour|", "a.txt:1 ");
    check_found(path, "\n--\n", "one\ntwo|three||four|", "a.txt:1 a.txt:4 a.txt:6 a.txt:8 ");
    check_found(fixture_text("b.txt", "x\n--\n"), "\n--\n", "x|", "b.txt:1 ");
    check_found(fixture_text("empty.txt", ""), NULL, "", "");
    fixture_teardown();
}
END_TEST

START_TEST(a_separator_is_found_across_the_edges_of_reads) {
    fixture_setup();
    enum { READ = 256 * 1024 }; /* as in source.c; were it another size, the ends below would still be right */
    static const char separator[] = "<|end|>";
    size_t width = strlen(separator);
    for (size_t before = 0; before <= width; before++) {
        Text text = {0};
        while (text.length < READ - before) text_puts(&text, "x");
        text_puts(&text, separator);
        text_puts(&text, "second");
        Found found;
        CHECK_OK(read_all(&found, fixture_write("a.txt", text.bytes, text.length), NULL, separator, true));
        ck_assert_int_eq(found.n, 2);
        ck_assert_str_eq(found.texts.bytes + READ - before, "|second|");
        found_free(&found);
        text_free(&text);
    }
    fixture_teardown();
}
END_TEST

START_TEST(jsonl_gives_the_field_and_passes_over_blank_lines) {
    fixture_setup();
    const char *path =
        fixture_text("a.jsonl", "\xef\xbb\xbf{\"text\": \"first\"}\r\n"
                                "\n  \t\r\n"
                                "{\"id\": 123456789012345678901234567890, \"text\": \"\\u00e9 \\ud83d\\ude00\"}\n"
                                "{\"text\": \"\"}\n"
                                "{\"body\": \"other\", \"text\": \"last\"}");
    check_found(path, NULL, "first|\xc3\xa9 \xf0\x9f\x98\x80||last|", "a.jsonl:1 a.jsonl:4 a.jsonl:5 a.jsonl:6 ");
    Found found;
    CHECK_OK(read_all(&found, fixture_text("b.jsonl", "{\"body\": \"x\", \"text\": 1}\n"), "body", NULL, true));
    ck_assert_str_eq(found.texts.bytes, "x|");
    found_free(&found);
    fixture_teardown();
}
END_TEST

START_TEST(compressed_files_read_as_plain_ones) {
    fixture_setup();
    Text lines = {0};
    for (int i = 0; i < 20000; i++) text_printf(&lines, "{\"text\": \"record %d of many\", \"n\": %d}\n", i, i * 7919);
    Found plain, other;
    CHECK_OK(read_all(&plain, fixture_write("a.jsonl", lines.bytes, lines.length), NULL, NULL, true));
    ck_assert_int_eq(plain.n, 20000);
    const char *names[] = {"a.jsonl.gz", "a.jsonl.zst"};
    for (int i = 0; i < 2; i++) {
        CHECK_OK(read_all(&other, fixture_write(names[i], lines.bytes, lines.length), NULL, NULL, true));
        ck_assert_uint_eq(other.texts.length, plain.texts.length);
        ck_assert_mem_eq(other.texts.bytes, plain.texts.bytes, plain.texts.length);
        found_free(&other);
        /* several members or frames, one after the other, are one text (RFC 1952, 2.2; RFC 8878, 3.1) */
        char *bytes;
        size_t size;
        CHECK_OK(file_read(&bytes, &size, fixture_path(names[i]), 0));
        char *twice = malloc(2 * size);
        memcpy(twice, bytes, size);
        memcpy(twice + size, bytes, size);
        CHECK_OK(file_write_atomic(fixture_path(names[i]), twice, 2 * size));
        CHECK_OK(read_all(&other, fixture_path(names[i]), NULL, NULL, true));
        ck_assert_int_eq(other.n, 40000);
        found_free(&other);
        free(bytes);
        free(twice);
    }
    found_free(&plain);
    text_free(&lines);
    fixture_teardown();
}
END_TEST

START_TEST(a_line_may_be_very_long) {
    fixture_setup();
    enum { LENGTH = 20 << 20 };
    Text line = {0};
    text_puts(&line, "{\"text\": \"a\"}\n{\"text\": \"");
    for (int i = 0; i < LENGTH / 16; i++) text_puts(&line, "0123456789abcdef");
    text_puts(&line, "\"}\n{\"text\": \"b\"}\n");
    Found found;
    CHECK_OK(read_all(&found, fixture_write("long.jsonl.zst", line.bytes, line.length), NULL, NULL, true));
    ck_assert_int_eq(found.n, 3);
    ck_assert_uint_eq(found.texts.length, LENGTH + 5);
    ck_assert_mem_eq(found.texts.bytes + found.texts.length - 4, "f|b|", 4);
    found_free(&found);
    text_free(&line);
    fixture_teardown();
}
END_TEST

START_TEST(a_folder_means_its_text_files_in_order_and_a_glob_its_matches) {
    fixture_setup();
    fixture_text("d/b.txt", "b");
    fixture_text("d/a.jsonl.gz", "{\"text\": \"a\"}\n");
    fixture_text("d/sub/c.txt.zst", "c");
    fixture_text("d/.hidden.txt", "no");
    fixture_text("d/readme.md", "no");
    check_found(fixture_path("d"), NULL, "a|b|c|", "a.jsonl.gz:1 b.txt:1 c.txt.zst:1 ");
    check_found(fixture_path("d/*.md"), NULL, "no|", "readme.md:1 ");
    check_found(fixture_path("d/{b,.hidden}.txt"), NULL, "no|b|", ".hidden.txt:1 b.txt:1 ");
    check_found(fixture_text("d/odd[1].txt", "odd"), NULL, "odd|", "odd[1].txt:1 ");
    Found found;
    CHECK_ERROR(read_all(&found, fixture_path("d/*.none"), NULL, NULL, true), ERR_REFUSED, "d/*.none");
    CHECK_OK(directory_make(fixture_path("nothing")));
    CHECK_ERROR(read_all(&found, fixture_path("nothing"), NULL, NULL, true), ERR_REFUSED, "no file in it ends in");
    ck_assert_int_eq(symlink(fixture_path("d"), fixture_path("d/loop")), 0);
    CHECK_ERROR(read_all(&found, fixture_path("d"), NULL, NULL, true), ERR_REFUSED, "link in a circle");
    fixture_teardown();
}
END_TEST

START_TEST(a_bad_record_is_an_error_with_file_and_line_or_is_counted) {
    fixture_setup();
    static const struct {
        const char *line, *complaint;
    } bad[] = {
        {"{\"text\": \"x\"", "not a JSON object"},
        {"{\"text\": \"x\"} {}", "not a JSON object"},
        {"[\"x\"]", "an array was found"},
        {"plain words", "not a JSON object"},
        {"{\"body\": \"x\"}", "no field \"text\""},
        {"{\"text\": 3}", "field \"text\" is a number"},
        {"{\"text\": null}", "field \"text\" is null"},
        {"{\"text\": \"x\", \"text\": \"y\"}", "duplicate"},
        {"{\"text\": \"\xff\xfe\"}", "byte 0xff is not UTF-8 (column 11)"},
        {"{\"text\": \"\xc0\xaf\"}", "byte 0xc0 is not UTF-8 (column 11)"},
        {"{\"text\": \"\\ud800\"}", "half of a surrogate pair (column 11)"},
        {"\0{\"text\": \"x\"}", ""}, /* an empty string: a blank line, not bad */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char lines[256];
        bool is_bad = *bad[i].complaint;
        snprintf(lines, sizeof lines, "{\"text\": \"a\"}\n\n%s\n{\"text\": \"b\"}\n", bad[i].line);
        const char *path = fixture_text("bad.jsonl", lines);
        Found found;
        if (is_bad) {
            CHECK_ERROR(read_all(&found, path, NULL, NULL, true), ERR_REFUSED, "/bad.jsonl:3: ");
            ck_assert_msg(strstr(error_text(), bad[i].complaint) != NULL, "%s", error_text());
            found_free(&found);
        }
        CHECK_OK(read_all(&found, path, NULL, NULL, false));
        ck_assert_str_eq(found.texts.bytes, "a|b|");
        ck_assert_int_eq(found.skipped, is_bad);
        found_free(&found);
    }
    fixture_teardown();
}
END_TEST

START_TEST(a_compressed_file_cut_anywhere_is_an_error_with_file_and_line) {
    fixture_setup();
    Text lines = {0};
    for (int i = 0; i < 300; i++) text_printf(&lines, "{\"text\": \"%d %d\"}\n", i, i * i * 7919);
    const char *names[] = {"whole.jsonl.gz", "whole.jsonl.zst"}, *cut_names[] = {"cut.jsonl.gz", "cut.jsonl.zst"};
    for (int i = 0; i < 2; i++) {
        char *bytes;
        size_t size;
        CHECK_OK(file_read(&bytes, &size, fixture_write(names[i], lines.bytes, lines.length), 0));
        for (size_t cut = 0; cut < size; cut += cut < 40 || size - cut < 40 ? 1 : 37) {
            Found found;
            CHECK_OK(file_write_atomic(fixture_path(cut_names[i]), bytes, cut));
            CHECK_ERROR(read_all(&found, fixture_path(cut_names[i]), NULL, NULL, true), ERR_REFUSED, cut_names[i]);
            ck_assert_msg(strstr(error_text(), ": cut short: ") != NULL, "%s", error_text());
            int64_t line = atoll(strstr(error_text(), cut_names[i]) + strlen(cut_names[i]) + 1);
            ck_assert_int_eq(line, found.n + 1);
            found_free(&found);
            CHECK_OK(read_all(&found, fixture_path(cut_names[i]), NULL, NULL, false));
            ck_assert_int_eq(found.skipped, 1);
            found_free(&found);
        }
        for (size_t bit = 0; bit < 8 * size; bit += 1 + 8 * size / 400) { /* damage: an error, or the same text */
            Found found, good;
            bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
            CHECK_OK(file_write_atomic(fixture_path(cut_names[i]), bytes, size));
            bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
            if (read_all(&found, fixture_path(cut_names[i]), NULL, NULL, true) == OK) {
                CHECK_OK(read_all(&good, fixture_path(names[i]), NULL, NULL, true));
                if (i == 0)
                    ck_assert_str_eq(found.texts.bytes, good.texts.bytes); /* our zstd frames have no checksum */
                found_free(&good);
            }
            found_free(&found);
        }
        free(bytes);
    }
    text_free(&lines);
    fixture_teardown();
}
END_TEST

START_TEST(skipping_goes_on_with_the_next_file) {
    fixture_setup();
    fixture_text("d/1.jsonl", "{\"text\": \"a\"}\nbad\n");
    fixture_text("d/2.jsonl.gz", "{\"text\": \"b\"}\n");
    CHECK_OK(file_write_atomic(fixture_path("d/3.jsonl.gz"), "not gzip at all", 15));
    fixture_text("d/4.jsonl", "{\"text\": \"c\"}");
    Found found;
    CHECK_OK(read_all(&found, fixture_path("d"), NULL, NULL, false));
    ck_assert_str_eq(found.texts.bytes, "a|b|c|");
    ck_assert_int_eq(found.skipped, 2);
    found_free(&found);
    CHECK_ERROR(read_all(&found, fixture_path("d/3.jsonl.gz"), NULL, NULL, true), ERR_REFUSED, "3.jsonl.gz:1: damaged");
    found_free(&found);
    fixture_teardown();
}
END_TEST

CHECK_MAIN("source", a_text_file_is_one_document_or_split_at_the_separator,
           a_separator_is_found_across_the_edges_of_reads, jsonl_gives_the_field_and_passes_over_blank_lines,
           compressed_files_read_as_plain_ones, a_line_may_be_very_long,
           a_folder_means_its_text_files_in_order_and_a_glob_its_matches,
           a_bad_record_is_an_error_with_file_and_line_or_is_counted,
           a_compressed_file_cut_anywhere_is_an_error_with_file_and_line, skipping_goes_on_with_the_next_file)
