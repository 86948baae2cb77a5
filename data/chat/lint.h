/* A check of files of instructions and preferences against a tokenizer and a template: everything that would be learned
 * wrongly, or not at all, with file and line. Streaming: of a record only a hash and its place stay (for duplicates).
 */
#ifndef CRIA_DATA_CHAT_LINT_H
#define CRIA_DATA_CHAT_LINT_H

#include <stdint.h>

#include "data/chat/template.h"

/* LINT(name, severity, label, help): an ERROR keeps data from being trained on; a WARNING is told. */
#define LINT_KINDS                                                                                               \
    LINT(malformed, ERROR, "malformed", "no JSON object, a field that is absent, or a role nobody knows")        \
    LINT(role_order, ERROR, "role order", "roles that do not take turns")                                        \
    LINT(unshowable, ERROR, "not in template", "a message that the template cannot show")                        \
    LINT(different_prompts, ERROR, "different prompts", "answers that are not to the same prompt")               \
    LINT(overlong, ERROR, "overlong", "longer than the context (a warning where --overlong drops or truncates)") \
    LINT(all_masked, WARNING, "all masked", "no token of it is learned")                                         \
    LINT(missing_stop, WARNING, "missing stop", "what is learned does not end with the stop")                    \
    LINT(empty_answer, WARNING, "empty answer", "an answer that is learned and has no text")                     \
    LINT(equal_answers, WARNING, "equal answers", "a pair whose answers are the same: it is left out")           \
    LINT(duplicate, WARNING, "duplicate", "the same tokens as an earlier record")                                \
    LINT(looks_like_template, WARNING, "looks like template", "text with the marks of a chat template in it")    \
    LINT(tools_ignored, WARNING, "tools ignored", "a list of tools, which no template here shows")               \
    LINT(odd_label, WARNING, "odd label", "a label that is neither true nor false: sft ignores it, dpo refuses it")

typedef enum {
#define LINT(name, severity, label, help) LINT_##name,
    LINT_KINDS
#undef LINT
        N_LINT_KINDS
} LintKind;

typedef struct {
    const char *name, *label, *help;
    bool is_error;
} LintRow;
const LintRow *lint_row(LintKind kind);

enum { LINT_BINS = 32 }; /* bin b: 2^b … 2^(b+1)-1 tokens */

typedef struct {
    uint64_t records, kept, dropped, truncated; /* kept: what training would see */
    uint64_t count[N_LINT_KINDS];
    uint64_t bytes, tokens, learned; /* tokens and learned ones: of the kept, after truncation */
    uint64_t longest;                /* tokens, before truncation; 0: none */
    const char *longest_path;
    int64_t longest_line;
    uint64_t bins[LINT_BINS]; /* records by length, before truncation */
    bool has_errors;
} LintResult;

typedef struct {
    char *const *paths; /* JSONL files or JSON arrays; must outlive the result */
    size_t n_paths;
    const ChatColumns *columns; /* NULL: none */
    TrainOn train_on;           /* of conversations; of preferences the answers are learned */
    size_t context;             /* 0: any length */
    Overlong overlong;
    /* Called for every finding, in the order of the records; NULL: none. */
    void (*report)(void *context, LintKind kind, const char *path, int64_t line, const char *text);
    void *report_context;
} LintOptions;

int data_lint(const ChatTemplate *chat, const LintOptions *options, LintResult *result);

#endif
