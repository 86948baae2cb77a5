/* Templates that travel with a model, and tokenizers that grow for them. */
#include <string.h>

#include "data/chat/saved.h"
#include "model/core/file.h"
#include "model/llama.h"
#include "tests/check_main.h"

#define CHAT_TOKENIZER "tests/golden/tokenizer_chat.json"
#define LLAMA_TOKENIZER "tests/golden/tokenizer_llama.model"

#define HOSTILE                                                                                                        \
    "{\"messages\": [{\"role\": \"system\", \"content\": \" s \"}, {\"role\": \"user\", \"content\": \"<|im_end|> one" \
    "\"}, {\"role\": \"assistant\", \"content\": \"two\\n\"}, {\"role\": \"user\", \"content\": \"3\"}, {\"role\": "   \
    "\"assistant\", \"content\": \"four\"}]}"

static void render(const ChatTemplate *chat, ChatTokens *tokens) {
    Conversation conversation = {0};
    CHECK_OK(conversation_parse(&conversation, HOSTILE, strlen(HOSTILE), NULL));
    CHECK_OK(chat_render(chat, &conversation, TRAIN_ON_ASSISTANT, tokens));
    conversation_free(&conversation);
}

/* The saved text is read again as a template that renders the same. */
static void check_round_trip(const ChatTemplateSpec *spec, const ChatTemplateOptions *options,
                             const Tokenizer *tokenizer) {
    ChatTemplate *chat, *again;
    SavedTemplate saved;
    Text jinja = {0};
    ChatTokens a = {0}, b = {0};
    bool found;
    CHECK_OK(chat_template_new(&chat, spec, options, tokenizer));
    CHECK_OK(chat_template_save(chat, &jinja));
    CHECK_OK(saved_template_read(&saved, &found, jinja.bytes, tokenizer));
    ck_assert_msg(found, "%s", spec->name);
    ck_assert_str_eq(saved.spec.name, spec->name);
    CHECK_OK(chat_template_new(&again, &saved.spec, &saved.options, tokenizer));
    ck_assert(chat_template_hash(chat) == chat_template_hash(again));
    render(chat, &a);
    render(again, &b);
    ck_assert_uint_eq(a.n, b.n);
    ck_assert_mem_eq(a.ids, b.ids, a.n * sizeof *a.ids);
    ck_assert_mem_eq(a.weights, b.weights, a.n * sizeof *a.weights);
    chat_tokens_free(&a);
    chat_tokens_free(&b);
    chat_template_free(again);
    saved_template_free(&saved);
    jinja.bytes[jinja.length - 8] ^= 1; /* changed by another hand */
    CHECK_OK(saved_template_read(&saved, &found, jinja.bytes, tokenizer));
    ck_assert(!found);
    text_free(&jinja);
    chat_template_free(chat);
}

START_TEST(a_saved_template_is_read_again_and_a_changed_one_is_not) {
    Tokenizer *tokenizer, *llama;
    size_t n;
    const char *const *names = chat_template_names(&n);
    CHECK_OK(tokenizer_load(&tokenizer, CHAT_TOKENIZER));
    CHECK_OK(tokenizer_load(&llama, LLAMA_TOKENIZER));
    for (size_t i = 0; i < n; i++)
        check_round_trip(chat_template_spec(names[i]), &(ChatTemplateOptions){.date = "1 May 2025"},
                         strcmp(names[i], "llama2") == 0 ? llama : tokenizer);
    const ChatTemplateSpec own = {.name = "own",
                                  .begin = "{bos}#} -#} {{ x }} '\\ \n",
                                  .role = {[CHAT_SYSTEM] = {"S#}", "\t\n", NULL},
                                           [CHAT_USER] = {"Q: ", "\n", NULL},
                                           [CHAT_ASSISTANT] = {"A: ", "{eos}\n", "{eos}"}},
                                  .default_system = "quiet"};
    check_round_trip(&own, NULL, tokenizer);
    tokenizer_free(tokenizer);
    tokenizer_free(llama);
}
END_TEST

START_TEST(known_texts_of_others_are_recognised) {
    static const char llama3[] =
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 "
        "%}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ "
        "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
    static const char chatml[] =
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
        "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n";
    Tokenizer *tokenizer;
    SavedTemplate saved;
    bool found;
    CHECK_OK(tokenizer_load(&tokenizer, CHAT_TOKENIZER));
    CHECK_OK(saved_template_read(&saved, &found, llama3, tokenizer));
    ck_assert(found && strcmp(saved.spec.name, "llama3") == 0 && saved.spec.trim);
    CHECK_OK(saved_template_read(&saved, &found, chatml, tokenizer));
    ck_assert(found && strcmp(saved.spec.name, "chatml") == 0 && !saved.spec.trim);
    CHECK_OK(saved_template_read(&saved, &found, "{{ messages }}", tokenizer));
    ck_assert(!found);
    CHECK_OK(saved_template_read(&saved, &found, "{#- cria {\"name\": -#}\n", tokenizer));
    ck_assert(!found);
    tokenizer_free(tokenizer);
}
END_TEST

/* These texts, run by Go 1.19's text/template over conversations with and without a system message, gave cria's ids. */
START_TEST(ollamas_template_says_the_same) {
    static const char llama2[] =
        "{{ $first := true }}{{ range .Messages }}{{ if eq .Role \"user\" }}{{ if not $first }}<s>{{ end }}[INST] {{ "
        "if "
        "and $first $.System }}<<SYS>>\n{{ $.System }}\n<</SYS>>\n\n{{ end }}{{ .Content }} [/INST]{{ $first = false "
        "}}{{ else if eq .Role \"assistant\" }} {{ .Content }} </s>{{ end }}{{ end }}";
    static const char chatml[] =
        "{{ $first := true }}{{ range .Messages }}{{ if eq .Role \"user\" }}<|im_start|>user\n{{ .Content "
        "}}<|im_end|>\n"
        "{{ $first = false }}{{ else if eq .Role \"assistant\" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ "
        "else "
        "if eq .Role \"system\" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n{{ else if eq .Role \"tool\" "
        "}}<|im_start|>tool\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n";
    static const char *const rows[][3] = {{"llama2", LLAMA_TOKENIZER, llama2}, {"chatml", CHAT_TOKENIZER, chatml}};
    for (int i = 0; i < 2; i++) {
        Tokenizer *tokenizer;
        ChatTemplate *chat;
        Text text = {0};
        CHECK_OK(tokenizer_load(&tokenizer, rows[i][1]));
        CHECK_OK(chat_template_new(&chat, chat_template_spec(rows[i][0]), NULL, tokenizer));
        CHECK_OK(chat_template_ollama(chat, &text));
        ck_assert_str_eq(text.bytes, rows[i][2]);
        text_free(&text);
        chat_template_free(chat);
        tokenizer_free(tokenizer);
    }
}
END_TEST

/* ---- growing ---------------------------------------------------------------------------------------------------- */

static void check_extension(const char *path) {
    static const char *const names[] = {"<|im_start|>", "<|im_end|>", "<new>"};
    static const char text[] = " Hello  <|im_start|> wor\xc3\xa9ld\n\n<new>";
    Tokenizer *before, *after;
    CHECK_OK(tokenizer_load(&before, path));
    int known = 0;
    while (known < 2 && tokenizer_special(before, names[known]) >= 0) known++;
    CHECK_OK(tokenizer_extend(&after, before, names + known, (size_t)(3 - known)));
    ck_assert_int_eq(tokenizer_vocab_size(after), tokenizer_vocab_size(before) + 3 - known);
    TokenList a = {0}, b = {0};
    CHECK_OK(tokenizer_encode(before, text, strlen(text), TOKENIZE_BOS, &a));
    CHECK_OK(tokenizer_encode(after, text, strlen(text), TOKENIZE_BOS, &b)); /* a user's text is text as before */
    ck_assert_uint_eq(a.n, b.n);
    ck_assert_mem_eq(a.ids, b.ids, a.n * sizeof *a.ids);
    ck_assert_int_eq(tokenizer_special(after, "<new>"), tokenizer_vocab_size(after) - 1);
    const int32_t id = tokenizer_vocab_size(after) - 1;
    char *decoded;
    size_t size;
    CHECK_OK(tokenizer_decode(after, &id, 1, true, &decoded, &size));
    ck_assert_str_eq(decoded, "<new>");
    free(decoded);
    Tokenizer *none, *again; /* as a checkpoint does */
    const void *source = tokenizer_source(after, &size);
    CHECK_OK(tokenizer_load_memory(&again, tokenizer_source_name(after), source, size));
    ck_assert_int_eq(tokenizer_special(again, "<new>"), id);
    CHECK_ERROR(tokenizer_extend(&none, after, names + 2, 1), ERR_USAGE, "no new special token");
    tokenizer_free(again);
    token_list_free(&a);
    token_list_free(&b);
    tokenizer_free(before);
    tokenizer_free(after);
}

START_TEST(tokenizers_of_every_kind_take_new_special_tokens) {
    check_extension("bytes");
    check_extension(CHAT_TOKENIZER);
    check_extension(LLAMA_TOKENIZER);
}
END_TEST

START_TEST(new_rows_begin_as_the_mean_and_old_ones_stay) {
    LlamaShape shape = {.dim = 8,
                        .n_layers = 1,
                        .n_heads = 2,
                        .n_kv_heads = 1,
                        .head_dim = 4,
                        .ffn_dim = 16,
                        .vocab_size = 10,
                        .max_context = 16,
                        .norm_eps = 1e-5f,
                        .rope_theta = 1e4f};
    for (int tied = 0; tied < 2; tied++) {
        Llama *small, *large;
        LlamaShape more = shape;
        shape.tied = more.tied = tied;
        more.vocab_size = 13;
        CHECK_OK(llama_new(&small, &shape, (LlamaOptions){0}));
        CHECK_OK(llama_new(&large, &more, (LlamaOptions){0}));
        CHECK_OK(llama_init(small, (LlamaInit){.seed = 1, .std = 1}));
        llama_copy_rows(large, small);
        llama_init_new_rows(large, 10);
        const Weight *weights[] = {&large->embedding, &large->head}, *from[] = {&small->embedding, &small->head};
        for (int w = 0; w < 2; w++) {
            ck_assert_mem_eq(weights[w]->value, from[w]->value, 80 * sizeof(float));
            for (size_t c = 0; c < 8; c++) {
                double sum = 0;
                for (size_t r = 0; r < 10; r++) sum += (double)from[w]->value[r * 8 + c];
                for (size_t r = 10; r < 13; r++) ck_assert(weights[w]->value[r * 8 + c] == (float)(sum / 10));
            }
        }
        llama_free(small);
        llama_free(large);
    }
}
END_TEST

CHECK_MAIN("saved templates", a_saved_template_is_read_again_and_a_changed_one_is_not,
           known_texts_of_others_are_recognised, ollamas_template_says_the_same,
           tokenizers_of_every_kind_take_new_special_tokens, new_rows_begin_as_the_mean_and_old_ones_stay)
