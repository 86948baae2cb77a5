/* See pairs.h. What is told of a record here is the cheap part of lint (lint.c). */
#include "data/chat/pairs.h"

#include <stdlib.h>
#include <string.h>

#include "data/chat/encode.h"
#include "model/core/error.h"
#include "model/core/philox.h"
#include "model/core/text.h"

void pair_tokens_free(PairTokens *pair) {
    preference_free(&pair->preference);
    for (int i = 0; i < PREFERENCE_ANSWERS; i++) chat_tokens_free(&pair->tokens[i]);
    *pair = (PairTokens){0};
}

/* ---- objectives ---------------------------------------------------------------------------------------------------
 */

static int unknown_objective(const PairObjectives *objectives, const JsonNode *found) {
    int rc = OK;
    Text names = {0};
    for (int i = 0; i < objectives->n; i++) text_printf(&names, "%s%s", i > 0 ? ", " : "", objectives->names[i]);
    if (!found)
        rc = error_set(ERR_REFUSED, __FILE__, __LINE__,
                       "it has no \"objective\", and its source none; expected one of %s", names.bytes);
    else
        rc = error_set(ERR_REFUSED, __FILE__, __LINE__, "\"objective\" is '%.40s'; expected one of %s",
                       json_node_is(found, NODE_STRING) ? found->bytes : json_node_type_name(found), names.bytes);
    text_free(&names);
    return rc;
}

int pair_objective(int *objective, const PairObjectives *objectives, const Preference *preference) {
    const JsonNode *own = preference->objective;
    *objective = objectives->n > 0 && !own ? objectives->usual : 0;
    if (objectives->n == 0 || (!own && objectives->usual >= 0)) return OK;
    for (int i = 0; own && i < objectives->n; i++) {
        *objective = i;
        if (json_node_is(own, NODE_STRING) && strcmp(own->bytes, objectives->names[i]) == 0) return OK;
    }
    return unknown_objective(objectives, own);
}

/* ---- answers as tokens --------------------------------------------------------------------------------------------
 */

bool chat_tokens_equal(const ChatTokens *a, const ChatTokens *b) {
    return a->n == b->n && memcmp(a->ids, b->ids, a->n * sizeof *a->ids) == 0;
}

int pair_render(PairTokens *pair, const ChatTemplate *chat, bool mask_stop) {
    for (size_t i = 0; i < pair->preference.n_answers; i++) {
        const Conversation *conversation;
        TRY(preference_conversation(&pair->preference, i, &conversation));
        TRY(chat_render(chat, conversation, TRAIN_ON_COMPLETION, &pair->tokens[i]));
        if (mask_stop) chat_mask_stops(chat, &pair->tokens[i]);
        chat_unlearn_first(&pair->tokens[i]);
    }
    return OK;
}

size_t pair_longest(const PairTokens *pair) {
    size_t longest = 0;
    for (size_t i = 0; i < pair->preference.n_answers; i++)
        if (pair->tokens[i].n > longest) longest = pair->tokens[i].n;
    return longest;
}

static size_t first_live(const ChatTokens *tokens) {
    size_t i = 0;
    while (i < tokens->n && !(tokens->weights[i] > 0)) i++;
    return i;
}

bool pair_fit(PairTokens *pair, size_t context, Overlong policy) {
    size_t n_answers = pair->preference.n_answers, longest = pair_longest(pair);
    if (longest <= context) return true;
    if (policy == OVERLONG_FAIL || policy == OVERLONG_DROP) return false;
    size_t cut = longest - context;
    for (size_t i = 0; i < n_answers && policy == OVERLONG_TRUNCATE_LEFT; i++)
        if (pair->tokens[i].n_begin + cut >= first_live(&pair->tokens[i])) return false;
    for (size_t i = 0; i < n_answers; i++) {
        ChatTokens *tokens = &pair->tokens[i];
        chat_fit(tokens, policy == OVERLONG_TRUNCATE_LEFT ? tokens->n - cut : context, policy);
        chat_unlearn_first(tokens);
    }
    return true;
}

/* ---- the encoder --------------------------------------------------------------------------------------------------
 */

static void free_scratch(void *memory) {
    if (memory) pair_tokens_free(memory);
    free(memory);
}

static int append(EncodedRecord *out, const ChatTokens *tokens) {
    return encoded_record_append(out, tokens->ids, tokens->weights, tokens->n);
}

/* Every better answer with every worse one, where both are learned. */
static int keep_pairs(const PairTokens *pair, int objective, EncodedRecord *out) {
    const Preference *p = &pair->preference;
    for (size_t a = 0; a < p->n_answers; a++)
        for (size_t b = a + 1; b < p->n_answers; b++) {
            const ChatTokens *better = &pair->tokens[a], *worse = &pair->tokens[b];
            if (better->n_live == 0 || worse->n_live == 0 || chat_tokens_equal(better, worse)) continue;
            TRY(append(out, better));
            TRY(append(out, worse));
            SampleMark mark = preference_mark(p, a, b);
            mark.objective = (uint16_t)objective;
            out->samples[out->n_samples++] =
                (EncodedSample){.n = better->n + worse->n, .second = better->n, .mark = mark};
        }
    if (out->n_samples > 0) return OK;
    bool equal = chat_tokens_equal(&pair->tokens[0], &pair->tokens[p->n_answers - 1]);
    return encoded_record_tell(out, RECORD_MASKED,
                               equal ? "the answers are equal: there is nothing to prefer"
                                     : "of one of the answers no token is learned");
}

static int keep_labelled(const PairTokens *pair, EncodedRecord *out) {
    const ChatTokens *tokens = &pair->tokens[0];
    if (tokens->n_live == 0) return encoded_record_tell(out, RECORD_MASKED, "no token of its answer is learned");
    TRY(append(out, tokens));
    out->samples[out->n_samples++] =
        (EncodedSample){.n = tokens->n, .second = first_live(tokens), .mark = preference_mark(&pair->preference, 0, 0)};
    return OK;
}

static int check_kind(const Preference *preference, SampleKind wanted) {
    if (preference->kind == (wanted == SAMPLE_PAIR ? PREFERENCE_PAIR : PREFERENCE_LABEL)) return OK;
    static const char *const found[] = {"it has neither chosen and rejected nor a label that is true or false",
                                        "it is a pair", "it is one answer with a label"};
    FAIL(ERR_REFUSED, "%s; expected %s", found[preference->kind],
         wanted == SAMPLE_PAIR ? "chosen and rejected (dpo.loss: kto takes labelled answers)"
                               : "prompt, completion and label (the other losses take pairs)");
}

static int read_record(const PairOptions *options, PairTokens *pair, int *objective, const char *bytes, size_t size) {
    TRY(preference_parse(&pair->preference, bytes, size, options->columns));
    TRY(check_kind(&pair->preference, options->samples));
    TRY(pair_objective(objective, &options->objectives, &pair->preference));
    return pair_render(pair, options->chat, options->mask_stop);
}

static int encode(const RecordEncoder *base, void **memory, const char *bytes, size_t size, EncodedRecord *out) {
    const PairOptions *options = &((const PairEncoder *)(const void *)base)->options;
    if (!*memory) *memory = calloc(1, sizeof(PairTokens));
    PairTokens *pair = *memory;
    if (!pair) FAIL(ERR_FAILED, "out of memory");
    *out = (EncodedRecord){0};
    int objective, rc = read_record(options, pair, &objective, bytes, size);
    if (rc == ERR_REFUSED) {
        rc = encoded_record_tell(out, RECORD_BAD, error_text());
        error_clear();
        return rc;
    }
    TRY(rc);
    size_t longest = pair_longest(pair);
    bool kept = pair_fit(pair, options->context, options->overlong);
    if (longest > options->context) TRY(chat_tell_overlong(out, longest, options->context, options->overlong, kept));
    if (!kept) return OK;
    return options->samples == SAMPLE_PAIR ? keep_pairs(pair, objective, out) : keep_labelled(pair, out);
}

void pair_encoder_init(PairEncoder *encoder, const PairOptions *options) {
    enum { VERSION = 1 }; /* of the rules above: a cache made by others is made again */
    uint64_t numbers[] = {VERSION,          (uint64_t)options->samples,  chat_template_hash(options->chat),
                          options->context, (uint64_t)options->overlong, options->mask_stop};
    uint64_t key = chat_columns_hash(options->columns, hash_bytes(numbers, sizeof numbers, HASH_START));
    const PairObjectives *objectives = &options->objectives;
    if (objectives->n > 0) key = hash_bytes(&objectives->usual, sizeof objectives->usual, key);
    for (int i = 0; i < objectives->n; i++)
        key = hash_bytes(objectives->names[i], strlen(objectives->names[i]) + 1, key);
    *encoder =
        (PairEncoder){.base = {.samples = options->samples, .key = key, .encode = encode, .free_scratch = free_scratch},
                      .options = *options};
}
