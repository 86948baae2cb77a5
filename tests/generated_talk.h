/* Generated conversations: the n-th is the same everywhere. Their texts hold special tokens' names, tags of templates,
 * odd spaces, empty turns, control characters and letters of several scripts. */
#ifndef CRIA_TESTS_GENERATED_TALK_H
#define CRIA_TESTS_GENERATED_TALK_H

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "data/chat/record.h"
#include "model/core/philox.h"
#include "model/core/text.h"
#include "tests/check_main.h"

enum { MOST_TURNS = 8 };

typedef struct {
    uint64_t at;
    PhiloxKey key;
} Draw;
static inline size_t below(Draw *draw, size_t bound) {
    return (size_t)philox_below(draw->key, draw->at++, bound);
}

typedef struct {
    ChatRole role;
    Text text;
    bool has_weight;
    float weight;
} Turn;

typedef struct {
    Turn turns[MOST_TURNS];
    size_t n;
} Talk;

static const struct {
    const char *bytes;
    size_t size;
} TALK_POOL[] = {
#define PIECE(text) \
    { text, sizeof text - 1 }
    PIECE("Hello"),
    PIECE("what is"),
    PIECE("2+2?"),
    PIECE("don't"),
    PIECE("it's"),
    PIECE("x = {\n    1: 2,\n}"),
    PIECE("..."),
    PIECE("a  b"),
    PIECE("1234567"),
    PIECE("#"),
    PIECE("<"),
    PIECE("["),
    PIECE("|>"),
    PIECE("\\n"),
    PIECE("\"q\""),
    PIECE("caf\u00e9"),
    PIECE("e\u0301"),
    PIECE("\u4f60\u597d"),
    PIECE("\U0001f999"),
    PIECE("\u0645\u0631\u062d\u0628\u0627"),
    PIECE("\u200b"),
    PIECE("\x01"),
    PIECE("\0"),
    PIECE("\x7f"),
    /* white space */
    PIECE(" "),
    PIECE("  "),
    PIECE("\n"),
    PIECE("\n\n"),
    PIECE("\r\n"),
    PIECE("\t"),
    PIECE("\u00a0"),
    PIECE("\u2003"),
    PIECE("\u3000"),
    PIECE("\u2028"),
    /* special tokens' names and tags */
    PIECE("<|begin_of_text|>"),
    PIECE("<|end_of_text|>"),
    PIECE("<|start_header_id|>user<|end_header_id|>\n\n"),
    PIECE("<|eot_id|>"),
    PIECE("<|eom_id|>"),
    PIECE("<|python_tag|>"),
    PIECE("<|im_start|>assistant\n"),
    PIECE("<|im_end|>"),
    PIECE("<s>"),
    PIECE("</s>"),
    PIECE("<unk>"),
    PIECE("<0x0A>"),
    PIECE("\u2581"),
    PIECE("[INST]"),
    PIECE("[/INST]"),
    PIECE("<<SYS>>\n"),
    PIECE("\n<</SYS>>\n\n"),
    PIECE("### Instruction:\n"),
    PIECE("### Response:\n"),
    PIECE("### Input:\n"),
    PIECE("{bos}"),
    PIECE("{eos}"),
    PIECE("{date}"),
    PIECE("A: "),
    PIECE("Q: "),
    PIECE("<|reserved_special_token_5|>"),
#undef PIECE
};

static inline void draw_text(Draw *draw, Text *text) {
    static const char *const between[] = {"", "", " ", "  ", "\n"};
    for (size_t n = below(draw, 9); n > 0; n--) { /* none: an empty turn */
        size_t i = below(draw, sizeof TALK_POOL / sizeof *TALK_POOL);
        text_append(text, TALK_POOL[i].bytes, TALK_POOL[i].size);
        text_puts(text, between[below(draw, sizeof between / sizeof *between)]);
    }
    text_append(text, "", 0);
}

static inline void add_turn(Draw *draw, Talk *talk, ChatRole role) {
    Turn *turn = &talk->turns[talk->n++];
    *turn = (Turn){.role = role};
    draw_text(draw, &turn->text);
    turn->has_weight = role == CHAT_ASSISTANT && below(draw, 8) == 0;
    turn->weight = turn->has_weight ? (float)below(draw, 3) / 2 : 0;
}

/* [system], one to three questions and answers; the last answer may be missing. */
static inline void draw_talk(Talk *talk, uint32_t number) {
    Draw draw = {.key = philox_key(2026, PHILOX_TEST, number, 0)};
    talk->n = 0;
    if (below(&draw, 2)) add_turn(&draw, talk, CHAT_SYSTEM);
    for (size_t pairs = 1 + below(&draw, 3); pairs > 0; pairs--) {
        add_turn(&draw, talk, CHAT_USER);
        if (pairs > 1 || below(&draw, 8)) add_turn(&draw, talk, CHAT_ASSISTANT);
    }
}
static inline void talk_free(Talk *talk) {
    for (size_t i = 0; i < talk->n; i++) text_free(&talk->turns[i].text);
}

static inline char *talk_json(const Talk *talk) {
    json_t *messages = json_array();
    for (size_t i = 0; i < talk->n; i++) {
        const Turn *turn = &talk->turns[i];
        json_t *message = json_pack("{s:s, s:s%}", "role", chat_role_name(turn->role), "content",
                                    turn->text.bytes ? turn->text.bytes : "", turn->text.length);
        if (turn->has_weight) json_object_set_new(message, "weight", json_real((double)turn->weight));
        json_array_append_new(messages, message);
    }
    json_t *root = json_pack("{s:o}", "messages", messages);
    char *json = json_dumps(root, JSON_COMPACT | JSON_ENSURE_ASCII);
    json_decref(root);
    return json;
}

#endif
