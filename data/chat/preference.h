/* Preference records: a prompt and answers of which one is better, or one answer and whether it is good. Recognised by
 * their keys (a key whose value is null counts as absent):
 *
 *   chosen, rejected[, edited]     answers, edited > chosen > rejected (Grattafiori et al. 2024, section 4.2.1): each a
 *                                  text, a message, or a list of messages. The prompt is one of
 *       prompt                     a text, or a list of messages
 *       messages | conversations   as in record.h
 *       instruction[, input]       Alpaca's
 *       (none of these)            what the lists of messages have in common at their beginning
 *   [strength] of chosen against rejected: significantly, better, slightly, negligibly (Touvron et al. 2023b, 3.2.1)
 *   [margin]   the same as a number
 *   [objective] what the better one is better by, where a reward model has several scores: its name
 *
 *   label, with any record of record.h but text: whether its completion is good (Ethayarajh et al. 2024)
 *
 * Answers that begin with a user's or a system message contain their prompt, whatever else is given (UltraFeedback's
 * form). A text that begins with "\n\nHuman:" is a dialogue in the form of hh-rlhf (Bai et al. 2022): turns of
 * "\n\nHuman: …" and "\n\nAssistant: …". */
#ifndef CRIA_DATA_CHAT_PREFERENCE_H
#define CRIA_DATA_CHAT_PREFERENCE_H

#include "data/chat/record.h"
#include "data/encoder.h"

typedef enum { PREFERENCE_NONE, PREFERENCE_PAIR, PREFERENCE_LABEL } PreferenceKind;
enum { PREFERENCE_ANSWERS = 3 };

typedef struct {
    PreferenceKind kind;
    Conversation all;                                                     /* the JSON, and all of its messages */
    size_t first_prompt, n_prompt;                                        /* the prompt's */
    size_t n_answers, first[PREFERENCE_ANSWERS], end[PREFERENCE_ANSWERS]; /* the answers', the best first */
    bool has_edited, different_prompts;                                   /* the latter: why it was refused */
    bool has_odd_label;        /* a label that is none, so that the record is of another kind */
    SampleMark mark;           /* of the pair chosen > rejected, or of the labelled answer */
    const JsonNode *objective; /* the record's "objective", of any type; NULL: it has none */
    Conversation view;
} Preference; /* {0} is empty; may be parsed into again; preference_free */

/* Reads one JSON object. A record of another kind is PREFERENCE_NONE, and its JSON is in `all`, for conversation_read.
 * ERR_REFUSED says what is wrong with it; the caller adds the file and line. */
int preference_parse(Preference *preference, const char *json, size_t size, const ChatColumns *columns);
void preference_free(Preference *preference);

/* "edited", "chosen" or "rejected"; of a labelled answer "good" or "bad". */
const char *preference_answer_name(const Preference *preference, size_t answer);

/* The prompt and one of the answers, which is its completion. The preference's, until the next call. */
int preference_conversation(Preference *preference, size_t answer, const Conversation **conversation);
/* The mark of the pair of these two answers, a better than b: the record's own where they are chosen and rejected. */
SampleMark preference_mark(const Preference *preference, size_t a, size_t b);

const char *strength_name(Strength strength); /* "significantly", … */

#endif
