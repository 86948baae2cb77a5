/* What people complain of most in tools that fine-tune, one test each, named after the complaint: here none of it can
 * happen. Those that take a whole run are in e2e_complaints.sh. */
#include "data/chat/encode.h"
#include "data/loader.h"
#include "model/llama.h"
#include "tests/chat_case.h"
#include "tests/data_fixture.h"

START_TEST(it_never_stops_since_the_stop_is_not_learned) {
    for (int t = 0; t < N_TEMPLATES; t++) {
        Case c = case_open(TEMPLATES[t]);
        int32_t stops[2];
        ck_assert_uint_eq(chat_template_stops(c.chat, stops), 1);
        for (TrainOn mode = TRAIN_ON_ALL; mode <= TRAIN_ON_LAST; mode++) {
            render(&c, TWO_TURNS, mode);
            ck_assert_uint_lt(c.tokens.last_stop, c.tokens.n);
            ck_assert_int_eq(c.tokens.ids[c.tokens.last_stop], stops[0]);
            ck_assert(c.tokens.weights[c.tokens.last_stop] == 1);
            size_t last = c.tokens.n - 1;
            while (mode != TRAIN_ON_ALL && !(c.tokens.weights[last] > 0)) last--;
            if (mode != TRAIN_ON_ALL) ck_assert_uint_eq(last, c.tokens.last_stop);
        }
        case_close(&c);
    }
}
END_TEST

/* Nothing is padded, so no token is masked for being the padding: EOS is a target with weight in every micro-batch. */
START_TEST(it_never_stops_since_eos_is_masked_as_padding) {
    Case c = case_open("alpaca"); /* its stop is EOS, which others pad with */
    ChatEncoder encoder;
    Loader *loader;
    StepBatch batch;
    int n_records = 0, n_stops = 0;
    fixture_setup();
    chat_encoder_init(&encoder, &(ChatEncoderOptions){.chat = c.chat, .train_on = TRAIN_ON_ASSISTANT, .context = 200});
    SourceOptions source = {.path = fixture_text("r.jsonl",
                                                 "{\"prompt\": \"a\", \"completion\": \"b\"}\n"
                                                 "{\"prompt\": \"a longer one\", \"completion\": \"a longer answer\"}\n"
                                                 "{\"prompt\": \"c\", \"completion\": \"\"}\n"),
                            .weight = 1,
                            .encoder = &encoder.base};
    LoaderOptions options = {.sources = &source,
                             .n_sources = 1,
                             .cache = fixture_path("cache"),
                             .fail_on_error = true,
                             .packing = PACKING_BEST_FIT,
                             .document_mask = true,
                             .context = 200,
                             .tokens_per_batch = 800,
                             .tokens_per_microbatch = 400,
                             .seed = 3,
                             .n_ranks = 1};
    CHECK_OK(loader_open(&loader, &options, c.tokenizer));
    CHECK_OK(loader_step(loader, 0, &batch));
    for (int m = 0; m < batch.n_micro; m++) {
        n_records += batch.micro[m].n_segments;
        for (int t = 0; t < batch.micro[m].n_tokens; t++)
            n_stops += batch.micro[m].targets[t] == tokenizer_eos(c.tokenizer) && batch.micro[m].weights[t] == 1;
    }
    ck_assert_int_ge(n_records, 3);
    ck_assert_int_eq(n_stops, n_records);
    loader_free(loader);
    case_close(&c);
    fixture_teardown();
}
END_TEST

START_TEST(bos_is_there_twice) {
    for (int t = 0; t < N_TEMPLATES; t++) {
        Case c = case_open(TEMPLATES[t]);
        int32_t bos = tokenizer_bos(c.tokenizer);
        render(&c, TWO_TURNS, TRAIN_ON_ALL);
        size_t wanted = strcmp(TEMPLATES[t], "llama2") == 0 ? 2 : strcmp(TEMPLATES[t], "chatml") == 0 ? 0 : 1;
        ck_assert_uint_eq(count_id(&c, bos), wanted);
        for (size_t i = 0; i < c.tokens.n; i++) ck_assert((c.tokens.ids[i] == bos) == (c.tokens.weights[i] == 0));
        render(&c, "{\"text\": \"<|begin_of_text|><s>a document\"}", TRAIN_ON_LAST);
        ck_assert_uint_eq(count_id(&c, bos), 1);
        ck_assert_uint_eq(c.tokens.n_live, c.tokens.n - 1);
        case_close(&c);
    }
}
END_TEST

/* Text that would merge with what stands before it in every template: newlines, spaces, letters. */
START_TEST(the_mask_is_shifted_by_a_merge_across_the_prompts_end) {
    static const char *const answers[] = {"two", " two", "\\n\\ntwo", "", ":", "] two", "ee", "\\n"};
    for (int t = 0; t < N_TEMPLATES; t++) {
        Case c = case_open(TEMPLATES[t]);
        for (size_t a = 0; a < sizeof answers / sizeof *answers; a++) {
            char json[256];
            ChatTokens prompt = {0};
            snprintf(json, sizeof json, "{\"prompt\": \"thr\", \"completion\": \"%s\"}", answers[a]);
            render(&c, json, TRAIN_ON_COMPLETION);
            c.conversation.n--;
            CHECK_OK(chat_render_prompt(c.chat, &c.conversation, &prompt));
            ck_assert_uint_lt(prompt.n, c.tokens.n);
            ck_assert_mem_eq(prompt.ids, c.tokens.ids, prompt.n * sizeof *prompt.ids);
            for (size_t i = 0; i < prompt.n; i++) ck_assert(c.tokens.weights[i] == 0);
            ck_assert(c.tokens.weights[prompt.n] == 1);
            chat_tokens_free(&prompt);
        }
        case_close(&c);
    }
}
END_TEST

/* ---- packing ---- */

enum { LENGTH = 40, NEIGHBOUR = 23, VOCABULARY = 64 };

/* Logits of a conversation's tokens, [LENGTH, VOCABULARY], with another one before and behind it in one micro-batch:
 * all three are runs of ids that begin with `neighbours` and `first`. */
static void packed_logits(Llama *model, int32_t first, int32_t neighbours, float *out) {
    enum { N = LENGTH + 2 * NEIGHBOUR };
    int32_t tokens[N], positions[N], starts[] = {0, NEIGHBOUR, NEIGHBOUR + LENGTH, N};
    for (int s = 0; s < 3; s++)
        for (int t = starts[s]; t < starts[s + 1]; t++) {
            positions[t] = t - starts[s];
            tokens[t] = ((s == 1 ? first : neighbours) + 7 * positions[t]) % VOCABULARY;
        }
    Tape *tape = tape_new(&(TapeOptions){.capacity = N});
    Tensor *logits = op_logits(tape, llama_hidden(tape, model, (LlamaRecord){0}), &model->head);
    TapeBatch batch = {
        .n_tokens = N, .n_segments = 3, .tokens = tokens, .positions = positions, .segment_start = starts};
    tape_keep(logits);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &batch));
    CHECK_OK(tape_forward(tape, 0));
    memcpy(out, (const float *)tape_value(tape, 0, logits) + NEIGHBOUR * VOCABULARY,
           sizeof(float) * LENGTH * VOCABULARY);
    tape_free(tape);
}

START_TEST(packing_leaks_between_conversations) {
    static float one[LENGTH * VOCABULARY], other[LENGTH * VOCABULARY], unlike[LENGTH * VOCABULARY];
    LlamaShape shape = {.dim = 32,
                        .n_layers = 2,
                        .n_heads = 4,
                        .n_kv_heads = 2,
                        .head_dim = 8,
                        .ffn_dim = 64,
                        .vocab_size = VOCABULARY,
                        .max_context = 64,
                        .norm_eps = 1e-5f,
                        .rope_theta = 1e4f};
    Llama *model;
    CHECK_OK(llama_new(&model, &shape, (LlamaOptions){0}));
    CHECK_OK(llama_init(model, (LlamaInit){.seed = 5, .std = 0.3f}));
    packed_logits(model, 3, 11, one);
    packed_logits(model, 3, 40, other);
    packed_logits(model, 4, 11, unlike);
    ck_assert_mem_eq(one, other, sizeof one); /* no bit of it depends on what is packed beside it */
    ck_assert_mem_ne(one, unlike, sizeof one);
    llama_free(model);
}
END_TEST

CHECK_MAIN("complaints", it_never_stops_since_the_stop_is_not_learned, it_never_stops_since_eos_is_masked_as_padding,
           bos_is_there_twice, the_mask_is_shifted_by_a_merge_across_the_prompts_end,
           packing_leaks_between_conversations)
