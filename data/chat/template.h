/* Chat templates: a conversation as token ids, and for every token the weight of its loss.
 *
 * A template is data: for each role what stands before and after a message. In these texts a special token's name
 * means that token, {bos} and {eos} the tokenizer's own, {date} the date, {environment} what announces built-in tools.
 * A message's own text is only ever text, whatever it contains.
 *
 * Segments. Text is encoded in segments, one by one, so that no merge crosses their seams. A seam is at every special
 * token, at both ends of an answer (the assistant's text), and wherever the weight changes. Between seams the
 * template's text and the message's are encoded together, as at generation and by every program that renders the Jinja
 * form. An answer's segment begins with the spaces that end the assistant's `before`: "Answer: " asks the model for "
 * 42".
 *
 * Weights. weights[i] is the weight of the loss of predicting token i. An answer is learned up to and with its `stop`;
 * what follows the stop is not. BOS is never learned. The ids do not depend on the mask (except around a message of
 * another role that carries a weight of its own). */
#ifndef CRIA_DATA_CHAT_TEMPLATE_H
#define CRIA_DATA_CHAT_TEMPLATE_H

#include <stdint.h>

#include "data/chat/record.h"
#include "data/tokenizer/tokenizer.h"
#include "model/core/text.h"

typedef struct {
    const char *before, *after; /* both NULL: the template has no such role */
    const char *stop;           /* the assistant's: a special token within `after` */
} ChatTemplateRole;

typedef struct {
    const char *name;
    const char *begin; /* of every conversation */
    ChatTemplateRole role[N_CHAT_ROLES];
    bool trim;           /* messages lose the white space at their ends (Python's str.strip) */
    bool system_in_user; /* the system message stands inside the first user's, before its text */
    bool always_system;  /* a conversation without a system message has an empty one */
    bool tool_json;      /* tools' messages as JSON: a string in quotes */
    bool tool_calls;     /* an assistant's tool calls can be shown */
    const char *default_system, *default_system_input; /* the system text where there is none (with Alpaca's input) */
    const char *input_before;                          /* between an instruction and its input; NULL: a newline */
    const char *call_tag, *call_stop; /* with built-in tools: what a call of one begins with, what a call ends with */
} ChatTemplateSpec;

/* llama2, llama3, llama3.1, llama3.2, alpaca, chatml, plain. */
const ChatTemplateSpec *chat_template_spec(const char *name); /* NULL: unknown */
const char *const *chat_template_names(size_t *n);

typedef struct {
    const char *date;          /* Llama 3.1 and 3.2; NULL: CHAT_DATE */
    const char *builtin_tools; /* "brave_search,wolfram_alpha": Llama 3.1's `builtin_tools`; NULL: none */
} ChatTemplateOptions;
#define CHAT_DATE "26 Jul 2024" /* what Meta's templates say where no date is known */

typedef struct ChatTemplate ChatTemplate;

/* Checks the template against the tokenizer: every special token must exist in it. The spec's strings are the caller's
 * and, like the tokenizer, must outlive the template. */
int chat_template_new(ChatTemplate **chat, const ChatTemplateSpec *spec, const ChatTemplateOptions *options,
                      const Tokenizer *tokenizer);
void chat_template_free(ChatTemplate *chat);

/* Of all that the ids and weights depend on but the tokenizer. */
uint64_t chat_template_hash(const ChatTemplate *chat);

/* The tokens that end an answer, for generation. */
size_t chat_template_stops(const ChatTemplate *chat, int32_t stops[2]);

typedef enum {
    TRAIN_ON_ALL,        /* everything but BOS */
    TRAIN_ON_COMPLETION, /* answers in `completion`, or after the last user's message */
    TRAIN_ON_ASSISTANT,  /* every answer */
    TRAIN_ON_LAST,       /* the last answer */
} TrainOn;

typedef struct {
    int32_t *ids;
    float *weights;
    size_t n, capacity;
    size_t n_begin;   /* tokens of the template's `begin` */
    size_t n_live;    /* tokens whose weight is not 0 */
    size_t last_stop; /* index of the last stop with weight; n where there is none */
    struct ChatScratch *scratch;
} ChatTokens; /* {0} is empty; appended to by nobody: each call starts anew; chat_tokens_free */
void chat_tokens_free(ChatTokens *tokens);

/* A record of kind RECORD_TEXT is BOS, its text, EOS (where the tokenizer has them), all but BOS learned in every mode.
 * ERR_REFUSED: roles out of order (conversation_check_roles), or a message that the template cannot show. */
int chat_render(const ChatTemplate *chat, const Conversation *conversation, TrainOn mode, ChatTokens *tokens);
/* A conversation that an answer is wanted for, up to where the model goes on. */
int chat_render_prompt(const ChatTemplate *chat, const Conversation *conversation, ChatTokens *tokens);

typedef enum { OVERLONG_FAIL, OVERLONG_DROP, OVERLONG_TRUNCATE_LEFT, OVERLONG_TRUNCATE_RIGHT } Overlong;
int overlong_parse(Overlong *policy, const char *word);
/* Cuts to `context` tokens: the first of them, or `begin` and the last of them. False: it does not fit and is to be
 * dropped, or refused. */
bool chat_fit(ChatTokens *tokens, size_t context, Overlong policy);
/* The tokens that end answers are not learned. n_live is counted by chat_unlearn_first. */
void chat_mask_stops(const ChatTemplate *chat, ChatTokens *tokens);
/* Nothing foretells the first token: its weight becomes 0, and n_live is counted anew. */
void chat_unlearn_first(ChatTokens *tokens);

/* The same template for transformers, llama.cpp and others (`chat_template`). */
int chat_template_jinja(const ChatTemplate *chat, Text *out);
/* And for the TEMPLATE of an Ollama Modelfile. ERR_REFUSED where its texts cannot be said there. */
int chat_template_ollama(const ChatTemplate *chat, Text *out);

#endif
