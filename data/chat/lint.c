/* One pass over the records. Duplicates are found by a 64-bit hash of the ids in an open-addressing table that keeps,
 * for every record, its hash, file and line. */
#include "data/chat/lint.h"

#include <stdlib.h>
#include <string.h>

#include "data/chat/pairs.h"
#include "data/source.h"
#include "model/core/error.h"

static const LintRow rows[] = {
#define ERROR true
#define WARNING false
#define LINT(name, severity, label, help) {#name, label, help, severity},
    LINT_KINDS
#undef LINT
#undef ERROR
#undef WARNING
};

const LintRow *lint_row(LintKind kind) {
    return &rows[kind];
}

typedef struct {
    uint64_t hash; /* 0: empty */
    int64_t line;
    size_t path;
} Seen;

typedef struct {
    const ChatTemplate *chat;
    const LintOptions *options;
    LintResult *result;
    Record record;
    Seen *seen;
    size_t n_slots, n_seen;
} Lint;

static void find(Lint *lint, LintKind kind, const char *text) {
    lint->result->count[kind]++;
    bool is_error = rows[kind].is_error && (kind != LINT_overlong || lint->options->overlong == OVERLONG_FAIL);
    lint->result->has_errors = lint->result->has_errors || is_error;
    if (lint->options->report)
        lint->options->report(lint->options->report_context, kind, lint->record.path, lint->record.line, text);
}

/* ---- duplicates ---------------------------------------------------------------------------------------------------
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

static Seen *find_slot(Seen *seen, size_t n_slots, uint64_t hash) {
    size_t at = hash & (n_slots - 1);
    while (seen[at].hash && seen[at].hash != hash) at = (at + 1) & (n_slots - 1);
    return &seen[at];
}

static int grow_seen(Lint *lint) {
    size_t n_slots = lint->n_slots > 0 ? 2 * lint->n_slots : 1024;
    Seen *seen = calloc(n_slots, sizeof *seen);
    if (!seen) FAIL(ERR_FAILED, "out of memory after %zu records", lint->n_seen);
    for (size_t i = 0; i < lint->n_slots; i++)
        if (lint->seen[i].hash) *find_slot(seen, n_slots, lint->seen[i].hash) = lint->seen[i];
    free(lint->seen);
    lint->seen = seen;
    lint->n_slots = n_slots;
    return OK;
}

static size_t path_index(const Lint *lint, const char *path) {
    size_t i = 0;
    while (i + 1 < lint->options->n_paths && lint->options->paths[i] != path) i++;
    return i;
}

/* A record is its conversation, or its answers one after another. */
static int check_duplicate(Lint *lint, const ChatTokens *tokens, size_t n) {
    uint64_t hash = 0x9e3779b97f4a7c15u;
    if (2 * lint->n_seen >= lint->n_slots) TRY(grow_seen(lint));
    for (size_t i = 0; i < n; i++) hash = hash_ids(tokens[i].ids, tokens[i].n, hash);
    hash += hash == 0;
    Seen *slot = find_slot(lint->seen, lint->n_slots, hash);
    if (!slot->hash) {
        *slot = (Seen){hash, lint->record.line, path_index(lint, lint->record.path)};
        lint->n_seen++;
        return OK;
    }
    char text[512];
    snprintf(text, sizeof text, "the same tokens as %s:%lld", lint->options->paths[slot->path], (long long)slot->line);
    find(lint, LINT_duplicate, text);
    return OK;
}

/* ---- texts --------------------------------------------------------------------------------------------------------
 */

/* The mark of a chat template in a text, or NULL. */
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
    if (!text.bytes) return NULL;
    bool may =
        memchr(text.bytes, '<', text.size) || memchr(text.bytes, '[', text.size) || memchr(text.bytes, '#', text.size);
    for (size_t i = 0; may && i < sizeof marks / sizeof *marks; i++)
        if (memmem(text.bytes, text.size, marks[i], strlen(marks[i]))) return marks[i];
    return NULL;
}

static bool is_blank(ChatText text) {
    for (size_t i = 0; i < text.size; i++)
        if (!strchr(" \t\r\n", text.bytes[i]) || !text.bytes[i]) return false;
    return true;
}

static void check_texts(Lint *lint, const Conversation *conversation) {
    char text[128];
    bool marked = false, empty = false;
    for (size_t i = 0; i < conversation->n; i++) {
        const ChatMessage *message = &conversation->messages[i];
        const char *mark = template_mark(message->text);
        if (!mark) mark = template_mark(message->input);
        if (mark && !marked) {
            snprintf(text, sizeof text, "message %zu contains '%s'; it is learned as text", i + 1, mark);
            find(lint, LINT_looks_like_template, text);
            marked = true;
        }
        bool is_learned = !message->has_weight || message->weight > 0;
        if (message->role == CHAT_ASSISTANT && is_learned && !empty && is_blank(message->text)) {
            snprintf(text, sizeof text, "message %zu, an answer, is empty", i + 1);
            find(lint, LINT_empty_answer, text);
            empty = true;
        }
    }
    if (conversation->has_tools) find(lint, LINT_tools_ignored, "\"tools\" is not shown to the model");
}

/* ---- lengths and masks --------------------------------------------------------------------------------------------
 */

static void note_length(Lint *lint, size_t n) {
    LintResult *result = lint->result;
    int bin = 0;
    while (bin + 1 < LINT_BINS && n >> (bin + 1)) bin++;
    result->bins[bin]++;
    if (n <= result->longest) return;
    result->longest = n;
    result->longest_path = lint->record.path;
    result->longest_line = lint->record.line;
}

/* Whether it is kept. A record of `n` tokens at most. */
static bool fit(Lint *lint, PairTokens *record, size_t n) {
    char text[128];
    size_t context = lint->options->context;
    if (context == 0 || n <= context) return true;
    bool is_conversation = record->preference.kind == PREFERENCE_NONE;
    bool kept = is_conversation ? chat_fit(&record->tokens[0], context, lint->options->overlong)
                                : pair_fit(record, context, lint->options->overlong);
    snprintf(text, sizeof text, "%zu tokens, and the context is %zu%s", n, context,
             kept                                       ? "; truncated"
             : lint->options->overlong != OVERLONG_FAIL ? "; dropped"
                                                        : "");
    find(lint, LINT_overlong, text);
    lint->result->truncated += kept;
    lint->result->dropped += !kept;
    return kept;
}

static void check_mask(Lint *lint, const Conversation *conversation, const ChatTokens *tokens) {
    if (tokens->n_live == 0) {
        find(lint, LINT_all_masked, "no token of it is learned");
        return;
    }
    const ChatMessage *last = &conversation->messages[conversation->n - 1];
    if (last->role != CHAT_ASSISTANT)
        find(lint, LINT_missing_stop, "it does not end with an answer");
    else if (tokens->last_stop == tokens->n && !last->has_weight)
        find(lint, LINT_missing_stop, "its last answer's stop is cut off, or the tokenizer has none");
}

/* ---- records ------------------------------------------------------------------------------------------------------
 */

/* A refusal is a finding; anything else is passed on. */
static int refused(Lint *lint, LintKind kind, int rc) {
    if (rc != ERR_REFUSED) return rc;
    find(lint, kind, error_text());
    lint->result->dropped++;
    error_clear();
    return OK;
}

static void keep(Lint *lint, const ChatTokens *tokens) {
    lint->result->tokens += tokens->n;
    lint->result->learned += tokens->n_live;
}

static int check_conversation(Lint *lint, PairTokens *record) {
    Conversation *conversation = &record->preference.all;
    ChatTokens *tokens = &record->tokens[0];
    int rc = conversation_read(conversation, lint->options->columns);
    if (rc != OK) return refused(lint, LINT_malformed, rc);
    rc = conversation_check_roles(conversation);
    if (rc != OK) return refused(lint, LINT_role_order, rc);
    rc = chat_render(lint->chat, conversation, lint->options->train_on, tokens);
    if (rc != OK) return refused(lint, LINT_unshowable, rc);
    check_texts(lint, conversation);
    note_length(lint, tokens->n);
    TRY(check_duplicate(lint, tokens, 1));
    if (!fit(lint, record, tokens->n)) return OK;
    check_mask(lint, conversation, tokens);
    lint->result->kept++;
    keep(lint, tokens);
    return OK;
}

static int check_answers(Lint *lint, PairTokens *record) {
    char text[128];
    Preference *p = &record->preference;
    for (size_t a = 0; a < p->n_answers; a++) {
        const Conversation *conversation;
        TRY(preference_conversation(p, a, &conversation));
        check_mask(lint, conversation, &record->tokens[a]);
        for (size_t b = a + 1; b < p->n_answers; b++) {
            if (!chat_tokens_equal(&record->tokens[a], &record->tokens[b])) continue;
            snprintf(text, sizeof text, "answers %zu and %zu are the same tokens", a + 1, b + 1);
            find(lint, LINT_equal_answers, text);
        }
    }
    return OK;
}

static int check_preference(Lint *lint, PairTokens *record) {
    Preference *p = &record->preference;
    for (size_t i = 0; i < p->n_answers; i++) {
        const Conversation *conversation;
        TRY(preference_conversation(p, i, &conversation));
        int rc = conversation_check_roles(conversation);
        if (rc != OK) return refused(lint, LINT_role_order, rc);
    }
    int rc = pair_render(record, lint->chat, false);
    if (rc != OK) return refused(lint, LINT_unshowable, rc);
    size_t longest = pair_longest(record);
    check_texts(lint, &p->all);
    note_length(lint, longest);
    TRY(check_duplicate(lint, record->tokens, p->n_answers));
    if (!fit(lint, record, longest)) return OK;
    TRY(check_answers(lint, record));
    lint->result->kept++;
    for (size_t i = 0; i < p->n_answers; i++) keep(lint, &record->tokens[i]);
    return OK;
}

static int check_record(Lint *lint, PairTokens *record) {
    Preference *p = &record->preference;
    lint->result->records++;
    lint->result->bytes += lint->record.size;
    int rc = preference_parse(p, lint->record.text, lint->record.size, lint->options->columns);
    if (rc != OK) return refused(lint, p->different_prompts ? LINT_different_prompts : LINT_malformed, rc);
    return p->kind == PREFERENCE_NONE ? check_conversation(lint, record) : check_preference(lint, record);
}

int data_lint(const ChatTemplate *chat, const LintOptions *options, LintResult *result) {
    int rc = OK;
    Lint lint = {.chat = chat, .options = options, .result = result};
    RecordReader *reader = NULL;
    PairTokens tokens = {0};
    bool found = true;
    *result = (LintResult){0};
    TRY_TO(done, records_open(&reader, &(RecordOptions){.paths = options->paths,
                                                        .n_paths = options->n_paths,
                                                        .fail_on_error = true,
                                                        .whole = true}));
    for (;;) {
        rc = records_next(reader, &lint.record, &found);
        if (rc == ERR_REFUSED) { /* the file's bytes, not one record: the text says where */
            find(&lint, LINT_malformed, error_text());
            error_clear();
            continue;
        }
        if (rc != OK || !found) break;
        TRY_TO(done, check_record(&lint, &tokens));
    }
done:
    records_close(reader);
    pair_tokens_free(&tokens);
    free(lint.seen);
    return rc;
}
