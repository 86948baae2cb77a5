/* cria data lint: findings with file and line, then the counts; exit status 3 where there is an error. */
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "data/chat/lint.h"
#include "model/core/error.h"
#include "model/core/text.h"
#include "train/commands/chat_input.h"
#include "train/commands/cmd_data.h"

typedef struct {
    bool json;
    int64_t limit; /* findings shown of each kind */
    uint64_t shown[N_LINT_KINDS];
    json_t *findings;
} Findings;

static void report(void *context, LintKind kind, const char *path, int64_t line, const char *text) {
    Findings *findings = context;
    const LintRow *row = lint_row(kind);
    if ((int64_t)findings->shown[kind]++ >= findings->limit) return;
    bool has_place = text_starts_with(text, path) && text[strlen(path)] == ':';
    if (findings->json)
        json_array_append_new(findings->findings, json_pack("{s:s, s:s, s:I, s:s}", "kind", row->name, "file", path,
                                                            "line", (json_int_t)line, "text", text));
    else if (has_place)
        printf("%s: %s\n", row->label, text);
    else
        printf("%s: %s:%lld: %s\n", row->label, path, (long long)line, text);
}

static void print_histogram(const LintResult *result) {
    uint64_t most = 1;
    int first = LINT_BINS, last = -1;
    for (int b = 0; b < LINT_BINS; b++) {
        if (result->bins[b] > most) most = result->bins[b];
        if (result->bins[b] == 0) continue;
        last = b;
        if (first == LINT_BINS) first = b;
    }
    if (last < 0) return;
    printf("\ntokens a record\n");
    for (int b = first; b <= last; b++) {
        char bar[41];
        int width = (int)(40 * result->bins[b] / most);
        memset(bar, '#', (size_t)width);
        bar[width] = '\0';
        printf("%10llu+ %10llu  %s\n", 1ull << b, (unsigned long long)result->bins[b], bar);
    }
}

static void print_result(const LintResult *result, const Findings *findings) {
    char a[32], b[32], c[32];
    bool none = true;
    for (int k = 0; k < N_LINT_KINDS; k++)
        if (findings->shown[k] > (uint64_t)findings->limit)
            printf("%s: %llu more\n", lint_row((LintKind)k)->label,
                   (unsigned long long)findings->shown[k] - (unsigned long long)findings->limit);
    for (int k = 0; k < N_LINT_KINDS; k++) none = none && result->count[k] == 0;
    printf("%s%s records, %s dropped, %s truncated\n", none ? "" : "\n", text_thousands(a, result->records),
           text_thousands(b, result->dropped), text_thousands(c, result->truncated));
    for (int k = 0; k < N_LINT_KINDS; k++)
        if (result->count[k] > 0)
            printf("  %-20s %8s  %s\n", lint_row((LintKind)k)->label, text_thousands(a, result->count[k]),
                   lint_row((LintKind)k)->help);
    if (none) printf("  nothing to complain about\n");
    printf("%s tokens, %s learned (%.1f %%)\n", text_thousands(a, result->tokens), text_thousands(b, result->learned),
           result->tokens > 0 ? 100 * (double)result->learned / (double)result->tokens : 0.0);
    if (result->longest > 0)
        printf("longest: %s tokens, %s:%lld\n", text_thousands(a, result->longest), result->longest_path,
               (long long)result->longest_line);
    print_histogram(result);
}

static int print_json(const LintResult *result, json_t *findings) {
    json_t *counts = json_object(), *bins = json_array();
    for (int k = 0; k < N_LINT_KINDS; k++)
        json_object_set_new(counts, lint_row((LintKind)k)->name, json_integer((json_int_t)result->count[k]));
    for (int b = 0; b < LINT_BINS; b++) json_array_append_new(bins, json_integer((json_int_t)result->bins[b]));
    json_t *root = json_pack("{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:O}", "ok", !result->has_errors,
                             "records", (json_int_t)result->records, "kept", (json_int_t)result->kept, "dropped",
                             (json_int_t)result->dropped, "truncated", (json_int_t)result->truncated, "tokens",
                             (json_int_t)result->tokens, "learned", (json_int_t)result->learned, "longest",
                             (json_int_t)result->longest, "counts", counts, "length_bins", bins, "findings", findings);
    if (!root) FAIL(ERR_FAILED, "out of memory");
    json_dumpf(root, stdout, 0);
    printf("\n");
    json_decref(root);
    return OK;
}

static int lint(ChatInput *input, Findings *findings) {
    LintResult result;
    LintOptions options = {.paths = input->paths,
                           .n_paths = input->n_paths,
                           .columns = &input->renamed,
                           .train_on = input->mode,
                           .context = (size_t)input->context,
                           .overlong = input->policy,
                           .report = report,
                           .report_context = findings};
    TRY(data_lint(input->chat, &options, &result));
    if (findings->json)
        TRY(print_json(&result, findings->findings));
    else
        print_result(&result, findings);
    if (result.records == 0) FAIL(ERR_REFUSED, "there is no record in the data");
    if (result.has_errors) FAIL(ERR_REFUSED, "the data has errors; correct or remove the records named above");
    if (result.learned == 0)
        FAIL(ERR_REFUSED, "not one token of the data would be learned; look at it with 'cria data show'");
    return OK;
}

int data_lint_command(int argc, char **argv) {
    ChatInput input = {0};
    Findings findings = {.limit = 5};
    Flag flags[CHAT_INPUT_FLAGS + 2] = {
        {"findings", 'n', FLAG_INT, &findings.limit, "N", ">= 0", "how many of each kind are shown (default 5)"},
        {"json", 0, FLAG_SWITCH, &findings.json, "", "", "print one JSON object"},
    };
    chat_input_flags(&input, flags + 2);
    CliResult cli;
    TRY(cli_parse(&cli,
                  &(CliSpec){.usage = "TOKENIZER|MODEL FILE... [--template NAME] [flags]",
                             .about = "Checks records of instructions and preferences (JSONL, or a JSON array; also\n"
                                      ".gz and .zst): what would be learned wrongly or not at all, with file and\n"
                                      "line. Exit status 3 where there is an error that training would refuse.",
                             .flags = flags,
                             .n_flags = sizeof flags / sizeof *flags,
                             .min_words = 2,
                             .max_words = 1 << 20},
                  argc, argv));
    if (cli.helped) return OK;
    findings.findings = json_array();
    int rc = chat_input_open(&input, cli.words, cli.n_words);
    if (rc == OK) rc = lint(&input, &findings);
    json_decref(findings.findings);
    chat_input_close(&input);
    return rc;
}
