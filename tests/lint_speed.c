/* Times `cria data lint` beside the tokenizer alone: the same records' texts, taken from the file beforehand, through
 * tokenizer_encode_many.
 *
 *     build/tests/lint_speed TOKENIZER TEMPLATE FILE [ROUNDS]
 *
 * Both use the same number of threads (CRIA_THREADS). Medians of rounds in turns, of wall time and of CPU time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/chat/lint.h"
#include "data/chat/preference.h"
#include "data/source.h"
#include "model/core/error.h"
#include "model/core/text.h"
#include "model/core/threads.h"

enum { MOST_ROUNDS = 99, TEXTS = 8192 };

typedef struct {
    Text bytes;
    size_t *sizes, n, capacity;
} Texts;

static int add(Texts *texts, ChatText text) {
    if (text.size == 0) return OK;
    if (texts->n == texts->capacity) {
        texts->capacity = 2 * texts->capacity + 1024;
        texts->sizes = realloc(texts->sizes, texts->capacity * sizeof *texts->sizes);
        if (!texts->sizes) FAIL(ERR_FAILED, "out of memory");
    }
    texts->sizes[texts->n++] = text.size;
    text_append(&texts->bytes, text.bytes, text.size);
    return text_check(&texts->bytes);
}

static int add_record(Texts *texts, Preference *p, const Record *record) {
    int rc = preference_parse(p, record->text, record->size, NULL);
    if (rc == OK && p->kind == PREFERENCE_NONE) rc = conversation_read(&p->all, NULL);
    if (rc == ERR_REFUSED) return OK;
    TRY(rc);
    for (size_t i = 0; i < p->all.n; i++) {
        TRY(add(texts, p->all.messages[i].text));
        TRY(add(texts, p->all.messages[i].input));
    }
    return OK;
}

static int collect(Texts *texts, char **paths) {
    int rc = OK;
    RecordReader *reader;
    Record record;
    Preference p = {0};
    bool found = true;
    TRY(records_open(&reader, &(RecordOptions){.paths = paths, .n_paths = 1, .fail_on_error = true, .whole = true}));
    while (rc == OK && found) {
        rc = records_next(reader, &record, &found);
        if (rc == OK && found) rc = add_record(texts, &p, &record);
    }
    preference_free(&p);
    records_close(reader);
    return rc;
}

/* As many texts at a time as a cache's batch has, so that ids do not fill the memory. */
static int encode_all(const Tokenizer *tokenizer, const Texts *texts) {
    const char *at = texts->bytes.bytes;
    for (size_t i = 0, n; i < texts->n; i += n) {
        const char *pointers[TEXTS];
        TokenList ids[TEXTS] = {{0}};
        for (n = 0; n < TEXTS && i + n < texts->n; at += texts->sizes[i + n++]) pointers[n] = at;
        TRY(tokenizer_encode_many(tokenizer, pointers, texts->sizes + i, n, 0, ids));
        for (size_t k = 0; k < n; k++) token_list_free(&ids[k]);
    }
    return OK;
}

typedef struct {
    double wall, cpu;
} Seconds;

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static Seconds now(void) {
    return (Seconds){seconds_of(CLOCK_MONOTONIC), seconds_of(CLOCK_PROCESS_CPUTIME_ID)};
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Seconds median(const Seconds *rounds, int n) {
    double wall[MOST_ROUNDS], cpu[MOST_ROUNDS];
    for (int i = 0; i < n; i++) {
        wall[i] = rounds[i].wall;
        cpu[i] = rounds[i].cpu;
    }
    qsort(wall, (size_t)n, sizeof *wall, ascending);
    qsort(cpu, (size_t)n, sizeof *cpu, ascending);
    return (Seconds){wall[n / 2], cpu[n / 2]};
}

static int measure(const Tokenizer *tokenizer, const ChatTemplate *chat, char **paths, int rounds) {
    static const char *const names[2] = {"tokenizer", "lint"};
    Texts texts = {0};
    Seconds took[2][MOST_ROUNDS];
    TRY(collect(&texts, paths));
    for (int r = 0; r < rounds; r++)
        for (int what = 0; what < 2; what++) {
            LintResult result;
            Seconds begun = now();
            if (what == 0)
                TRY(encode_all(tokenizer, &texts));
            else
                TRY(data_lint(chat, &(LintOptions){.paths = paths, .n_paths = 1, .train_on = TRAIN_ON_ASSISTANT},
                              &result));
            Seconds ended = now();
            took[what][r] = (Seconds){ended.wall - begun.wall, ended.cpu - begun.cpu};
        }
    Seconds of[2] = {median(took[0], rounds), median(took[1], rounds)};
    printf("%s: %zu texts, %.1f MB, %d threads\n", paths[0], texts.n, 1e-6 * (double)texts.bytes.length,
           threads_count());
    for (int i = 0; i < 2; i++) printf("  %-10s wall %7.3f s  cpu %7.3f s\n", names[i], of[i].wall, of[i].cpu);
    printf("  %-10s wall %7.3f    cpu %7.3f\n", "ratio", of[1].wall / of[0].wall, of[1].cpu / of[0].cpu);
    text_free(&texts.bytes);
    free(texts.sizes);
    return OK;
}

static int run(char **argv, int rounds) {
    Tokenizer *tokenizer;
    ChatTemplate *chat = NULL;
    const ChatTemplateSpec *spec = chat_template_spec(argv[2]);
    if (!spec) FAIL(ERR_USAGE, "%s: no such template", argv[2]);
    TRY(tokenizer_load(&tokenizer, argv[1]));
    int rc = chat_template_new(&chat, spec, NULL, tokenizer);
    if (rc == OK) rc = measure(tokenizer, chat, argv + 3, rounds);
    chat_template_free(chat);
    tokenizer_free(tokenizer);
    return rc;
}

int main(int argc, char **argv) {
    int rounds = argc > 4 ? atoi(argv[4]) : 5;
    if (argc < 4 || rounds < 1 || rounds > MOST_ROUNDS) {
        fprintf(stderr, "usage: lint_speed TOKENIZER TEMPLATE FILE [ROUNDS]\n");
        return ERR_USAGE;
    }
    threads_init(0);
    int rc = run(argv, rounds);
    if (rc != OK) fprintf(stderr, "lint_speed: %s\n", error_text());
    return rc;
}
