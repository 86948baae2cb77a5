/* cria data show: what is learned, token by token. On a terminal in colour: green is learned, yellow with a weight
 * other than 1, grey is not; elsewhere, or with NO_COLOR set (no-color.org), what is learned stands in « ». */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "data/chat/pairs.h"
#include "data/source.h"
#include "model/core/error.h"
#include "model/core/text.h"
#include "train/commands/chat_input.h"
#include "train/commands/cmd_data.h"

typedef struct {
    ChatInput input;
    int64_t limit;
    bool json, list, prompt, mask_stop, jinja, colour;
} Show;

static const char *piece_of(const Show *show, const ChatTokens *tokens, size_t i, size_t *size) {
    const char *name = tokenizer_name(show->input.tokenizer, tokens->ids[i]);
    if (!name) return tokenizer_piece(show->input.tokenizer, i > 0 ? tokens->ids[i - 1] : -1, tokens->ids[i], size);
    *size = strlen(name);
    return name;
}

static const char *colour_of(float weight) {
    return weight == 0 ? "\033[90m" : weight == 1 ? "\033[32m" : "\033[33m";
}

static void print_text(const Show *show, const ChatTokens *tokens) {
    for (size_t i = 0; i < tokens->n; i++) {
        size_t size;
        const char *piece = piece_of(show, tokens, i, &size);
        float weight = tokens->weights[i], before = i > 0 ? tokens->weights[i - 1] : 0;
        if (show->colour && (i == 0 || weight != before)) fputs(colour_of(weight), stdout);
        if (!show->colour && weight > 0 && before == 0) fputs("«", stdout);
        if (!show->colour && weight == 0 && before > 0) fputs("»", stdout);
        fwrite(piece, 1, size, stdout);
    }
    bool is_open = tokens->n > 0 && tokens->weights[tokens->n - 1] > 0;
    puts(show->colour ? "\033[0m" : is_open ? "»" : "");
}

static int print_list(const Show *show, const ChatTokens *tokens) {
    for (size_t i = 0; i < tokens->n; i++) {
        size_t size;
        Text line = {0};
        const char *piece = piece_of(show, tokens, i, &size);
        if (show->colour) text_puts(&line, colour_of(tokens->weights[i]));
        text_printf(&line, "%6zu %7d %6.3g  ", i, tokens->ids[i], (double)tokens->weights[i]);
        for (size_t k = 0; k < size; k++) {
            unsigned char c = (unsigned char)piece[k];
            text_printf(&line, c < ' ' || c == 0x7f ? "\\x%02x" : "%c", c);
        }
        if (show->colour) text_puts(&line, "\033[0m");
        int rc = text_check(&line);
        if (rc == OK) puts(line.bytes);
        text_free(&line);
        TRY(rc);
    }
    return OK;
}

static json_t *ids_json(const ChatTokens *tokens) {
    json_t *ids = json_array();
    for (size_t i = 0; i < tokens->n; i++) json_array_append_new(ids, json_integer(tokens->ids[i]));
    return ids;
}

static json_t *weights_json(const ChatTokens *tokens) {
    json_t *weights = json_array();
    for (size_t i = 0; i < tokens->n; i++) json_array_append_new(weights, json_real((double)tokens->weights[i]));
    return weights;
}

/* Of a preference: its answers, the best first, and what is known of them. */
static void add_answers(json_t *root, const PairTokens *record) {
    const Preference *p = &record->preference;
    json_t *answers = json_array();
    for (size_t i = 0; i < p->n_answers; i++)
        json_array_append_new(answers, json_pack("{s:o, s:o}", "ids", ids_json(&record->tokens[i]), "weights",
                                                 weights_json(&record->tokens[i])));
    json_object_set_new(root, "answers", answers);
    if (p->kind == PREFERENCE_LABEL) json_object_set_new(root, "label", json_boolean(p->mark.is_good));
    if (p->mark.strength) json_object_set_new(root, "strength", json_string(strength_name((Strength)p->mark.strength)));
    if (!isnan(p->mark.margin)) json_object_set_new(root, "margin", json_real((double)p->mark.margin));
    if (p->objective && json_node_is(p->objective, NODE_STRING))
        json_object_set_new(root, "objective", json_string(p->objective->bytes));
}

/* One object a line, for other programs. */
static int print_json(const Record *record, const PairTokens *tokens, const char *error) {
    json_t *root =
        json_pack("{s:s%, s:I}", "file", record->path, strlen(record->path), "line", (json_int_t)record->line);
    if (!root) FAIL(ERR_FAILED, "%s: the name is not UTF-8", record->path);
    if (error) {
        json_object_set_new(root, "error", json_string(error));
    } else if (tokens->preference.kind == PREFERENCE_NONE) {
        json_object_set_new(root, "ids", ids_json(&tokens->tokens[0]));
        json_object_set_new(root, "weights", weights_json(&tokens->tokens[0]));
    } else {
        add_answers(root, tokens);
    }
    json_dumpf(root, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(root);
    return OK;
}

static int render_conversation(const Show *show, Conversation *conversation, ChatTokens *tokens) {
    const ChatInput *input = &show->input;
    TRY(conversation_read(conversation, &input->renamed));
    if (!show->prompt) {
        TRY(chat_render(input->chat, conversation, input->mode, tokens));
        if (input->context > 0 && !chat_fit(tokens, (size_t)input->context, input->policy))
            FAIL(ERR_REFUSED, "%zu tokens, and the context is %lld", tokens->n, (long long)input->context);
        return OK;
    }
    while (conversation->n > 0 && conversation->messages[conversation->n - 1].role == CHAT_ASSISTANT) conversation->n--;
    return chat_render_prompt(input->chat, conversation, tokens);
}

static int render(const Show *show, const Record *record, PairTokens *tokens) {
    const ChatInput *input = &show->input;
    Preference *p = &tokens->preference;
    TRY(preference_parse(p, record->text, record->size, &input->renamed));
    if (p->kind == PREFERENCE_NONE) return render_conversation(show, &p->all, &tokens->tokens[0]);
    if (show->prompt) FAIL(ERR_REFUSED, "--prompt is for conversations, and this is a preference");
    TRY(pair_render(tokens, input->chat, show->mask_stop));
    size_t longest = pair_longest(tokens);
    if (input->context > 0 && !pair_fit(tokens, (size_t)input->context, input->policy))
        FAIL(ERR_REFUSED, "%zu tokens, and the context is %lld", longest, (long long)input->context);
    return OK;
}

static int print_tokens(const Show *show, const ChatTokens *tokens) {
    printf("%zu tokens, %zu learned\n", tokens->n, tokens->n_live);
    if (show->list) return print_list(show, tokens);
    print_text(show, tokens);
    return OK;
}

static int print_answers(const Show *show, const PairTokens *record) {
    const Preference *p = &record->preference;
    if (p->mark.strength) printf("%s  ", strength_name((Strength)p->mark.strength));
    if (!isnan(p->mark.margin)) printf("margin %g  ", (double)p->mark.margin);
    for (size_t i = 0; i < p->n_answers; i++) {
        printf("%s: ", preference_answer_name(p, i));
        TRY(print_tokens(show, &record->tokens[i]));
    }
    return OK;
}

static int show_record(const Show *show, const Record *record, PairTokens *tokens) {
    int rc = render(show, record, tokens);
    if (rc != OK && rc != ERR_REFUSED) return rc;
    if (show->json) {
        char error[1024];
        snprintf(error, sizeof error, "%s", rc == OK ? "" : error_text());
        return print_json(record, tokens, rc == OK ? NULL : error);
    }
    printf("%s%s:%lld%s  ", show->colour ? "\033[1m" : "", record->path, (long long)record->line,
           show->colour ? "\033[0m" : "");
    if (rc != OK) {
        printf("error: %s\n\n", error_text());
        return OK;
    }
    TRY(tokens->preference.kind == PREFERENCE_NONE ? print_tokens(show, &tokens->tokens[0])
                                                   : print_answers(show, tokens));
    printf("\n");
    return OK;
}

static int show_records(const Show *show) {
    int rc = OK;
    RecordReader *reader = NULL;
    Record record;
    PairTokens tokens = {0};
    bool found;
    TRY(records_open(&reader, &(RecordOptions){.paths = show->input.paths,
                                               .n_paths = show->input.n_paths,
                                               .fail_on_error = true,
                                               .whole = true}));
    for (int64_t i = 0; show->limit == 0 || i < show->limit; i++) {
        TRY_TO(done, records_next(reader, &record, &found));
        if (!found) break;
        TRY_TO(done, show_record(show, &record, &tokens));
    }
done:
    records_close(reader);
    pair_tokens_free(&tokens);
    return rc;
}

static int show_jinja(const Show *show) {
    Text jinja = {0};
    int rc = chat_template_jinja(show->input.chat, &jinja);
    if (rc == OK) fwrite(jinja.bytes, 1, jinja.length, stdout);
    text_free(&jinja);
    return rc;
}

int data_show_command(int argc, char **argv) {
    Show show = {.limit = 3};
    Flag flags[CHAT_INPUT_FLAGS + 6] = {
        {"records", 'n', FLAG_INT, &show.limit, "N", ">= 0", "how many are shown; 0: all (default 3)"},
        {"tokens", 0, FLAG_SWITCH, &show.list, "", "", "a line for every token: place, id, weight, text"},
        {"prompt", 0, FLAG_SWITCH, &show.prompt, "", "", "what a model sees before it answers: no last answer"},
        {"mask-stop", 0, FLAG_SWITCH, &show.mask_stop, "", "",
         "of preferences the stop is not learned (preferences.mask_stop)"},
        {"jinja", 0, FLAG_SWITCH, &show.jinja, "", "", "the template itself, as other programs take it"},
        {"json", 0, FLAG_SWITCH, &show.json, "", "", "one JSON object a record: file, line, ids, weights (or answers)"},
    };
    chat_input_flags(&show.input, flags + 6);
    CliResult cli;
    TRY(cli_parse(&cli,
                  &(CliSpec){.usage = "TOKENIZER|MODEL FILE... [--template NAME] [flags]",
                             .about = "Shows records as a model sees them, and what of them is learned: green on a\n"
                                      "terminal, in « » elsewhere or with NO_COLOR set.",
                             .flags = flags,
                             .n_flags = sizeof flags / sizeof *flags,
                             .min_words = 1,
                             .max_words = 1 << 20},
                  argc, argv));
    if (cli.helped) return OK;
    if (cli.n_words < 2 && !show.jinja) FAIL(ERR_USAGE, "no file was named");
    const char *no_colour = getenv("NO_COLOR"), *terminal = getenv("TERM");
    show.colour = isatty(STDOUT_FILENO) && !(no_colour && *no_colour) && !(terminal && strcmp(terminal, "dumb") == 0);
    int rc = chat_input_open(&show.input, cli.words, cli.n_words);
    if (rc == OK) rc = show.jinja ? show_jinja(&show) : show_records(&show);
    chat_input_close(&show.input);
    return rc;
}
