/* One pass over the records. Duplicates are found by a 64-bit hash of the ids in an open-addressing table that keeps,
 * for every record, its hash, file and line. */
#include "data/chat/lint.h"

#include <stdlib.h>
#include <string.h>

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

static uint64_t hash_ids(const int32_t *ids, size_t n) {
    uint64_t hash = 0x9e3779b97f4a7c15u ^ n;
    for (size_t i = 0; i < n; i++) { /* the multiply and shift of MurmurHash2's 64-bit body */
        uint64_t k = (uint64_t)(uint32_t)ids[i] * 0xc6a4a7935bd1e995u;
        hash = (hash ^ k ^ (k >> 47)) * 0xc6a4a7935bd1e995u;
        hash ^= hash >> 32;
    }
    return hash ? hash : 1;
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

static int check_duplicate(Lint *lint, const ChatTokens *tokens) {
    if (2 * lint->n_seen >= lint->n_slots) TRY(grow_seen(lint));
    uint64_t hash = hash_ids(tokens->ids, tokens->n);
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

/* Whether it is kept. */
static bool fit(Lint *lint, ChatTokens *tokens) {
    char text[128];
    size_t context = lint->options->context, n = tokens->n;
    if (context == 0 || n <= context) return true;
    bool kept = chat_fit(tokens, context, lint->options->overlong);
    snprintf(text, sizeof text, "%zu tokens, and the context is %zu%s", n, context,
             kept                                       ? "; truncated"
             : lint->options->overlong == OVERLONG_DROP ? "; dropped"
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

static int check_record(Lint *lint, Conversation *conversation, ChatTokens *tokens) {
    LintResult *result = lint->result;
    result->records++;
    result->bytes += lint->record.size;
    int rc = conversation_parse(conversation, lint->record.text, lint->record.size, lint->options->columns);
    LintKind kind = LINT_malformed;
    if (rc == OK) {
        kind = LINT_role_order;
        rc = conversation_check_roles(conversation);
    }
    if (rc == OK) {
        kind = LINT_unshowable;
        rc = chat_render(lint->chat, conversation, lint->options->train_on, tokens);
    }
    if (rc == ERR_REFUSED) {
        find(lint, kind, error_text());
        result->dropped++;
        error_clear();
        return OK;
    }
    TRY(rc);
    check_texts(lint, conversation);
    note_length(lint, tokens->n);
    TRY(check_duplicate(lint, tokens));
    if (!fit(lint, tokens)) return OK;
    check_mask(lint, conversation, tokens);
    result->kept++;
    result->tokens += tokens->n;
    result->learned += tokens->n_live;
    return OK;
}

int data_lint(const ChatTemplate *chat, const LintOptions *options, LintResult *result) {
    int rc = OK;
    Lint lint = {.chat = chat, .options = options, .result = result};
    RecordReader *reader = NULL;
    Conversation conversation = {0};
    ChatTokens tokens = {0};
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
        TRY_TO(done, check_record(&lint, &conversation, &tokens));
    }
done:
    records_close(reader);
    conversation_free(&conversation);
    chat_tokens_free(&tokens);
    free(lint.seen);
    return rc;
}
