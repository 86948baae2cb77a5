/* A conversation's cache: a turn costs its own tokens, and its answer is the one that a fresh model gives. */
#include <string.h>

#include "eval/chat.h"
#include "model/core/text.h"
#include "tests/check_main.h"

typedef struct {
    Tokenizer *tokenizer;
    ChatTemplate *chat_template;
    Llama *model;
    Chat *chat;
} Fixture;

static const GenerateOptions greedy = {.max_new_tokens = 12};

static Fixture make(int context) {
    Fixture f = {0};
    LlamaShape shape = {.dim = 32,
                        .n_layers = 2,
                        .n_heads = 4,
                        .n_kv_heads = 2,
                        .head_dim = 8,
                        .ffn_dim = 64,
                        .vocab_size = 258,
                        .max_context = 512,
                        .norm_eps = 1e-5f,
                        .rope_theta = 1e4f};
    CHECK_OK(tokenizer_load(&f.tokenizer, "bytes"));
    CHECK_OK(chat_template_new(&f.chat_template, chat_template_spec("plain"), NULL, f.tokenizer));
    CHECK_OK(llama_new(&f.model, &shape, (LlamaOptions){0}));
    CHECK_OK(llama_init(f.model, (LlamaInit){.seed = 5, .std = 0.3f}));
    CHECK_OK(chat_new(&f.chat, f.model, f.tokenizer, f.chat_template, context));
    return f;
}
static void drop(Fixture *f) {
    chat_free(f->chat);
    llama_free(f->model);
    chat_template_free(f->chat_template);
    tokenizer_free(f->tokenizer);
}

static char *record_of(const Chat *chat) {
    Text text = {0};
    CHECK_OK(chat_record(chat, &text));
    return text.bytes;
}

static const char *const questions[] = {"first", "second question", "the third", "4"};
enum { N = sizeof questions / sizeof *questions };

START_TEST(a_turn_over_the_kept_cache_answers_as_a_fresh_model_does) {
    Fixture f = make(400);
    FinishReason reason;
    for (int turn = 0; turn < N; turn++) {
        size_t before = chat_computed(f.chat), whole;
        CHECK_OK(chat_count(f.chat, questions[turn], &whole));
        CHECK_OK(chat_ask(f.chat, questions[turn], &greedy, &reason));
        /* its question, the stop and tokens that bytes do not spell again, its answer: far from the whole of a late
         * turn */
        size_t cost = chat_computed(f.chat) - before;
        if (turn == N - 1) ck_assert_uint_lt(cost, whole);
    }
    char *kept = record_of(f.chat);
    Fixture fresh = make(400);
    for (int turn = 0; turn < N; turn++) CHECK_OK(chat_ask(fresh.chat, questions[turn], &greedy, &reason));
    char *again = record_of(fresh.chat);
    ck_assert_str_eq(kept, again);
    CHECK_OK(chat_begin(f.chat, NULL)); /* another conversation over a cache that holds the first */
    for (int turn = N - 1; turn >= 0; turn--) CHECK_OK(chat_ask(f.chat, questions[turn], &greedy, &reason));
    CHECK_OK(chat_begin(fresh.chat, "other"));
    CHECK_OK(chat_ask(fresh.chat, "other", &greedy, &reason));
    CHECK_OK(chat_begin(fresh.chat, NULL));
    for (int turn = N - 1; turn >= 0; turn--) CHECK_OK(chat_ask(fresh.chat, questions[turn], &greedy, &reason));
    free(kept);
    free(again);
    kept = record_of(f.chat);
    again = record_of(fresh.chat);
    ck_assert_str_eq(kept, again);
    free(kept);
    free(again);
    drop(&f);
    drop(&fresh);
}
END_TEST

/* Turn by turn with a generator that keeps, against one that begins anew: the same tokens. */
START_TEST(a_generator_that_keeps_gives_what_one_that_does_not_gives) {
    Fixture f = make(400);
    Generator *keeps, *plain;
    CHECK_OK(generator_new(&keeps, f.model, f.tokenizer,
                           (GeneratorOptions){.max_batch = 1, .max_sequence = 400, .keep = true}));
    CHECK_OK(generator_new(&plain, f.model, f.tokenizer, (GeneratorOptions){.max_batch = 1, .max_sequence = 400}));
    TokenList prompt = {0};
    for (int turn = 0; turn < 6; turn++) {
        Generation a, b;
        size_t before = generator_computed(keeps);
        if (turn == 4) prompt.n = 9; /* back to the beginning: what lies behind is overwritten */
        CHECK_OK(tokenizer_encode(f.tokenizer, questions[turn % N], strlen(questions[turn % N]), 0, &prompt));
        CHECK_OK(generator_run(keeps, &prompt, 1, &greedy, &a));
        CHECK_OK(generator_run(plain, &prompt, 1, &greedy, &b));
        ck_assert_uint_eq(a.tokens.n, b.tokens.n);
        ck_assert_mem_eq(a.tokens.ids, b.tokens.ids, a.tokens.n * sizeof *a.tokens.ids);
        if (turn > 0 && turn != 4) /* the question, the last token before it, and the answer */
            ck_assert_uint_le(generator_computed(keeps) - before, strlen(questions[turn % N]) + 1 + a.tokens.n + 1);
        CHECK_OK(token_list_append(&prompt, a.tokens.ids, a.tokens.n));
        generation_free(&a);
        generation_free(&b);
    }
    token_list_free(&prompt);
    generator_free(keeps);
    generator_free(plain);
    drop(&f);
}
END_TEST

START_TEST(a_full_context_leaves_the_conversation_as_it_was) {
    Fixture f = make(64);
    FinishReason reason;
    CHECK_OK(chat_begin(f.chat, "system"));
    CHECK_OK(chat_ask(f.chat, "one", &greedy, &reason));
    char *before = record_of(f.chat);
    CHECK_ERROR(
        chat_ask(f.chat, "a question of very many bytes, more than sixty-four of them in all", &greedy, &reason),
        ERR_REFUSED, "the context is 64");
    char *after = record_of(f.chat);
    ck_assert_str_eq(before, after);
    ck_assert(chat_drop_oldest(f.chat));
    ck_assert(!chat_drop_oldest(f.chat));
    free(after);
    after = record_of(f.chat);
    ck_assert_str_eq(after, "{\"messages\": [{\"role\": \"system\", \"content\": \"system\"}]}\n");
    free(before);
    free(after);
    drop(&f);
}
END_TEST

static int stop_at_once(void *context, size_t prompt, const char *bytes, size_t n) {
    (void)context, (void)prompt, (void)bytes, (void)n;
    FAIL(ERR_INTERRUPTED, "stopped");
}

START_TEST(an_answer_that_is_stopped_stays_as_far_as_it_came) {
    Fixture f = make(200);
    FinishReason reason;
    GenerateOptions options = greedy;
    options.emit = stop_at_once;
    ck_assert_int_eq(chat_ask(f.chat, "one", &options, &reason), ERR_INTERRUPTED);
    CHECK_OK(chat_ask(f.chat, "two", &greedy, &reason)); /* roles still take turns */
    drop(&f);
}
END_TEST

CHECK_MAIN("chat turns", a_turn_over_the_kept_cache_answers_as_a_fresh_model_does,
           a_generator_that_keeps_gives_what_one_that_does_not_gives, a_full_context_leaves_the_conversation_as_it_was,
           an_answer_that_is_stopped_stays_as_far_as_it_came)
