/* One record: parsed, rendered, its texts, length and mask looked at. */
#include "data/chat/lint_record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"

enum { MOST_KEPT_BYTES = 1 << 24 /* what a giant record left behind is given back */ };

/* ---- batches ------------------------------------------------------------------------------------------------------
 */

int lint_batch_add(LintBatch *batch, LintedRecord record) {
    if (batch->n == batch->capacity) {
        size_t capacity = 2 * batch->capacity + 256;
        LintedRecord *grown = realloc(batch->records, capacity * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory");
        batch->records = grown;
        batch->capacity = capacity;
    }
    batch->records[batch->n++] = record;
    return OK;
}

int lint_batch_find(LintBatch *batch, LintedRecord *record, LintKind kind, const char *text) {
    if (batch->n_findings == batch->findings_capacity) {
        size_t capacity = 2 * batch->findings_capacity + 64;
        LintFinding *grown = realloc(batch->findings, capacity * sizeof *grown);
        if (!grown) FAIL(ERR_FAILED, "out of memory");
        batch->findings = grown;
        batch->findings_capacity = capacity;
    }
    if (record->n++ == 0) record->first = batch->n_findings;
    batch->findings[batch->n_findings++] = (LintFinding){kind, batch->texts.length};
    text_append(&batch->texts, text, strlen(text) + 1);
    return text_check(&batch->texts);
}

void lint_batch_clear(LintBatch *batch) {
    if (batch->bytes.capacity > MOST_KEPT_BYTES) text_free(&batch->bytes);
    text_clear(&batch->bytes);
    text_clear(&batch->texts);
    batch->n = batch->n_findings = 0;
}

void lint_batch_free(LintBatch *batch) {
    text_free(&batch->bytes);
    text_free(&batch->texts);
    free(batch->records);
    free(batch->findings);
    *batch = (LintBatch){0};
}

typedef struct {
    LintBatch *batch;
    LintedRecord *record;
    const ChatTemplate *chat;
    const LintOptions *options;
} Lint;

static int find(const Lint *lint, LintKind kind, const char *text) {
    return lint_batch_find(lint->batch, lint->record, kind, text);
}

/* ---- texts --------------------------------------------------------------------------------------------------------
 */

/* The first of these marks of chat templates that is in a text, or NULL. */
static const char *template_mark(ChatText text) {
    static const char *const marks[] = {"[INST]",
                                        "[/INST]",
                                        "<<SYS>>",
                                        "<|im_start|>",
                                        "<|im_end|>",
                                        "<|eot_id|>",
                                        "<|start_header_id|>",
                                        "<|begin_of_text|>",
                                        "<|end_of_text|>",
                                        "<|python_tag|>",
                                        "<|eom_id|>",
                                        "### Instruction:",
                                        "### Response:",
                                        "</s>"};
    const size_t n_marks = sizeof marks / sizeof *marks;
    size_t first = n_marks;
    if (!text.bytes) return NULL;
    const char *end = text.bytes + text.size;
    for (const char *begin = "<[#"; *begin; begin++)
        for (const char *at = text.bytes; at < end && (at = memchr(at, *begin, (size_t)(end - at))); at++)
            for (size_t i = 0; i < first; i++)
                if (marks[i][0] == *begin && strncmp(at, marks[i], strlen(marks[i])) == 0)
                    first = i; /* a NUL follows */
    return first < n_marks ? marks[first] : NULL;
}

static bool is_blank(ChatText text) {
    for (size_t i = 0; i < text.size; i++)
        if (!strchr(" \t\r\n", text.bytes[i]) || !text.bytes[i]) return false;
    return true;
}

static int check_texts(const Lint *lint, const Conversation *conversation) {
    char text[128];
    bool marked = false, empty = false;
    for (size_t i = 0; i < conversation->n; i++) {
        const ChatMessage *message = &conversation->messages[i];
        const char *mark = marked ? NULL : template_mark(message->text);
        if (!marked && !mark) mark = template_mark(message->input);
        if (mark) {
            snprintf(text, sizeof text, "message %zu contains '%s'; it is learned as text", i + 1, mark);
            TRY(find(lint, LINT_looks_like_template, text));
            marked = true;
        }
        bool is_learned = !message->has_weight || message->weight > 0;
        if (message->role == CHAT_ASSISTANT && is_learned && !empty && is_blank(message->text)) {
            snprintf(text, sizeof text, "message %zu, an answer, is empty", i + 1);
            TRY(find(lint, LINT_empty_answer, text));
            empty = true;
        }
    }
    return conversation->has_tools ? find(lint, LINT_tools_ignored, "\"tools\" is not shown to the model") : OK;
}

/* ---- lengths and masks --------------------------------------------------------------------------------------------
 */

static uint64_t hash_ids(const int32_t *ids, size_t n, uint64_t hash) {
    hash ^= n;
    for (size_t i = 0; i < n; i++) { /* the multiply and shift of MurmurHash2's 64-bit body */
        uint64_t k = (uint64_t)(uint32_t)ids[i] * 0xc6a4a7935bd1e995u;
        hash = (hash ^ k ^ (k >> 47)) * 0xc6a4a7935bd1e995u;
        hash ^= hash >> 32;
    }
    return hash;
}

/* A record is its conversation, or its answers one after another, `longest` tokens at most. */
static void note_tokens(const Lint *lint, const ChatTokens *tokens, size_t n, size_t longest) {
    uint64_t hash = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < n; i++) hash = hash_ids(tokens[i].ids, tokens[i].n, hash);
    lint->record->hash = hash + (hash == 0);
    lint->record->before_duplicate = lint->record->n;
    lint->record->length = longest;
}

/* Whether it is kept, in *kept. */
static int fit(const Lint *lint, PairTokens *tokens, bool *kept) {
    char text[128];
    size_t context = lint->options->context, n = lint->record->length;
    *kept = true;
    if (context == 0 || n <= context) return OK;
    bool is_conversation = tokens->preference.kind == PREFERENCE_NONE;
    *kept = is_conversation ? chat_fit(&tokens->tokens[0], context, lint->options->overlong)
                            : pair_fit(tokens, context, lint->options->overlong);
    snprintf(text, sizeof text, "%zu tokens, and the context is %zu%s", n, context,
             *kept                                      ? "; truncated"
             : lint->options->overlong != OVERLONG_FAIL ? "; dropped"
                                                        : "");
    lint->record->truncated = *kept;
    lint->record->dropped = !*kept;
    return find(lint, LINT_overlong, text);
}

static int check_mask(const Lint *lint, const Conversation *conversation, const ChatTokens *tokens) {
    if (tokens->n_live == 0) return find(lint, LINT_all_masked, "no token of it is learned");
    const ChatMessage *last = &conversation->messages[conversation->n - 1];
    if (last->role != CHAT_ASSISTANT) return find(lint, LINT_missing_stop, "it does not end with an answer");
    if (tokens->last_stop == tokens->n && !last->has_weight)
        return find(lint, LINT_missing_stop, "its last answer's stop is cut off, or the tokenizer has none");
    return OK;
}

/* ---- records ------------------------------------------------------------------------------------------------------
 */

/* A refusal is a finding; anything else is passed on. */
static int refused(const Lint *lint, LintKind kind, int rc) {
    if (rc != ERR_REFUSED) return rc;
    rc = find(lint, kind, error_text());
    lint->record->dropped = true;
    error_clear();
    return rc;
}

static void keep(const Lint *lint, const ChatTokens *tokens) {
    lint->record->kept = true;
    lint->record->tokens += tokens->n;
    lint->record->learned += tokens->n_live;
}

static int check_conversation(const Lint *lint, PairTokens *scratch) {
    bool kept;
    Conversation *conversation = &scratch->preference.all;
    ChatTokens *tokens = &scratch->tokens[0];
    int rc = conversation_read(conversation, lint->options->columns);
    if (rc != OK) return refused(lint, LINT_malformed, rc);
    rc = conversation_check_roles(conversation);
    if (rc != OK) return refused(lint, LINT_role_order, rc);
    rc = chat_render(lint->chat, conversation, lint->options->train_on, tokens);
    if (rc != OK) return refused(lint, LINT_unshowable, rc);
    TRY(check_texts(lint, conversation));
    if (scratch->preference.has_odd_label && conversation->kind != RECORD_TEXT)
        TRY(find(lint, LINT_odd_label, "\"label\" is neither true nor false (1 nor 0); it is ignored"));
    note_tokens(lint, tokens, 1, tokens->n);
    TRY(fit(lint, scratch, &kept));
    if (!kept) return OK;
    keep(lint, tokens);
    return check_mask(lint, conversation, tokens);
}

static int check_answers(const Lint *lint, PairTokens *scratch) {
    char text[128];
    Preference *p = &scratch->preference;
    for (size_t a = 0; a < p->n_answers; a++) {
        const Conversation *conversation;
        TRY(preference_conversation(p, a, &conversation));
        TRY(check_mask(lint, conversation, &scratch->tokens[a]));
        for (size_t b = a + 1; b < p->n_answers; b++) {
            if (!chat_tokens_equal(&scratch->tokens[a], &scratch->tokens[b])) continue;
            snprintf(text, sizeof text, "answers %zu and %zu are the same tokens", a + 1, b + 1);
            TRY(find(lint, LINT_equal_answers, text));
        }
    }
    return OK;
}

static int check_preference(const Lint *lint, PairTokens *scratch) {
    bool kept;
    Preference *p = &scratch->preference;
    for (size_t i = 0; i < p->n_answers; i++) {
        const Conversation *conversation;
        TRY(preference_conversation(p, i, &conversation));
        int rc = conversation_check_roles(conversation);
        if (rc != OK) return refused(lint, LINT_role_order, rc);
    }
    int rc = pair_render(scratch, lint->chat, false);
    if (rc != OK) return refused(lint, LINT_unshowable, rc);
    TRY(check_texts(lint, &p->all));
    note_tokens(lint, scratch->tokens, p->n_answers, pair_longest(scratch));
    TRY(fit(lint, scratch, &kept));
    if (!kept) return OK;
    for (size_t i = 0; i < p->n_answers; i++) keep(lint, &scratch->tokens[i]);
    return check_answers(lint, scratch);
}

int lint_record(LintBatch *batch, LintedRecord *record, const ChatTemplate *chat, const LintOptions *options,
                PairTokens *scratch) {
    Lint lint = {batch, record, chat, options};
    Preference *p = &scratch->preference;
    int rc = preference_parse(p, batch->bytes.bytes + record->begin, record->size, options->columns);
    if (rc != OK) return refused(&lint, p->different_prompts ? LINT_different_prompts : LINT_malformed, rc);
    return p->kind == PREFERENCE_NONE ? check_conversation(&lint, scratch) : check_preference(&lint, scratch);
}
