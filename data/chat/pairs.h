/* Preferences for the loader: an encoder (data/encoder.h) that renders both answers of a pair, or a labelled one. */
#ifndef CRIA_DATA_CHAT_PAIRS_H
#define CRIA_DATA_CHAT_PAIRS_H

#include "data/chat/preference.h"
#include "data/chat/template.h"
#include "data/encoder.h"

/* What a reward model with several scores learns from pairs: each is about one of these. */
typedef struct {
    const char *const *names;
    int n;     /* 0: there is but one, whatever records say */
    int usual; /* of pairs whose record has no "objective"; -1: it must have one */
} PairObjectives;
/* The number of the preference's own, or the usual one. ERR_REFUSED for another name, or none. */
int pair_objective(int *objective, const PairObjectives *objectives, const Preference *preference);

typedef struct {
    const ChatTemplate *chat;
    const ChatColumns *columns; /* NULL: none */
    SampleKind samples;         /* SAMPLE_PAIR or SAMPLE_LABELLED: what every record must be */
    size_t context;             /* of each answer with its prompt */
    Overlong overlong;          /* truncate-left cuts both answers' prompts alike; where answers alone are too long, the
                                   record is dropped */
    bool mask_stop;             /* the stop is not learned (Grattafiori et al. 2024, section 4.1.4); what stands before
                                   an answer never is */
    PairObjectives objectives;  /* the marks' */
} PairOptions;

/* Learned: the assistant's messages of the answers. Of three ranked answers each better one is paired with each worse
 * one. Pairs of equal answers are left out. */
typedef struct {
    RecordEncoder base; /* first, so that a pointer to it is one to the encoder */
    PairOptions options;
} PairEncoder;

/* What the options point to must outlive the encoder; nothing is to be freed. */
void pair_encoder_init(PairEncoder *encoder, const PairOptions *options);

/* One record's answers as tokens, the best first: what the encoder makes of it, for lint and show. */
typedef struct {
    Preference preference;
    ChatTokens tokens[PREFERENCE_ANSWERS];
} PairTokens; /* {0} is empty; pair_tokens_free */
void pair_tokens_free(PairTokens *tokens);
bool chat_tokens_equal(const ChatTokens *a, const ChatTokens *b); /* the ids */
/* Renders the parsed preference. ERR_REFUSED as chat_render. */
int pair_render(PairTokens *tokens, const ChatTemplate *chat, bool mask_stop);
/* Cuts to the context, as far as the policy can; false where the record does not fit. */
bool pair_fit(PairTokens *tokens, size_t context, Overlong policy);
size_t pair_longest(const PairTokens *tokens); /* tokens of the longest answer with its prompt */

#endif
