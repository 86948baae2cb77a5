/* See sample.h. The generator lives for the one sample, so that training holds no cache between. */
#include "train/sample.h"

#include <string.h>

#include "eval/generator.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "train/setup.h"

static int generate(Llama *model, const Tokenizer *tokenizer, const Config *config, const TokenList *prompt,
                    Generation *out) {
    Generator *generator;
    int limit = model->rotary.n_positions, wanted = (int)prompt->n + SAMPLE_TOKENS;
    TRY(generator_new(&generator, model, tokenizer,
                      (GeneratorOptions){.max_batch = 1, .max_sequence = wanted < limit ? wanted : limit}));
    GenerateOptions options = {.sampler = setup_sampler(config), .max_new_tokens = SAMPLE_TOKENS};
    int rc = generator_run(generator, prompt, 1, &options, out);
    generator_free(generator);
    return rc;
}

void sample_text(Llama *model, const Tokenizer *tokenizer, const Config *config, int64_t step) {
    TokenList prompt = {0};
    Generation out = {0};
    const char *text = config->train_sample_prompt;
    int rc = tokenizer_encode(tokenizer, text, strlen(text), TOKENIZE_BOS, &prompt);
    if (rc == OK) rc = generate(model, tokenizer, config, &prompt, &out);
    if (rc == OK) log_info("step %lld writes: %s%s", (long long)step, text, out.text);
    if (rc != OK) log_warning("step %lld: no sample text: %s", (long long)step, error_text());
    generation_free(&out);
    token_list_free(&prompt);
}
