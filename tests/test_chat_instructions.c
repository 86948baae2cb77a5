/* Real instruction files in Meta's templates: ids and masks of every record equal transformers' with Meta's own
 * templates, and for Llama 2 its reference code's (tests/golden/instructions.py says how), as one hash a file. */
#include <inttypes.h>
#include <string.h>

#include <jansson.h>

#include "data/chat/template.h"
#include "data/source.h"
#include "tests/tokenizer_data.h"

#define EXPECTED "tests/golden/instructions_expected.json"

typedef struct {
    json_int_t records, tokens, learned;
    uint64_t hash;
} Sums;

static void add(Sums *sums, const ChatTokens *tokens) {
    static const uint64_t prime = 0x100000001b3u;
    sums->records++;
    sums->tokens += (json_int_t)tokens->n;
    sums->learned += (json_int_t)tokens->n_live;
    for (size_t i = 0; i < tokens->n; i++)
        sums->hash = (sums->hash ^ (2 * (uint64_t)tokens->ids[i] + (tokens->weights[i] > 0))) * prime;
}

static Sums sums_of(char *path, const ChatTemplate *chat, const ChatColumns *columns) {
    Sums sums = {0};
    RecordReader *reader;
    Record record;
    Conversation conversation = {0};
    ChatTokens tokens = {0};
    bool found;
    CHECK_OK(
        records_open(&reader, &(RecordOptions){.paths = &path, .n_paths = 1, .fail_on_error = true, .whole = true}));
    for (;;) {
        int rc = records_next(reader, &record, &found);
        if (rc == OK && !found) break;
        if (rc == OK) rc = conversation_parse(&conversation, record.text, record.size, columns);
        if (rc == OK) rc = chat_render(chat, &conversation, TRAIN_ON_ASSISTANT, &tokens);
        if (rc != OK) ck_abort_msg("%s: %s", path, error_text());
        add(&sums, &tokens);
    }
    records_close(reader);
    conversation_free(&conversation);
    chat_tokens_free(&tokens);
    return sums;
}

static void check_row(const json_t *row, const Tokenizer *llama2, const Tokenizer *llama3) {
    const char *file = json_string_value(json_object_get(row, "file"));
    const char *template = json_string_value(json_object_get(row, "template"));
    char path[256], hash[32];
    ChatColumns columns;
    ChatTemplate *chat;
    snprintf(path, sizeof path, SHARED "instructions/%s", file);
    CHECK_OK(chat_columns_parse(&columns, json_string_value(json_object_get(row, "columns"))));
    CHECK_OK(chat_template_new(&chat, chat_template_spec(template), NULL,
                               strcmp(template, "llama2") == 0 ? llama2 : llama3));
    Sums sums = sums_of(path, chat, &columns);
    snprintf(hash, sizeof hash, "%016" PRIx64, sums.hash);
    ck_assert_msg(sums.records == json_integer_value(json_object_get(row, "records")) &&
                      sums.tokens == json_integer_value(json_object_get(row, "tokens")) &&
                      sums.learned == json_integer_value(json_object_get(row, "learned")) &&
                      strcmp(hash, json_string_value(json_object_get(row, "hash"))) == 0,
                  "%s as %s: %d records, %d tokens, %d learned, %s", file, template, (int)sums.records,
                  (int)sums.tokens, (int)sums.learned, hash);
    chat_template_free(chat);
    chat_columns_free(&columns);
}

START_TEST(instruction_files_have_the_ids_and_masks_of_metas_templates) {
    SKIP_UNLESS(LLAMA2);
    SKIP_UNLESS(LLAMA3);
    SKIP_UNLESS(SHARED "instructions/alpaca_en_demo.json");
    Tokenizer *llama2 = tokenizer_of(LLAMA2), *llama3 = tokenizer_of(LLAMA3);
    json_t *rows = json_load_file(EXPECTED, 0, NULL);
    size_t i;
    const json_t *row;
    ck_assert_uint_eq(json_array_size(rows), 26);
    json_array_foreach(rows, i, row) check_row(row, llama2, llama3);
    json_decref(rows);
    tokenizer_free(llama2);
    tokenizer_free(llama3);
}
END_TEST

CHECK_MAIN("instruction files", instruction_files_have_the_ids_and_masks_of_metas_templates)
