/* A conversation to ids and weights. Text collects in a segment until a seam (see template.h) and is encoded there. */
#include <stdlib.h>
#include <string.h>

#include "data/chat/json_text.h"
#include "data/chat/template.h"
#include "data/chat/template_parts.h"
#include "model/core/error.h"

struct ChatScratch {
    Text segment, json;
    TokenList list;
    TextEncoder *encoder;
    const Tokenizer *tokenizer; /* its own; another may come to lie at the same place */
    uint64_t fingerprint;
};

typedef struct {
    const ChatTemplate *chat;
    ChatTokens *tokens;
    struct ChatScratch *scratch;
    float weight;    /* of the segment */
    float around;    /* of the template's own text and of what is not an answer */
    bool after_text; /* the last token came from text */
} Render;

void chat_tokens_free(ChatTokens *tokens) {
    if (tokens->scratch) {
        text_free(&tokens->scratch->segment);
        text_free(&tokens->scratch->json);
        token_list_free(&tokens->scratch->list);
        text_encoder_free(tokens->scratch->encoder);
        free(tokens->scratch);
    }
    free(tokens->ids);
    free(tokens->weights);
    *tokens = (ChatTokens){0};
}

/* ---- tokens -------------------------------------------------------------------------------------------------------
 */

static int reserve(ChatTokens *tokens, size_t more) {
    if (tokens->capacity - tokens->n >= more) return OK;
    size_t capacity = 2 * tokens->capacity + more + 64;
    int32_t *ids = realloc(tokens->ids, capacity * sizeof *ids);
    if (!ids) FAIL(ERR_FAILED, "out of memory");
    tokens->ids = ids;
    float *weights = realloc(tokens->weights, capacity * sizeof *weights);
    if (!weights) FAIL(ERR_FAILED, "out of memory");
    tokens->weights = weights;
    tokens->capacity = capacity;
    return OK;
}

static int add_ids(Render *render, const int32_t *ids, size_t n, float weight) {
    ChatTokens *tokens = render->tokens;
    TRY(reserve(tokens, n));
    for (size_t i = 0; i < n; i++) {
        float w = ids[i] == render->chat->bos ? 0 : weight;
        tokens->ids[tokens->n] = ids[i];
        tokens->weights[tokens->n++] = w;
        tokens->n_live += w > 0;
    }
    return OK;
}

/* A seam: encodes the segment. */
static int flush(Render *render) {
    struct ChatScratch *scratch = render->scratch;
    if (scratch->segment.length == 0) return OK;
    TRY(text_check(&scratch->segment));
    int place = render->after_text ? TOKENIZE_AFTER_TEXT : render->tokens->n > 0 ? TOKENIZE_AFTER_TOKEN : 0;
    scratch->list.n = 0;
    TRY(text_encoder_encode(scratch->encoder, scratch->segment.bytes, scratch->segment.length, place, &scratch->list));
    text_clear(&scratch->segment);
    render->after_text = true;
    return add_ids(render, scratch->list.ids, scratch->list.n, render->weight);
}

static int add_text(Render *render, const char *bytes, size_t size, float weight) {
    if (size == 0) return OK;
    if (weight != render->weight) TRY(flush(render));
    render->weight = weight;
    text_append(&render->scratch->segment, bytes, size);
    return OK;
}

static int add_special(Render *render, int32_t id, float weight) {
    TRY(flush(render));
    render->after_text = false;
    return add_ids(render, &id, 1, weight);
}

static int add_part(Render *render, const ChatPart *part, float weight) {
    return part->id >= 0 ? add_special(render, part->id, weight) : add_text(render, part->text, part->size, weight);
}

static int add_parts(Render *render, const ChatParts *parts, float weight) {
    for (size_t i = 0; i < parts->n; i++) TRY(add_part(render, &parts->parts[i], weight));
    return OK;
}

/* ---- messages -----------------------------------------------------------------------------------------------------
 */

static int add_trimmed(Render *render, ChatText text, float weight) {
    text = chat_trim(render->chat, text);
    return add_text(render, text.bytes, text.size, weight);
}

static int add_content(Render *render, const ChatMessage *message, float weight) {
    const ChatTemplateSpec *spec = render->chat->spec;
    Text *json = &render->scratch->json;
    if (message->role == CHAT_TOOL && spec->tool_json) {
        if (message->json.bytes) return add_text(render, message->json.bytes, message->json.size, weight);
        text_clear(json);
        json_text_string(json, message->text.bytes, message->text.size);
        TRY(text_check(json));
        return add_text(render, json->bytes, json->length, weight);
    }
    TRY(add_trimmed(render, message->text, weight));
    if (!message->input.bytes) return OK;
    const char *between = spec->input_before ? spec->input_before : "\n";
    TRY(add_text(render, between, strlen(between), weight));
    return add_trimmed(render, message->input, weight);
}

/* What the assistant's turn begins with, without the spaces that belong to its answer. Ends at a seam. */
static int add_answer_prompt(Render *render) {
    const ChatTemplatePart *role = &render->chat->role[CHAT_ASSISTANT];
    for (size_t i = 0; i < role->before.n; i++) {
        ChatPart part = role->before.parts[i];
        if (i + 1 == role->before.n && part.id < 0) part.size = role->answer_part;
        TRY(add_part(render, &part, render->around));
    }
    return flush(render);
}

/* The assistant's tool call with built-in tools: a call of one of these as code, any other as JSON. */
static int add_builtin_call(Render *render, const ChatMessage *message, float weight) {
    const ChatTemplate *chat = render->chat;
    if (!chat_list_has(chat->builtin_tools, message->call_name.bytes, message->call_name.size))
        return add_text(render, message->text.bytes, message->text.size, weight);
    if (!message->call_text.bytes)
        FAIL(ERR_REFUSED, "an argument of the built-in tool %s is not a string", message->call_name.bytes);
    TRY(add_special(render, chat->call_tag, weight));
    return add_text(render, message->call_text.bytes, message->call_text.size, weight);
}

static int add_answer(Render *render, const ChatMessage *message, float weight) {
    const ChatTemplate *chat = render->chat;
    const ChatTemplatePart *role = &chat->role[CHAT_ASSISTANT];
    const ChatPart *last = role->before.n > 0 ? &role->before.parts[role->before.n - 1] : NULL;
    bool is_call = message->call_name.bytes != NULL;
    TRY(add_answer_prompt(render));
    if (last && last->id < 0)
        TRY(add_text(render, last->text + role->answer_part, last->size - role->answer_part, weight));
    if (is_call && chat->builtin_tools)
        TRY(add_builtin_call(render, message, weight));
    else if (is_call)
        TRY(add_text(render, message->text.bytes, message->text.size, weight));
    else
        TRY(add_content(render, message, weight));
    for (size_t i = 0; i < role->after.n; i++) {
        ChatPart part = role->after.parts[i];
        if (i == role->stop_part && is_call && chat->builtin_tools) part.id = chat->call_stop;
        TRY(add_part(render, &part, i <= role->stop_part ? weight : render->around));
        if (i == role->stop_part && weight > 0) render->tokens->last_stop = render->tokens->n - 1;
    }
    return OK;
}

static int add_system(Render *render, ChatText text, float weight) {
    const ChatTemplatePart *role = &render->chat->role[CHAT_SYSTEM];
    TRY(add_parts(render, &role->before, render->around));
    TRY(add_trimmed(render, text, weight));
    return add_parts(render, &role->after, render->around);
}

/* ---- conversations ------------------------------------------------------------------------------------------------
 */

static int check_message(const ChatTemplate *chat, const ChatMessage *message, size_t number) {
    if (!chat->role[message->role].present)
        FAIL(ERR_REFUSED, "message %zu is the %s's, a role that template %s does not have", number,
             chat_role_name(message->role), chat->spec->name);
    if (message->call_name.bytes && !chat->spec->tool_calls)
        FAIL(ERR_REFUSED, "message %zu is a tool call, which template %s cannot show; llama3.1 can", number,
             chat->spec->name);
    return OK;
}

/* The system message, or what stands for it; *there is false where nothing does. */
static ChatText find_system(const ChatTemplate *chat, const Conversation *conversation, bool *there) {
    const ChatTemplateSpec *spec = chat->spec;
    bool has_input = false;
    for (size_t i = 0; i < conversation->n; i++) has_input = has_input || conversation->messages[i].input.bytes;
    *there = true;
    if (conversation->messages[0].role == CHAT_SYSTEM) return conversation->messages[0].text;
    const char *text = has_input && spec->default_system_input ? spec->default_system_input : spec->default_system;
    if (!text && spec->always_system) text = "";
    *there = text != NULL;
    return (ChatText){text, text ? strlen(text) : 0};
}

static float answer_weight(const Conversation *conversation, size_t i, TrainOn mode) {
    const ChatMessage *message = &conversation->messages[i];
    if (message->has_weight) return message->weight;
    if (mode == TRAIN_ON_COMPLETION) return message->in_completion;
    if (mode == TRAIN_ON_LAST)
        for (size_t k = i + 1; k < conversation->n; k++)
            if (conversation->messages[k].role == CHAT_ASSISTANT) return 0;
    return 1;
}

static int add_messages(Render *render, const Conversation *conversation, TrainOn mode) {
    const ChatTemplate *chat = render->chat;
    bool has_system, has_own = conversation->messages[0].role == CHAT_SYSTEM;
    ChatText system = find_system(chat, conversation, &has_system);
    float system_weight =
        has_own && conversation->messages[0].has_weight ? conversation->messages[0].weight : render->around;
    if (has_system && !chat->spec->system_in_user) TRY(add_system(render, system, system_weight));
    for (size_t i = has_own; i < conversation->n; i++) {
        const ChatMessage *message = &conversation->messages[i];
        if (message->role == CHAT_ASSISTANT) {
            TRY(add_answer(render, message, answer_weight(conversation, i, mode)));
            continue;
        }
        const ChatTemplatePart *role = &chat->role[message->role];
        TRY(add_parts(render, &role->before, render->around));
        if (has_system && chat->spec->system_in_user && i == has_own) TRY(add_system(render, system, system_weight));
        TRY(add_content(render, message, message->has_weight ? message->weight : render->around));
        TRY(add_parts(render, &role->after, render->around));
    }
    return OK;
}

/* The words of earlier conversations are remembered. */
static int open_encoder(struct ChatScratch *scratch, const Tokenizer *tokenizer) {
    uint64_t fingerprint = tokenizer_fingerprint(tokenizer);
    if (scratch->encoder && scratch->tokenizer == tokenizer && scratch->fingerprint == fingerprint) return OK;
    text_encoder_free(scratch->encoder);
    scratch->tokenizer = tokenizer;
    scratch->fingerprint = fingerprint;
    return text_encoder_new(&scratch->encoder, tokenizer);
}

static int start(Render *render, const ChatTemplate *chat, ChatTokens *tokens) {
    if (!tokens->scratch) tokens->scratch = calloc(1, sizeof *tokens->scratch);
    if (!tokens->scratch) FAIL(ERR_FAILED, "out of memory");
    TRY(open_encoder(tokens->scratch, chat->tokenizer));
    *render = (Render){.chat = chat, .tokens = tokens, .scratch = tokens->scratch};
    tokens->n = tokens->n_live = tokens->n_begin = 0;
    text_clear(&tokens->scratch->segment);
    return OK;
}

static int finish(Render *render, bool has_stop) {
    TRY(flush(render));
    ChatTokens *tokens = render->tokens;
    if (!has_stop) tokens->last_stop = tokens->n;
    if (tokens->n_begin == 0) tokens->n_begin = tokens->n > 0 && tokens->ids[0] == render->chat->bos;
    return OK;
}

static int render_text(Render *render, const ChatMessage *message) {
    const ChatTemplate *chat = render->chat;
    float weight = message->has_weight ? message->weight : 1;
    if (chat->bos >= 0) TRY(add_special(render, chat->bos, 0));
    TRY(add_text(render, message->text.bytes, message->text.size, weight));
    TRY(flush(render));
    if (chat->eos >= 0) TRY(add_special(render, chat->eos, weight));
    if (chat->eos >= 0 && weight > 0) render->tokens->last_stop = render->tokens->n - 1;
    return finish(render, chat->eos >= 0 && weight > 0);
}

int chat_render(const ChatTemplate *chat, const Conversation *conversation, TrainOn mode, ChatTokens *tokens) {
    Render render;
    TRY(start(&render, chat, tokens));
    TRY(conversation_check_roles(conversation));
    if (conversation->kind == RECORD_TEXT) return render_text(&render, &conversation->messages[0]);
    for (size_t i = 0; i < conversation->n; i++) TRY(check_message(chat, &conversation->messages[i], i + 1));
    render.around = mode == TRAIN_ON_ALL ? 1.0f : 0.0f;
    TRY(add_parts(&render, &chat->begin, render.around));
    TRY(flush(&render));
    tokens->n_begin = tokens->n;
    tokens->last_stop = SIZE_MAX;
    TRY(add_messages(&render, conversation, mode));
    return finish(&render, tokens->last_stop != SIZE_MAX);
}

int chat_render_prompt(const ChatTemplate *chat, const Conversation *conversation, ChatTokens *tokens) {
    Render render;
    TRY(start(&render, chat, tokens));
    TRY(conversation_check_roles(conversation));
    if (conversation->kind == RECORD_TEXT || conversation->messages[conversation->n - 1].role == CHAT_ASSISTANT)
        FAIL(ERR_REFUSED, "the conversation does not end with a message to be answered");
    for (size_t i = 0; i < conversation->n; i++) TRY(check_message(chat, &conversation->messages[i], i + 1));
    TRY(add_parts(&render, &chat->begin, 0));
    TRY(flush(&render));
    tokens->n_begin = tokens->n;
    TRY(add_messages(&render, conversation, TRAIN_ON_ASSISTANT));
    TRY(add_answer_prompt(&render));
    return finish(&render, false);
}

/* ---- the context --------------------------------------------------------------------------------------------------
 */

static void count_live(ChatTokens *tokens) {
    tokens->n_live = 0;
    for (size_t i = 0; i < tokens->n; i++) tokens->n_live += tokens->weights[i] > 0;
}

void chat_mask_stops(const ChatTemplate *chat, ChatTokens *tokens) {
    int32_t stops[2];
    size_t n = chat_template_stops(chat, stops);
    for (size_t i = 0; i < tokens->n; i++)
        for (size_t k = 0; k < n; k++)
            if (tokens->ids[i] == stops[k]) tokens->weights[i] = 0;
}

void chat_unlearn_first(ChatTokens *tokens) {
    if (tokens->n > 0) tokens->weights[0] = 0;
    count_live(tokens);
}

bool chat_fit(ChatTokens *tokens, size_t context, Overlong policy) {
    if (tokens->n <= context) return true;
    if (policy == OVERLONG_FAIL || policy == OVERLONG_DROP) return false;
    if (policy == OVERLONG_TRUNCATE_LEFT) {
        size_t kept = tokens->n_begin < context ? tokens->n_begin : context, cut = tokens->n - context;
        memmove(tokens->ids + kept, tokens->ids + kept + cut, (context - kept) * sizeof *tokens->ids);
        memmove(tokens->weights + kept, tokens->weights + kept + cut, (context - kept) * sizeof *tokens->weights);
        tokens->last_stop =
            tokens->last_stop < tokens->n && tokens->last_stop >= kept + cut ? tokens->last_stop - cut : context;
    } else if (tokens->last_stop >= context) {
        tokens->last_stop = context; /* an earlier answer's stop does not end this text */
    }
    tokens->n = context;
    count_live(tokens);
    return true;
}
