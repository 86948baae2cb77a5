/* See reward_pairs.h. */
#include "train/answers/reward_pairs.h"

#include <stdlib.h>
#include <string.h>

#include "data/chat/pairs.h"
#include "data/source.h"
#include "model/core/error.h"
#include "model/core/file.h"

void reward_pairs_free(RewardPairs *pairs) {
    free(pairs->pairs);
    free(pairs->places);
    free(pairs->texts);
    arena_free(&pairs->arena);
    *pairs = (RewardPairs){0};
}

/* ---- one pair ---- */

static int reserve(RewardPairs *pairs) {
    if (pairs->n < pairs->capacity) return OK;
    size_t capacity = 2 * pairs->capacity + 256;
    RewardPair *grown = realloc(pairs->pairs, capacity * sizeof *grown);
    if (grown) pairs->pairs = grown;
    RewardPlace *places = realloc(pairs->places, capacity * sizeof *places);
    if (places) pairs->places = places;
    RewardText *texts = realloc(pairs->texts, 2 * capacity * sizeof *texts);
    if (texts) pairs->texts = texts;
    if (!grown || !places || !texts) FAIL(ERR_FAILED, "out of memory: %zu pairs", pairs->n);
    pairs->capacity = capacity;
    return OK;
}

/* The text's beginning on one line. */
static int excerpt(Arena *arena, ChatText text, const char **out) {
    enum { MOST = 400 };
    static const char more[] = "…";
    size_t size = text.bytes ? text.size : 0, at = 0, n = 0;
    char *copy;
    ARENA_TRY(copy, arena, (size < MOST ? size : MOST) + sizeof more + 4);
    while (at < size && at < MOST) {
        uint32_t code;
        int length = utf8_decode(text.bytes + at, size - at, &code);
        bool is_control = length == 0 || code < ' ' || (code >= 0x7f && code < 0xa0);
        if (is_control)
            copy[n++] = ' ';
        else
            for (int i = 0; i < length; i++) copy[n++] = text.bytes[at + (size_t)i];
        at += length > 0 ? (size_t)length : 1;
    }
    if (at < size) memcpy(copy + n, more, sizeof more);
    *out = copy;
    return OK;
}

/* The last message of a role in [first, end). */
static ChatText last_of(const Conversation *all, size_t first, size_t end, ChatRole role) {
    for (size_t i = end; i-- > first;)
        if (all->messages[i].role == role) return all->messages[i].text;
    return (ChatText){0};
}

static int keep_ids(RewardPairs *pairs, const ChatTokens *tokens, RewardText *text) {
    int32_t *ids;
    ARENA_TRY(ids, &pairs->arena, tokens->n);
    memcpy(ids, tokens->ids, tokens->n * sizeof *ids);
    *text = (RewardText){ids, tokens->n};
    return OK;
}

static int add_pair(RewardPairs *pairs, const PairTokens *record, size_t better, size_t worse, const char *path,
                    int64_t line) {
    const Preference *p = &record->preference;
    const size_t which[2] = {better, worse};
    TRY(reserve(pairs));
    RewardPair *pair = &pairs->pairs[pairs->n];
    RewardPlace *place = &pairs->places[pairs->n];
    *pair = (RewardPair){.strength = (Strength)preference_mark(p, better, worse).strength};
    *place = (RewardPlace){.path = path, .line = line};
    ChatText prompt = last_of(&p->all, p->first_prompt, p->first_prompt + p->n_prompt, CHAT_USER);
    TRY(excerpt(&pairs->arena, prompt, &place->prompt));
    for (int i = 0; i < 2; i++) {
        ChatText answer = last_of(&p->all, p->first[which[i]], p->end[which[i]], CHAT_ASSISTANT);
        pair->length[i] = (double)record->tokens[which[i]].n_live;
        TRY(excerpt(&pairs->arena, answer, &place->answer[i]));
        TRY(keep_ids(pairs, &record->tokens[which[i]], &pairs->texts[2 * pairs->n + (size_t)i]));
    }
    pairs->n++;
    return OK;
}

/* ---- records ---- */

static int add_record(RewardPairs *pairs, PairTokens *record, const Record *from, const char *path,
                      const RewardPairsOptions *options) {
    Preference *p = &record->preference;
    TRY(preference_parse(p, from->text, from->size, options->columns));
    if (p->kind != PREFERENCE_PAIR) FAIL(ERR_REFUSED, "it is no pair: expected 'chosen' and 'rejected'");
    int objective;
    TRY(pair_objective(&objective, &options->objectives, p));
    TRY(pair_render(record, options->chat, false));
    RewardPairs *own = &pairs[objective];
    size_t longest = pair_longest(record), before = own->n;
    if (!pair_fit(record, options->context, options->overlong)) {
        if (options->overlong == OVERLONG_FAIL)
            FAIL(ERR_REFUSED, "%zu tokens, and the model takes %zu (--overlong drop, or truncate-left)", longest,
                 options->context);
        pairs->dropped++;
        return OK;
    }
    for (size_t a = 0; a < p->n_answers; a++)
        for (size_t b = a + 1; b < p->n_answers; b++)
            if (!chat_tokens_equal(&record->tokens[a], &record->tokens[b]))
                TRY(add_pair(own, record, a, b, path, from->line));
    pairs->dropped += own->n == before;
    return OK;
}

static int read_all(RewardPairs *pairs, RecordReader *reader, const RewardPairsOptions *options) {
    int rc = OK;
    PairTokens record = {0};
    const char *path = NULL;
    for (;;) {
        Record next;
        bool found;
        TRY_TO(done, records_next(reader, &next, &found));
        if (!found) break;
        if (!path || strcmp(path, next.path) != 0) path = arena_strdup(&pairs->arena, next.path);
        if (!path) FAIL_TO(done, ERR_FAILED, "out of memory");
        rc = add_record(pairs, &record, &next, path, options);
        if (rc == ERR_REFUSED && options->skip_errors) {
            pairs->malformed++;
            error_clear();
        } else if (rc != OK) {
            error_context(rc, "%s:%lld", next.path, (long long)next.line);
            goto done;
        }
    }
done:
    pair_tokens_free(&record);
    return rc;
}

int reward_pairs_read(RewardPairs *pairs, const char *path, const RewardPairsOptions *options) {
    char **paths;
    size_t n;
    RecordReader *reader;
    TRY(source_files(&paths, &n, path));
    RecordOptions how = {.paths = paths, .n_paths = n, .fail_on_error = !options->skip_errors, .whole = true};
    int rc = records_open(&reader, &how);
    if (rc == OK) {
        rc = read_all(pairs, reader, options);
        pairs->malformed += (size_t)records_skipped(reader);
        records_close(reader);
    }
    names_free(paths, n);
    return rc;
}
