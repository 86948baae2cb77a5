/* See preference.h. The messages of all that a record has lie one after another; prompt and answers are ranges. */
#include "data/chat/preference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/record_parts.h"
#include "model/core/error.h"

static const char human[] = "\n\nHuman:", assistant[] = "\n\nAssistant:";

const char *strength_name(Strength strength) {
    static const char *const names[N_STRENGTHS] = {"not given", "negligibly", "slightly", "better", "significantly"};
    return names[strength];
}

static const char *const answer_names[PREFERENCE_ANSWERS] = {"edited", "chosen", "rejected"};

const char *preference_answer_name(const Preference *p, size_t answer) {
    if (p->kind == PREFERENCE_LABEL) return p->mark.is_good ? "good" : "bad";
    size_t k = answer + !p->has_edited;
    return k < PREFERENCE_ANSWERS ? answer_names[k] : "none";
}

/* ---- dialogues ----------------------------------------------------------------------------------------------------
 */

static bool is_dialogue(const JsonNode *value) {
    return json_node_is(value, NODE_STRING) && strncmp(value->bytes, human, sizeof human - 1) == 0;
}

/* The nearest of the two marks, or the end. */
static const char *next_turn(const char *at, const char *end) {
    const char *a = memmem(at, (size_t)(end - at), human, sizeof human - 1);
    const char *b = memmem(at, (size_t)(end - at), assistant, sizeof assistant - 1);
    if (!a || (b && b < a)) a = b;
    return a ? a : end;
}

static int read_dialogue(RecordParser *parser, const JsonNode *value) {
    const char *at = value->bytes, *end = at + value->size;
    while (at < end) {
        bool is_human = (size_t)(end - at) >= sizeof human - 1 && memcmp(at, human, sizeof human - 1) == 0;
        const char *text = at + (is_human ? sizeof human : sizeof assistant) - 1, *next = next_turn(text, end);
        if (text < next && *text == ' ') text++;
        ChatMessage message = {.role = is_human ? CHAT_USER : CHAT_ASSISTANT};
        TRY(record_keep(parser, text, (size_t)(next - text), &message.text));
        TRY(record_add_message(parser->conversation, message));
        at = next;
    }
    return OK;
}

/* ---- prompts ------------------------------------------------------------------------------------------------------
 */

/* A list of messages, in OpenAI's form or in ShareGPT's. */
static int read_list(RecordParser *parser, const JsonNode *list, const char *name) {
    bool sharegpt = record_field(parser, json_node_element(list, 0), "from") != NULL;
    return record_read_messages(parser, list, name, sharegpt ? "from" : "role", sharegpt ? "value" : "content");
}

/* A prompt's dialogue may end with the mark of the answer to come. */
static int read_prompt_dialogue(RecordParser *parser, const JsonNode *prompt) {
    Conversation *all = parser->conversation;
    TRY(read_dialogue(parser, prompt));
    const ChatMessage *last = &all->messages[all->n - 1];
    if (last->role == CHAT_ASSISTANT && last->text.size == 0) all->n--;
    return OK;
}

static int read_instruction(RecordParser *parser, const JsonNode *root) {
    ChatMessage user = {.role = CHAT_USER};
    TRY(record_read_text(parser, record_field(parser, root, "instruction"), "instruction", &user.text));
    TRY(record_read_optional(parser, root, "input", &user.input));
    return record_add_message(parser->conversation, user);
}

/* Adds nothing where the record has no prompt of its own. */
static int read_prompt(RecordParser *parser, const JsonNode *root) {
    static const char *const lists[] = {"messages", "conversations"};
    TRY(record_read_system(parser, root));
    const JsonNode *prompt = record_field(parser, root, "prompt");
    if (is_dialogue(prompt)) return read_prompt_dialogue(parser, prompt);
    if (json_node_is(prompt, NODE_ARRAY)) return read_list(parser, prompt, "prompt");
    if (prompt) return record_read_side(parser, root, "prompt", CHAT_USER);
    for (int i = 0; i < 2; i++) {
        const JsonNode *list = record_field(parser, root, lists[i]);
        if (list) return read_list(parser, list, lists[i]);
    }
    return record_field(parser, root, "instruction") ? read_instruction(parser, root) : OK;
}

/* ---- answers ------------------------------------------------------------------------------------------------------
 */

static int read_answer(RecordParser *parser, const JsonNode *root, const char *name) {
    const JsonNode *value = record_field(parser, root, name);
    if (!value) FAIL(ERR_REFUSED, "no \"%s\"", record_column(parser, name));
    if (is_dialogue(value)) return read_dialogue(parser, value);
    if (json_node_is(value, NODE_ARRAY)) return read_list(parser, value, name);
    if (json_node_is(value, NODE_OBJECT)) {
        bool sharegpt = record_field(parser, value, "from") != NULL;
        int rc = record_read_message(parser, value, sharegpt ? "from" : "role", sharegpt ? "value" : "content");
        return rc == OK ? OK : error_context(rc, "\"%s\"", record_column(parser, name));
    }
    ChatMessage message = {.role = CHAT_ASSISTANT};
    TRY(record_read_text(parser, value, name, &message.text));
    return record_add_message(parser->conversation, message);
}

static bool same_text(ChatText a, ChatText b) {
    return a.size == b.size && (a.size == 0 || memcmp(a.bytes, b.bytes, a.size) == 0);
}

static bool same_message(const ChatMessage *a, const ChatMessage *b) {
    return a->role == b->role && same_text(a->text, b->text) && same_text(a->input, b->input) &&
           same_text(a->json, b->json);
}

static size_t answer_length(const Preference *p, size_t i) {
    return p->end[i] - p->first[i];
}

/* Answers that are whole conversations: what they have in common at their beginning is the prompt, but for the last
 * message of the shortest. */
static void find_prompt(Preference *p) {
    const ChatMessage *messages = p->all.messages;
    size_t most = answer_length(p, 0), common = 0;
    for (size_t i = 1; i < p->n_answers; i++)
        if (answer_length(p, i) < most) most = answer_length(p, i);
    for (bool same = true; common + 1 < most; common++) {
        for (size_t i = 1; i < p->n_answers; i++)
            same = same && same_message(&messages[p->first[0] + common], &messages[p->first[i] + common]);
        if (!same) break;
    }
    p->first_prompt = p->first[0];
    p->n_prompt = common;
    for (size_t i = 0; i < p->n_answers; i++) p->first[i] += common;
}

static int check_answers(Preference *p, bool implicit) {
    for (size_t i = 0; i < p->n_answers; i++) {
        ChatRole role = p->all.messages[p->first[i]].role;
        if (role == CHAT_ASSISTANT) continue;
        p->different_prompts = implicit && answer_length(p, i) > 1;
        if (p->different_prompts)
            FAIL(ERR_REFUSED, "different prompts: message %zu of \"%s\" is the %s's and not that of the other answers",
                 p->n_prompt + 1, preference_answer_name(p, i), chat_role_name(role));
        FAIL(ERR_REFUSED, "\"%s\" has no answer: where the assistant's message is expected is the %s's",
             preference_answer_name(p, i), chat_role_name(role));
    }
    if (p->n_prompt == 0)
        FAIL(ERR_REFUSED, "no prompt: neither \"prompt\" nor messages that all answers begin with were found");
    return OK;
}

/* ---- marks --------------------------------------------------------------------------------------------------------
 */

static int read_strength(RecordParser *parser, const JsonNode *value, SampleMark *mark) {
    static const struct {
        const char *begins;
        Strength strength;
    } words[] = {{"significant", STRENGTH_SIGNIFICANT},
                 {"better", STRENGTH_BETTER},
                 {"slight", STRENGTH_SLIGHT},
                 {"neglig", STRENGTH_NEGLIGIBLE},
                 {"unsure", STRENGTH_NEGLIGIBLE}};
    const char *text = json_node_is(value, NODE_STRING) ? value->bytes : NULL;
    for (size_t i = 0; text && i < sizeof words / sizeof *words; i++) {
        if (!text_starts_with(text, words[i].begins)) continue;
        mark->strength = (uint8_t)words[i].strength;
        return OK;
    }
    FAIL(ERR_REFUSED, "\"%s\" is %s%.40s%s; expected significantly, better, slightly or negligibly",
         record_column(parser, "strength"), text ? "'" : "", text ? text : json_node_type_name(value), text ? "'" : "");
}

static int read_mark(RecordParser *parser, const JsonNode *root, SampleMark *mark) {
    const JsonNode *margin = record_field(parser, root, "margin"), *strength = record_field(parser, root, "strength");
    if (strength) TRY(read_strength(parser, strength, mark));
    if (!margin) return OK;
    double value = json_node_number(margin);
    if (!json_node_is_number(margin) || !isfinite((float)value))
        FAIL(ERR_REFUSED, "\"%s\" is no number", record_column(parser, "margin"));
    mark->margin = (float)value;
    return OK;
}

/* ---- records ------------------------------------------------------------------------------------------------------
 */

static int read_pair(Preference *p, RecordParser *parser) {
    const JsonNode *root = p->all.json.nodes;
    p->has_edited = record_field(parser, root, "edited") != NULL;
    TRY(read_prompt(parser, root));
    p->first_prompt = 0;
    p->n_prompt = p->all.n;
    for (int k = p->has_edited ? 0 : 1; k < PREFERENCE_ANSWERS; k++) {
        size_t i = p->n_answers++;
        p->first[i] = p->all.n;
        TRY(read_answer(parser, root, answer_names[k]));
        p->end[i] = p->all.n;
    }
    bool implicit = p->n_prompt == 0 || p->all.messages[p->first[0]].role != CHAT_ASSISTANT;
    if (implicit) find_prompt(p);
    TRY(check_answers(p, implicit));
    p->objective = record_field(parser, root, "objective");
    return read_mark(parser, root, &p->mark);
}

static bool is_label(const JsonNode *label) {
    if (json_node_is(label, NODE_TRUE) || json_node_is(label, NODE_FALSE)) return true;
    return json_node_is(label, NODE_INTEGER) && (json_node_number(label) == 0 || json_node_number(label) == 1);
}

static int read_labelled(Preference *p, const ChatColumns *columns, const JsonNode *label) {
    TRY(conversation_read(&p->all, columns));
    if (p->all.kind == RECORD_TEXT) FAIL(ERR_REFUSED, "a text has no prompt; a label is for an answer to one");
    while (p->n_prompt < p->all.n && !p->all.messages[p->n_prompt].in_completion) p->n_prompt++;
    if (p->n_prompt == 0 || p->n_prompt == p->all.n)
        FAIL(ERR_REFUSED, "it has a label and no %s", p->n_prompt == 0 ? "prompt" : "answer");
    p->n_answers = 1;
    p->first[0] = p->n_prompt;
    p->end[0] = p->all.n;
    p->mark.is_good = json_node_is(label, NODE_TRUE) || json_node_number(label) == 1;
    return OK;
}

static void begin(Preference *p) {
    p->kind = PREFERENCE_NONE;
    p->n_prompt = p->first_prompt = p->n_answers = 0;
    p->has_edited = p->different_prompts = p->has_odd_label = false;
    p->mark = (SampleMark){.margin = NAN};
    p->objective = NULL;
}

int preference_parse(Preference *p, const char *json, size_t size, const ChatColumns *columns) {
    RecordParser parser = {&p->all, columns};
    begin(p);
    TRY(conversation_load(&p->all, json, size));
    const JsonNode *label = record_field(&parser, p->all.json.nodes, "label");
    if (record_field(&parser, p->all.json.nodes, "chosen") || record_field(&parser, p->all.json.nodes, "rejected")) {
        p->kind = PREFERENCE_PAIR;
        return read_pair(p, &parser);
    }
    p->has_odd_label = label && !is_label(label);
    if (!label || p->has_odd_label) return OK;
    p->kind = PREFERENCE_LABEL;
    return read_labelled(p, columns, label);
}

void preference_free(Preference *p) {
    conversation_free(&p->all);
    free(p->view.messages);
    *p = (Preference){0};
}

int preference_conversation(Preference *p, size_t answer, const Conversation **conversation) {
    p->view.n = 0;
    p->view.kind = RECORD_COMPLETION;
    for (size_t i = 0; i < p->n_prompt; i++) {
        ChatMessage message = p->all.messages[p->first_prompt + i];
        message.in_completion = false;
        TRY(record_add_message(&p->view, message));
    }
    for (size_t i = p->first[answer]; i < p->end[answer]; i++) {
        ChatMessage message = p->all.messages[i];
        message.in_completion = true;
        TRY(record_add_message(&p->view, message));
    }
    *conversation = &p->view;
    return OK;
}

SampleMark preference_mark(const Preference *p, size_t a, size_t b) {
    bool is_own = p->kind == PREFERENCE_LABEL || (a + 2 == p->n_answers && b + 1 == p->n_answers);
    return is_own ? p->mark : (SampleMark){.margin = NAN};
}
