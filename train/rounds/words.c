/* See words.h. */
#include "train/rounds/words.h"

#include <stdio.h>
#include <string.h>

#include "model/core/error.h"

void words_free(Words *words) {
    arena_free(&words->arena);
}

static int add(Words *words, const char *word) {
    if (words->n == MOST_WORDS) FAIL(ERR_USAGE, "a command of more than %d words", MOST_WORDS);
    words->items[words->n] = arena_strdup(&words->arena, word);
    if (!words->items[words->n++]) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int add_pair(Words *words, const char *flag, const char *value) {
    if (!value) return OK;
    TRY(add(words, flag));
    return add(words, value);
}

static int words_of_merge(Words *words, const RoundStage *stage) {
    TRY(add(words, "merge"));
    for (size_t i = 0; i < stage->models.n; i++) TRY(add(words, stage->models.items[i]));
    TRY(add(words, stage->folder));
    TRY(add_pair(words, "--format", "checkpoint"));
    TRY(add_pair(words, "--weights", stage->spec->weights));
    return add_pair(words, "--dtype", stage->spec->dtype);
}

int words_of(Words *words, const RoundStage *stage) {
    if (stage->models.n > 0) return words_of_merge(words, stage);
    TRY(add(words, stage->spec->command->name));
    return add(words, stage->yaml);
}

/* key=value, as an argument has it: texts without quotes. */
static int add_option(Words *words, const Config *config, OptionId id) {
    Text text = {0};
    const Option *option = &option_table[id];
    const void *field = (const char *)config + option->offset;
    int rc = OK;
    text_printf(&text, "%s=", option->key);
    if (option->type == OPTION_STRING || option->type == OPTION_PATH)
        text_puts(&text, *(const char *const *)field);
    else
        rc = config_value_text(config, id, &text);
    if (rc == OK) rc = text_check(&text);
    if (rc == OK) rc = add(words, text.bytes);
    text_free(&text);
    return rc;
}

int words_of_eval(Words *words, const RoundStage *stage, const char *model, const char *reference) {
    const Config *config = stage->config;
    TRY(add(words, "eval"));
    TRY(add(words, "policy"));
    TRY(add(words, model));
    TRY(add(words, config->rejection_prompts));
    TRY(add(words, "--json"));
    TRY(add_pair(words, "--reference", reference));
    for (int i = 0; i < OPTION_COUNT; i++) {
        OptionId id = (OptionId)i;
        if (config_is_set(config, id) && config_in_sections(id, "rejection generate template") &&
            id != OPTION_rejection_prompts)
            TRY(add_option(words, config, id));
    }
    return OK;
}
