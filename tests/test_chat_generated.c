/* Ten thousand generated conversations, for every template: ids and weights equal a construction that is written out
 * here, plainly and apart from data/chat: special tokens by their ids, every segment encoded alone, and no text
 * searched for special tokens. */
#include <string.h>

#include "data/chat/template.h"
#include "model/core/file.h"
#include "tests/check_main.h"
#include "tests/generated_talk.h"
#include "train/files/model_template.h"

#define CHAT_TOKENIZER "tests/golden/tokenizer_chat.json"
#define LLAMA_TOKENIZER "tests/golden/tokenizer_llama.model"
#define REAL_LLAMA2 "../shared/data/tokenizers/llama2/tokenizer.model"
#define REAL_LLAMA3 "../shared/data/tokenizers/llama3/tokenizer.model"
#define DATE "1 May 2025"

enum { N_CONVERSATIONS = 10000 };

/* Check writes a file at every assertion that holds: not in these loops. */
#define MUST(call)                                                     \
    do {                                                               \
        if ((call) != OK) ck_abort_msg("%s: %s", #call, error_text()); \
    } while (0)

/* ---- what must come out -------------------------------------------------------------------------------------------
 */

typedef struct {
    const Tokenizer *tokenizer;
    TokenList ids;
    float *weights;
    size_t room;
    Text pending; /* text of one weight, up to the next seam */
    float pending_weight;
    bool after_text;
    size_t answer; /* where the last answer begins */
} Expected;

static void add_ids(Expected *e, const int32_t *ids, size_t n, float weight) {
    MUST(token_list_append(&e->ids, ids, n));
    if (e->ids.n > e->room) {
        e->room = 2 * e->ids.n;
        e->weights = realloc(e->weights, e->room * sizeof *e->weights);
    }
    for (size_t i = 0; i < n; i++) e->weights[e->ids.n - n + i] = ids[i] == tokenizer_bos(e->tokenizer) ? 0 : weight;
}

static void seam(Expected *e) {
    TokenList list = {0};
    if (e->pending.length == 0) return;
    int flags = e->after_text ? TOKENIZE_AFTER_TEXT : e->ids.n > 0 ? TOKENIZE_AFTER_TOKEN : 0;
    MUST(tokenizer_encode(e->tokenizer, e->pending.bytes, e->pending.length, flags, &list));
    add_ids(e, list.ids, list.n, e->pending_weight);
    token_list_free(&list);
    text_clear(&e->pending);
    e->after_text = true;
}
static void put(Expected *e, const char *bytes, size_t size, float weight) {
    if (size > 0 && weight != e->pending_weight) seam(e);
    if (size > 0) e->pending_weight = weight;
    text_append(&e->pending, bytes, size);
}
static void put_words(Expected *e, const char *words, float weight) {
    put(e, words, strlen(words), weight);
}
static void put_special(Expected *e, int32_t id, float weight) {
    if (id < 0) ck_abort_msg("the tokenizer lacks a special token");
    seam(e);
    add_ids(e, &id, 1, weight);
    e->after_text = false;
}
static void put_named(Expected *e, const char *name, float weight) {
    put_special(e, tokenizer_special(e->tokenizer, name), weight);
}

static bool begins_with_space(const char *at, size_t size, size_t *n) {
    static const char *const spaces[] = {" ", "\n", "\r", "\t", "\u00a0", "\u2003", "\u3000", "\u2028"};
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        *n = strlen(spaces[i]);
        if (*n <= size && memcmp(at, spaces[i], *n) == 0) return true;
    }
    return false;
}
/* The text without the white space at its ends. */
static void put_stripped(Expected *e, const Text *text, float weight) {
    size_t begin = 0, end = 0, n;
    while (begin < text->length && begins_with_space(text->bytes + begin, text->length - begin, &n)) begin += n;
    for (size_t at = begin; at < text->length; at += n) {
        bool space = begins_with_space(text->bytes + at, text->length - at, &n);
        if (!space) n = 1;
        if (!space) end = at + 1;
    }
    if (end > begin) put(e, text->bytes + begin, end - begin, weight);
}

/* Of the turn's text: the mode's, or its own. */
static float weight_of(const Talk *talk, size_t i, TrainOn mode) {
    bool later_answer = false, later_question = false;
    if (talk->turns[i].role != CHAT_ASSISTANT) return mode == TRAIN_ON_ALL;
    if (talk->turns[i].has_weight) return talk->turns[i].weight;
    for (size_t k = i + 1; k < talk->n; k++) {
        later_answer = later_answer || talk->turns[k].role == CHAT_ASSISTANT;
        later_question = later_question || talk->turns[k].role == CHAT_USER;
    }
    return mode == TRAIN_ON_LAST ? !later_answer : mode == TRAIN_ON_COMPLETION ? !later_question : 1;
}

typedef void Build(Expected *e, const Talk *talk, TrainOn mode);

static void llama3_turn(Expected *e, const char *role, const char *before, const Text *text, float around,
                        float weight) {
    bool is_answer = strcmp(role, "assistant") == 0;
    put_named(e, "<|start_header_id|>", around);
    put_words(e, role, around);
    put_named(e, "<|end_header_id|>", around);
    put_words(e, "\n\n", around);
    put_words(e, before, around);
    if (is_answer) seam(e);
    if (is_answer) e->answer = e->ids.n;
    if (text) put_stripped(e, text, weight);
    put_named(e, "<|eot_id|>", weight);
}
static void build_llama3_family(Expected *e, const Talk *talk, TrainOn mode, const char *dates) {
    float around = mode == TRAIN_ON_ALL;
    bool has_system = talk->turns[0].role == CHAT_SYSTEM;
    put_named(e, "<|begin_of_text|>", 0);
    if (has_system || *dates) llama3_turn(e, "system", dates, has_system ? &talk->turns[0].text : NULL, around, around);
    for (size_t i = has_system; i < talk->n; i++)
        llama3_turn(e, chat_role_name(talk->turns[i].role), "", &talk->turns[i].text, around, weight_of(talk, i, mode));
}
static void build_llama3(Expected *e, const Talk *talk, TrainOn mode) {
    build_llama3_family(e, talk, mode, "");
}
static void build_llama31(Expected *e, const Talk *talk, TrainOn mode) {
    build_llama3_family(e, talk, mode, "Cutting Knowledge Date: December 2023\nToday Date: " DATE "\n\n");
}

/* Meta's reference code encodes a question and its answer as one text; a question alone must be its beginning. */
static void build_llama2(Expected *e, const Talk *talk, TrainOn mode) {
    bool has_system = talk->turns[0].role == CHAT_SYSTEM;
    float around = mode == TRAIN_ON_ALL;
    for (size_t i = has_system; i < talk->n; i += 2) {
        bool has_answer = i + 1 < talk->n;
        float weight = has_answer ? weight_of(talk, i + 1, mode) : 0;
        TokenList question = {0}, both = {0};
        put_special(e, tokenizer_bos(e->tokenizer), 0);
        put_words(e, "[INST] ", 0);
        if (has_system && i == 1) {
            put_words(e, "<<SYS>>\n", 0);
            put_stripped(e, &talk->turns[0].text, 0);
            put_words(e, "\n<</SYS>>\n\n", 0);
        }
        put_stripped(e, &talk->turns[i].text, 0);
        put_words(e, " [/INST]", 0);
        MUST(tokenizer_encode(e->tokenizer, e->pending.bytes, e->pending.length, TOKENIZE_AFTER_TOKEN, &question));
        if (has_answer) {
            put_words(e, " ", 0);
            put_stripped(e, &talk->turns[i + 1].text, 0);
            put_words(e, " ", 0);
        }
        MUST(tokenizer_encode(e->tokenizer, e->pending.bytes, e->pending.length, TOKENIZE_AFTER_TOKEN, &both));
        text_clear(&e->pending);
        if (both.n < question.n || memcmp(both.ids, question.ids, question.n * sizeof *question.ids) != 0)
            ck_abort_msg("a question's ids are not the beginning of those with its answer");
        add_ids(e, both.ids, question.n, around);
        if (has_answer) e->answer = e->ids.n;
        add_ids(e, both.ids + question.n, both.n - question.n, weight);
        if (has_answer) put_special(e, tokenizer_eos(e->tokenizer), weight);
        token_list_free(&question);
        token_list_free(&both);
    }
}

static void build_alpaca(Expected *e, const Talk *talk, TrainOn mode) {
    float around = mode == TRAIN_ON_ALL;
    bool has_system = talk->turns[0].role == CHAT_SYSTEM;
    put_special(e, tokenizer_bos(e->tokenizer), 0);
    if (has_system)
        put_stripped(e, &talk->turns[0].text, around);
    else
        put_words(e,
                  "Below is an instruction that describes a task. Write a response that appropriately completes the "
                  "request.",
                  around);
    put_words(e, "\n\n", around);
    for (size_t i = has_system; i < talk->n; i++) {
        bool is_answer = talk->turns[i].role == CHAT_ASSISTANT;
        float weight = weight_of(talk, i, mode);
        put_words(e, is_answer ? "### Response:\n" : "### Instruction:\n", around);
        if (is_answer) seam(e);
        if (is_answer) e->answer = e->ids.n;
        put_stripped(e, &talk->turns[i].text, weight);
        if (is_answer)
            put_special(e, tokenizer_eos(e->tokenizer), weight);
        else
            put_words(e, "\n\n", around);
    }
    seam(e);
}

static void build_chatml(Expected *e, const Talk *talk, TrainOn mode) {
    float around = mode == TRAIN_ON_ALL;
    for (size_t i = 0; i < talk->n; i++) {
        bool is_answer = talk->turns[i].role == CHAT_ASSISTANT;
        float weight = weight_of(talk, i, mode);
        put_named(e, "<|im_start|>", around);
        put_words(e, chat_role_name(talk->turns[i].role), around);
        put_words(e, "\n", around);
        if (is_answer) seam(e);
        if (is_answer) e->answer = e->ids.n;
        put_stripped(e, &talk->turns[i].text, weight);
        put_named(e, "<|im_end|>", weight);
        put_words(e, "\n", around);
    }
    seam(e);
}

static void build_plain(Expected *e, const Talk *talk, TrainOn mode) {
    put_special(e, tokenizer_bos(e->tokenizer), 0);
    for (size_t i = 0; i < talk->n; i++) {
        bool is_answer = talk->turns[i].role == CHAT_ASSISTANT;
        if (is_answer) seam(e);
        if (is_answer) e->answer = e->ids.n;
        put(e, talk->turns[i].text.bytes, talk->turns[i].text.length, weight_of(talk, i, mode));
        if (is_answer) put_special(e, tokenizer_eos(e->tokenizer), weight_of(talk, i, mode));
    }
    seam(e);
}

#define YAML                                                                          \
    "template:\n"                                                                     \
    "  name: mine\n"                                                                  \
    "  begin: \"{bos}On {date}.\\n\"\n"                                               \
    "  system: {before: \"# \", after: \" #\\n\"}\n"                                  \
    "  user: {before: \"Q: \", after: \"\\n\"}\n"                                     \
    "  assistant: {before: \"A:  \", after: \" .<|eot_id|>\\n\", stop: <|eot_id|>}\n" \
    "  default_system: quiet\n"

/* The two spaces that end "A:  " are the answer's; what follows the stop is not learned. */
static void build_yaml(Expected *e, const Talk *talk, TrainOn mode) {
    float around = mode == TRAIN_ON_ALL;
    bool has_system = talk->turns[0].role == CHAT_SYSTEM;
    put_special(e, tokenizer_bos(e->tokenizer), 0);
    put_words(e, "On " DATE ".\n", around);
    seam(e);
    put_words(e, "# ", around);
    if (has_system)
        put(e, talk->turns[0].text.bytes, talk->turns[0].text.length, around);
    else
        put_words(e, "quiet", around);
    put_words(e, " #\n", around);
    for (size_t i = has_system; i < talk->n; i++) {
        const Text *text = &talk->turns[i].text;
        float weight = weight_of(talk, i, mode);
        if (talk->turns[i].role == CHAT_USER) {
            put_words(e, "Q: ", around);
            put(e, text->bytes, text->length, around);
            put_words(e, "\n", around);
            continue;
        }
        put_words(e, "A:", around);
        seam(e);
        e->answer = e->ids.n;
        put_words(e, "  ", weight);
        put(e, text->bytes, text->length, weight);
        put_words(e, " .", weight);
        put_named(e, "<|eot_id|>", weight);
        put_words(e, "\n", around);
    }
    seam(e);
}

/* ---- the comparison -----------------------------------------------------------------------------------------------
 */

static void expected_begin(Expected *e) {
    e->ids.n = e->answer = 0;
    e->pending_weight = 0;
    e->after_text = false;
    text_clear(&e->pending);
}
static void expected_free(Expected *e) {
    token_list_free(&e->ids);
    text_free(&e->pending);
    free(e->weights);
}

static void compare(const Expected *e, const ChatTokens *tokens, uint32_t number, const char *json) {
    size_t same = 0, learned = 0;
    while (same < tokens->n && same < e->ids.n && tokens->ids[same] == e->ids.ids[same] &&
           tokens->weights[same] == e->weights[same])
        same++;
    for (size_t i = 0; i < e->ids.n; i++) learned += e->weights[i] > 0;
    if (same != tokens->n || same != e->ids.n)
        ck_abort_msg("conversation %u differs from token %zu of %zu on: %s", (unsigned)number, same, e->ids.n, json);
    if (tokens->n_live != learned)
        ck_abort_msg("conversation %u: %zu learned, counted %zu: %s", (unsigned)number, learned, tokens->n_live, json);
}

/* The prompt of a conversation without its last answer: what stands before that answer. */
static void compare_prompt(const ChatTemplate *chat, Conversation *conversation, const Expected *e,
                           ChatTokens *tokens) {
    if (conversation->messages[conversation->n - 1].role != CHAT_ASSISTANT) return;
    conversation->n--;
    MUST(chat_render_prompt(chat, conversation, tokens));
    if (tokens->n != e->answer || memcmp(tokens->ids, e->ids.ids, tokens->n * sizeof *tokens->ids) != 0)
        ck_abort_msg("the prompt is not what stands before the answer");
}

static void check_all(const ChatTemplate *chat, const Tokenizer *tokenizer, Build *build) {
    Expected expected = {.tokenizer = tokenizer};
    Conversation conversation = {0};
    ChatTokens tokens = {0};
    for (uint32_t number = 0; number < N_CONVERSATIONS; number++) {
        Talk talk;
        TrainOn mode = (TrainOn)(number % 4);
        draw_talk(&talk, number);
        char *json = talk_json(&talk);
        MUST(conversation_parse(&conversation, json, strlen(json), NULL));
        MUST(chat_render(chat, &conversation, mode, &tokens));
        expected_begin(&expected);
        build(&expected, &talk, mode);
        compare(&expected, &tokens, number, json);
        compare_prompt(chat, &conversation, &expected, &tokens);
        free(json);
        talk_free(&talk);
    }
    expected_free(&expected);
    conversation_free(&conversation);
    chat_tokens_free(&tokens);
}

static void check_named(const char *tokenizer_path, const char *name, Build *build) {
    Tokenizer *tokenizer;
    ChatTemplate *chat;
    if (strcmp(tokenizer_path, "bytes") != 0 && !file_exists(tokenizer_path)) {
        printf("without %s (%s)\n", tokenizer_path, name);
        return;
    }
    CHECK_OK(tokenizer_load(&tokenizer, tokenizer_path));
    CHECK_OK(chat_template_new(&chat, chat_template_spec(name), &(ChatTemplateOptions){.date = DATE}, tokenizer));
    check_all(chat, tokenizer, build);
    chat_template_free(chat);
    tokenizer_free(tokenizer);
}

START_TEST(llama2_is_a_piecewise_encoding) {
    check_named(LLAMA_TOKENIZER, "llama2", build_llama2);
    check_named(REAL_LLAMA2, "llama2", build_llama2);
}
END_TEST
START_TEST(llama3_is_a_piecewise_encoding) {
    check_named(CHAT_TOKENIZER, "llama3", build_llama3);
    check_named(REAL_LLAMA3, "llama3", build_llama3);
}
END_TEST
START_TEST(llama31_is_a_piecewise_encoding) {
    check_named(CHAT_TOKENIZER, "llama3.1", build_llama31);
    check_named(REAL_LLAMA3, "llama3.1", build_llama31);
}
END_TEST
START_TEST(llama32_is_a_piecewise_encoding) {
    check_named(CHAT_TOKENIZER, "llama3.2", build_llama31);
    check_named(REAL_LLAMA3, "llama3.2", build_llama31);
}
END_TEST
START_TEST(alpaca_is_a_piecewise_encoding) {
    check_named(CHAT_TOKENIZER, "alpaca", build_alpaca);
    check_named(REAL_LLAMA2, "alpaca", build_alpaca);
}
END_TEST
START_TEST(chatml_is_a_piecewise_encoding) {
    check_named(CHAT_TOKENIZER, "chatml", build_chatml);
}
END_TEST
START_TEST(plain_is_a_piecewise_encoding) {
    check_named(CHAT_TOKENIZER, "plain", build_plain);
    check_named("bytes", "plain", build_plain);
}
END_TEST

START_TEST(a_template_from_yaml_is_a_piecewise_encoding) {
    Config *config;
    Tokenizer *tokenizer;
    ModelTemplate own;
    CHECK_OK(config_new(&config));
    CHECK_OK(config_parse(config, "own.yaml", YAML "  date: " DATE "\n", strlen(YAML "  date: " DATE "\n")));
    CHECK_OK(tokenizer_load(&tokenizer, CHAT_TOKENIZER));
    CHECK_OK(model_template_choose(&own, config, NULL, "a model", tokenizer));
    CHECK_OK(model_template_open(&own, tokenizer));
    check_all(own.chat, tokenizer, build_yaml);
    model_template_free(&own);
    tokenizer_free(tokenizer);
    config_free(config);
}
END_TEST

CHECK_MAIN("generated conversations", llama2_is_a_piecewise_encoding, llama3_is_a_piecewise_encoding,
           llama31_is_a_piecewise_encoding, llama32_is_a_piecewise_encoding, alpaca_is_a_piecewise_encoding,
           chatml_is_a_piecewise_encoding, plain_is_a_piecewise_encoding, a_template_from_yaml_is_a_piecewise_encoding)
