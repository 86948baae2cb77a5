/* See chat_sample.h. The generator lives for the samples of one step, so that training holds no cache between. */
#include "train/chat_sample.h"

#include "eval/generator.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "train/sample.h"
#include "train/setup.h"

static int answer(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Config *config,
                  const ChatTokens *tokens, Generation *out) {
    Generator *generator;
    int32_t stops[2];
    int limit = model->rotary.n_positions;
    int64_t wanted = (int64_t)tokens->n + config->generate_max_new_tokens;
    TokenList prompt = {tokens->ids, tokens->n, tokens->n};
    GenerateOptions options = {.sampler = setup_sampler(config),
                               .max_new_tokens = (int)config->generate_max_new_tokens,
                               .stop_tokens = stops,
                               .n_stop_tokens = chat_template_stops(chat, stops)};
    TRY(generator_new(&generator, model, tokenizer,
                      (GeneratorOptions){.max_batch = 1, .max_sequence = wanted < limit ? (int)wanted : limit}));
    int rc = generator_run(generator, &prompt, 1, &options, out);
    generator_free(generator);
    return rc;
}

static int render(ChatTokens *tokens, const ChatTemplate *chat, const char *prompt) {
    Conversation conversation = {.kind = RECORD_MESSAGES};
    int rc = conversation_add(&conversation, CHAT_USER, prompt);
    if (rc == OK) rc = chat_render_prompt(chat, &conversation, tokens);
    conversation_free(&conversation);
    return rc;
}

static int sample(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Config *config,
                  int64_t step, const char *prompt) {
    int rc = OK;
    ChatTokens tokens = {0};
    Generation out = {0};
    TRY_TO(done, render(&tokens, chat, prompt));
    TRY_TO(done, answer(model, tokenizer, chat, config, &tokens, &out));
    log_info("step %lld: %s\n  -> %s%s", (long long)step, prompt, out.text,
             out.reason == FINISH_STOP_TOKEN ? "" : " … (no stop)");
done:
    generation_free(&out);
    chat_tokens_free(&tokens);
    return rc;
}

/* Prompt i, or NULL beyond the last. */
static const char *prompt_at(const Config *config, size_t i) {
    const char *one = config->train_sample_prompt;
    size_t n = config->sft_sample_prompts.n;
    if (n > 0) return i < n ? config->sft_sample_prompts.items[i] : NULL;
    return i == 0 && *one ? one : NULL;
}

int chat_sample_length(int64_t *tokens, const ChatTemplate *chat, const Config *config) {
    *tokens = 0;
    for (size_t i = 0; prompt_at(config, i); i++) {
        ChatTokens rendered = {0};
        int rc = render(&rendered, chat, prompt_at(config, i));
        int64_t length = (int64_t)rendered.n + config->generate_max_new_tokens;
        if (length > *tokens) *tokens = length;
        chat_tokens_free(&rendered);
        TRY(rc);
    }
    return OK;
}

void chat_sample(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Config *config,
                 int64_t step) {
    for (size_t i = 0; prompt_at(config, i); i++)
        if (sample(model, tokenizer, chat, config, step, prompt_at(config, i)) != OK)
            log_warning("step %lld: no answer to '%s': %s", (long long)step, prompt_at(config, i), error_text());
}
