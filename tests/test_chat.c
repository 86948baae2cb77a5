/* Records, templates, masks: against ids made by transformers and sentencepiece (golden/chat.py). How fine-tuning data
 * is known to go wrong is in test_complaints.c. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/json_text.h"
#include "model/core/file.h"
#include "tests/chat_case.h"

#define EXPECTED "tests/golden/chat_expected.jsonl"

/* ---- equal to others ----------------------------------------------------------------------------------------------
 */

static void check_expected(Case *c, const json_t *row, const char *name, int line) {
    const json_t *want = json_object_get(row, name), *ids = json_object_get(want, "ids");
    if (!want) return; /* the first rows have all templates */
    char *json = json_dumps(row, 0);
    render(c, json, TRAIN_ON_ASSISTANT);
    free(json);
    ck_assert_msg(json_array_size(ids) == c->tokens.n, "%s, line %d: %zu tokens, expected %zu", name, line, c->tokens.n,
                  json_array_size(ids));
    const json_t *runs = json_object_get(want, "learned");
    for (size_t i = 0, run = 0; i < c->tokens.n; i++) {
        ck_assert_msg(json_integer_value(json_array_get(ids, i)) == c->tokens.ids[i], "%s, line %d: token %zu is %d",
                      name, line, i, c->tokens.ids[i]);
        while (run < json_array_size(runs) &&
               (json_int_t)i >= json_integer_value(json_array_get(json_array_get(runs, run), 1)))
            run++;
        bool in_run = run < json_array_size(runs) &&
                      (json_int_t)i >= json_integer_value(json_array_get(json_array_get(runs, run), 0));
        ck_assert_msg((c->tokens.weights[i] > 0) == in_run, "%s, line %d: the mask differs at token %zu", name, line,
                      i);
    }
}

START_TEST(hostile_text_has_the_ids_and_masks_of_a_piecewise_encoding) {
    static const ChatTemplateSpec own = {.name = "own",
                                         .begin = "{bos}",
                                         .role = {[CHAT_SYSTEM] = {"# ", " #\n", NULL},
                                                  [CHAT_USER] = {"Q: ", "\n", NULL},
                                                  [CHAT_ASSISTANT] = {"A:  ", " .<|eot_id|>\n", "<|eot_id|>"}},
                                         .default_system = "quiet"};
    char *bytes;
    size_t size;
    int line = 0;
    Case cases[N_TEMPLATES + 1];
    for (int t = 0; t <= N_TEMPLATES; t++)
        cases[t] = case_open_spec(t < N_TEMPLATES ? tokenizer_for(TEMPLATES[t]) : CHAT_TOKENIZER,
                                  t < N_TEMPLATES ? chat_template_spec(TEMPLATES[t]) : &own,
                                  &(ChatTemplateOptions){.date = "1 May 2025"});
    CHECK_OK(file_read(&bytes, &size, EXPECTED, 0));
    for (char *rest = bytes, *row; (row = strsep(&rest, "\n")) != NULL && *row; line++) {
        json_t *root = json_loads(row, 0, NULL);
        ck_assert_ptr_nonnull(root);
        if (line == 0) ck_assert_uint_eq(json_object_size(root), N_TEMPLATES + 2); /* the messages, and own */
        for (int t = 0; t <= N_TEMPLATES; t++)
            check_expected(&cases[t], root, t < N_TEMPLATES ? TEMPLATES[t] : "own", line + 1);
        json_decref(root);
    }
    ck_assert_int_eq(line, 100);
    free(bytes);
    for (int t = 0; t <= N_TEMPLATES; t++) case_close(&cases[t]);
}
END_TEST

START_TEST(json_is_written_as_python_writes_it) {
    static const char *const same[] = {
        "{\"a\": [1, -2, 1.5, 100.0, 1e+16, 0.0001, 1e-05, 0.1, 1.7976931348623157e+308]}",
        "[\"caf\xc3\xa9 \\u0001\\u001f\\n\\t\\\"\\\\/\", true, false, null, {}, []]"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        Text out = {0};
        JsonDoc doc = {0};
        CHECK_OK(json_doc_read(&doc, same[i], strlen(same[i])));
        json_text_append(&out, doc.nodes);
        ck_assert_str_eq(out.bytes, same[i]);
        text_free(&out);
        json_doc_free(&doc);
    }
}
END_TEST

/* ---- masks ----------------------------------------------------------------------------------------------------------
 */

START_TEST(ids_do_not_depend_on_the_mask) {
    for (int t = 0; t < N_TEMPLATES; t++) {
        Case c = case_open(TEMPLATES[t]), other = case_open(TEMPLATES[t]);
        render(&c, TWO_TURNS, TRAIN_ON_ALL);
        for (TrainOn mode = TRAIN_ON_COMPLETION; mode <= TRAIN_ON_LAST; mode++) {
            render(&other, TWO_TURNS, mode);
            ck_assert_uint_eq(c.tokens.n, other.tokens.n);
            ck_assert_mem_eq(c.tokens.ids, other.tokens.ids, c.tokens.n * sizeof *c.tokens.ids);
        }
        case_close(&c);
        case_close(&other);
    }
}
END_TEST

START_TEST(each_mode_learns_what_it_says) {
    static const char tools[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"},"
        "{\"role\": \"user\", \"content\": \"c\"}, {\"role\": \"assistant\", \"tool_calls\": [{\"function\": "
        "{\"name\": \"f\", \"arguments\": \"{\\\"x\\\": 1}\"}}]}, {\"role\": \"tool\", \"content\": \"d\"},"
        "{\"role\": \"assistant\", \"content\": \"e\"}]}";
    Case c = case_open("llama3.1");
    render(&c, tools, TRAIN_ON_ASSISTANT);
    ck_assert_str_eq(learned(&c), "b<|eot_id|>|{\"name\": \"f\", \"parameters\": {\"x\": 1}}<|eot_id|>|e<|eot_id|>");
    render(&c, tools, TRAIN_ON_COMPLETION);
    ck_assert_str_eq(learned(&c), "{\"name\": \"f\", \"parameters\": {\"x\": 1}}<|eot_id|>|e<|eot_id|>");
    render(&c, tools, TRAIN_ON_LAST);
    ck_assert_str_eq(learned(&c), "e<|eot_id|>");
    render(&c, tools, TRAIN_ON_ALL);
    ck_assert_uint_eq(c.tokens.n_live, c.tokens.n - 1);
    case_close(&c);
}
END_TEST

START_TEST(a_weight_in_the_record_replaces_the_mode) {
    Case c = case_open("llama3");
    render(&c,
           "{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"train\": true}, {\"role\": \"assistant\", "
           "\"content\": \"b\", \"weight\": 0.5}, {\"role\": \"user\", \"content\": \"c\"},"
           "{\"role\": \"assistant\", \"content\": \"d\", \"train\": false}]}",
           TRAIN_ON_LAST);
    ck_assert_str_eq(learned(&c), "a|b<|eot_id|>");
    ck_assert(c.tokens.weights[c.tokens.last_stop] == 0.5f);
    case_close(&c);
}
END_TEST

START_TEST(a_record_that_does_not_fit_is_never_cut_unasked) {
    Case c = case_open("alpaca");
    render(&c, TWO_TURNS, TRAIN_ON_ASSISTANT);
    size_t n = c.tokens.n;
    ck_assert(chat_fit(&c.tokens, n, OVERLONG_FAIL));
    ck_assert(!chat_fit(&c.tokens, n - 1, OVERLONG_FAIL));
    ck_assert(!chat_fit(&c.tokens, n - 1, OVERLONG_DROP));
    ck_assert_uint_eq(c.tokens.n, n);
    ck_assert(chat_fit(&c.tokens, n - 1, OVERLONG_TRUNCATE_RIGHT));
    ck_assert_uint_eq(c.tokens.last_stop, c.tokens.n); /* the stop is gone, and that is known */
    render(&c, TWO_TURNS, TRAIN_ON_ASSISTANT);
    int32_t last = c.tokens.ids[n - 1];
    ck_assert(chat_fit(&c.tokens, 3, OVERLONG_TRUNCATE_LEFT));
    ck_assert_int_eq(c.tokens.ids[0], tokenizer_bos(c.tokenizer));
    ck_assert_int_eq(c.tokens.ids[2], last);
    ck_assert_uint_eq(c.tokens.last_stop, 2);
    ck_assert_uint_eq(c.tokens.n_live, 2);
    case_close(&c);
}
END_TEST

START_TEST(a_template_whose_tokens_are_missing_is_refused) {
    Tokenizer *t;
    ChatTemplate *chat;
    CHECK_OK(tokenizer_load(&t, "bytes"));
    CHECK_ERROR(chat_template_new(&chat, chat_template_spec("chatml"), NULL, t), ERR_REFUSED, "<|im_start|>");
    CHECK_ERROR(chat_template_new(&chat, chat_template_spec("llama3"), NULL, t), ERR_REFUSED, "<|start_header_id|>");
    tokenizer_free(t);
}
END_TEST

START_TEST(a_template_of_ones_own_needs_a_stop_that_is_a_token) {
    Tokenizer *t;
    ChatTemplate *chat;
    ChatTemplateSpec spec = {.name = "mine",
                             .begin = "{bos}",
                             .role = {[CHAT_USER] = {"Q: ", "\n", NULL}, [CHAT_ASSISTANT] = {"A: ", "\n", "\n"}}};
    CHECK_OK(tokenizer_load(&t, CHAT_TOKENIZER));
    CHECK_ERROR(chat_template_new(&chat, &spec, NULL, t), ERR_REFUSED, "stop");
    spec.role[CHAT_ASSISTANT].stop = "{eos}";
    CHECK_ERROR(chat_template_new(&chat, &spec, NULL, t), ERR_REFUSED, "would never end");
    tokenizer_free(t);
    spec.role[CHAT_ASSISTANT].after = ".{eos}\n";
    Case c = case_open_spec(CHAT_TOKENIZER, &spec, NULL);
    render(&c, TWO_TURNS, TRAIN_ON_ASSISTANT);
    ck_assert_str_eq(learned(&c), " two.<|end_of_text|>| four.<|end_of_text|>"); /* the space is the answer's */
    char *text;
    size_t size;
    CHECK_OK(tokenizer_decode(c.tokenizer, c.tokens.ids, c.tokens.n, true, &text, &size));
    ck_assert_str_eq(text, "<|begin_of_text|>Q: one\nA: two.<|end_of_text|>\nQ: three\nA: four.<|end_of_text|>\n");
    free(text);
    case_close(&c);
}
END_TEST

/* ---- records ------------------------------------------------------------------------------------------------------
 */

static void check_messages(const char *json, const ChatColumns *columns, const char *wanted) {
    Conversation conversation = {0};
    Text found = {0};
    CHECK_OK(conversation_parse(&conversation, json, strlen(json), columns));
    for (size_t i = 0; i < conversation.n; i++) {
        const ChatMessage *m = &conversation.messages[i];
        text_printf(&found, "%s%s:%s", i > 0 ? " " : "", chat_role_name(m->role), m->text.bytes);
        if (m->input.bytes) text_printf(&found, "+%s", m->input.bytes);
        if (m->in_completion) text_puts(&found, "*");
    }
    ck_assert_str_eq(found.bytes, wanted);
    text_free(&found);
    conversation_free(&conversation);
}

START_TEST(records_are_known_by_their_keys) {
    ChatColumns columns;
    check_messages("{\"text\": \"t\", \"instruction\": null}", NULL, "assistant:t*");
    check_messages("{\"instruction\": \"i\", \"input\": \"\", \"output\": \"o\", \"text\": \"t\"}", NULL,
                   "user:i assistant:o*");
    check_messages("{\"instruction\": \"i\", \"input\": \"n\", \"output\": \"o\", \"system\": \"s\", \"history\": "
                   "[[\"h\", \"g\"]]}",
                   NULL, "system:s user:h assistant:g user:i+n assistant:o*");
    check_messages(
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"h\"}, {\"from\": \"function_call\", \"value\": "
        "\"{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {}}\"}, {\"from\": \"observation\", \"value\": \"o\"}, "
        "{\"from\": \"gpt\", \"value\": \"g\"}]}",
        NULL, "user:h assistant:{\"name\": \"f\", \"parameters\": {}}* tool:o* assistant:g*");
    check_messages("{\"prompt\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"u\"}]}], "
                   "\"completion\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
                   NULL, "user:u assistant:a*");
    CHECK_OK(chat_columns_parse(&columns, "prompt=question,completion=answer"));
    check_messages("{\"question\": \"q\", \"answer\": \"a\", \"id\": 123456789012345678901234567890}", &columns,
                   "user:q assistant:a*");
    chat_columns_free(&columns);
    CHECK_ERROR(chat_columns_parse(&columns, "quest=a"), ERR_USAGE, "quest");
    chat_columns_free(&columns);
}
END_TEST

START_TEST(bad_records_are_refused_with_a_reason) {
    static const struct {
        const char *json, *reason;
    } bad[] = {
        {"{\"question\": 1}", "its keys are question"},
        {"[1]", "an array"},
        {"{\"messages\": []}", "empty"},
        {"{\"messages\": {}}", "not an array"},
        {"{\"messages\": [{\"role\": \"robot\", \"content\": \"\"}]}", "robot"},
        {"{\"messages\": [{\"role\": \"user\"}]}", "no \"content\""},
        {"{\"messages\": [{\"role\": \"user\", \"content\": 3}]}", "a number"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"\", \"weight\": -1}]}", "weight"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"\", \"weight\": 1e300}]}", "weight"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}", "only text"},
        {"{\"conversations\": [{\"from\": \"function_call\", \"value\": \"f(x)\"}]}", "no JSON"},
        {"{\"text\": \"a\", \"text\": \"b\"}", "duplicate"},
        {"{\"text\": \"\xff\"}", "0xff"},
        {"", "not a JSON object"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Conversation conversation = {0};
        CHECK_ERROR(conversation_parse(&conversation, bad[i].json, strlen(bad[i].json), NULL), ERR_REFUSED,
                    bad[i].reason);
        conversation_free(&conversation);
    }
}
END_TEST

START_TEST(roles_out_of_order_are_refused) {
    static const char *const bad[] = {"a", "s", "sa", "uu", "uaa", "us", "ut", "usa", "uasu"};
    static const char *const good[] = {"u", "su", "ua", "sua", "uau", "uata", "uatta"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad + sizeof good / sizeof *good; i++) {
        bool is_bad = i < sizeof bad / sizeof *bad;
        const char *roles = is_bad ? bad[i] : good[i - sizeof bad / sizeof *bad];
        Conversation conversation = {0};
        for (; *roles; roles++)
            if (*roles != ' ')
                CHECK_OK(conversation_add(&conversation, (ChatRole)(strchr("suat", *roles) - "suat"), "x"));
        if (is_bad)
            CHECK_ERROR(conversation_check_roles(&conversation), ERR_REFUSED, "role order");
        else
            CHECK_OK(conversation_check_roles(&conversation));
        conversation_free(&conversation);
    }
}
END_TEST

CHECK_MAIN("chat", hostile_text_has_the_ids_and_masks_of_a_piecewise_encoding, json_is_written_as_python_writes_it,
           ids_do_not_depend_on_the_mask, each_mode_learns_what_it_says, a_weight_in_the_record_replaces_the_mode,
           a_record_that_does_not_fit_is_never_cut_unasked, a_template_whose_tokens_are_missing_is_refused,
           a_template_of_ones_own_needs_a_stop_that_is_a_token, records_are_known_by_their_keys,
           bad_records_are_refused_with_a_reason, roles_out_of_order_are_refused)
