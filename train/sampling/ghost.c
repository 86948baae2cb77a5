/* See ghost.h. A *job* is a conversation's questions and an instruction. Jobs are answered in chunks: the first
 * questions of all of a chunk in one go, then the second ones, … A chunk is what it is whatever was done before, so
 * that a run that goes on writes what an uninterrupted one does. */
#include "train/sampling/ghost.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/json_text.h"
#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/philox.h"
#include "train/sampling/ghost_file.h"
#include "train/console/interrupt.h"
#include "train/console/progress.h"

enum { CHUNK = 64 };

typedef struct {
    const Prompt *prompt;
    const char *instruction;
    uint64_t id;
    bool is_duplicate, is_done;
} Job;

/* A job in the making. */
typedef struct {
    Job *job;
    char **answers; /* [n] */
    size_t n;
    bool left_out;
} Talk;

typedef struct {
    const GhostOptions *options;
    const Tokenizer *tokenizer;
    const ChatTemplate *chat;
    Generator *generator;
    Job *jobs;
    size_t n;
    GhostFile file;
    GhostResult *result;
    Progress progress;
} Ghost;

/* ---- questions ----------------------------------------------------------------------------------------------------
 */

/* The role of message i, and its text; a prompt that is one text is a user's message. *text NULL: there is none. */
static ChatRole message_at(const Prompt *prompt, size_t i, const char **text) {
    if (!json_is_array(prompt->prompt)) {
        *text = i == 0 ? prompt->text : NULL;
        return CHAT_USER;
    }
    const json_t *message = json_array_get(prompt->prompt, i);
    const char *role = json_string_value(json_object_get(message, "role"));
    *text = json_string_value(json_object_get(message, "content"));
    for (ChatRole r = 0; role && r < N_CHAT_ROLES; r++)
        if (strcmp(role, chat_role_name(r)) == 0) return r;
    return CHAT_USER;
}

static const char *system_of(const Prompt *prompt) {
    const char *text;
    return message_at(prompt, 0, &text) == CHAT_SYSTEM ? text : NULL;
}

/* The user's k-th message; NULL: there are fewer. */
static const char *question_of(const Prompt *prompt, size_t k) {
    const char *text;
    for (size_t i = 0;; i++) {
        ChatRole role = message_at(prompt, i, &text);
        if (!text) return NULL;
        if (role == CHAT_USER && k-- == 0) return text;
    }
}

/* Texts are C strings here. */
static bool is_cut_by_nul(const Prompt *prompt, size_t i) {
    if (!json_is_array(prompt->prompt)) return strlen(prompt->text) < prompt->size;
    const json_t *content = json_object_get(json_array_get(prompt->prompt, i), "content");
    return strlen(json_string_value(content)) < json_string_length(content);
}

static int check_prompt(const Prompt *prompt, size_t number, const GhostOptions *options) {
    const char *text;
    for (size_t i = 0; message_at(prompt, i, &text), text; i++)
        if (is_cut_by_nul(prompt, i))
            FAIL(ERR_REFUSED, "conversation %zu (%s) has the character U+0000, which no question may have", number,
                 prompt_place(prompt));
    for (size_t i = 0; message_at(prompt, i, &text), text; i++)
        if (message_at(prompt, i, &text) == CHAT_TOOL)
            FAIL(ERR_REFUSED, "conversation %zu has a tool's message, and no model can be asked for the call before it",
                 number);
    if (options->as_system && system_of(prompt))
        FAIL(ERR_REFUSED,
             "conversation %zu has a system message of its own; without --system the instruction stands "
             "in the first question",
             number);
    return OK;
}

/* ---- jobs ---------------------------------------------------------------------------------------------------------
 */

/* What a record depends on, besides its own texts. */
static uint64_t hash_options(const GhostOptions *options, const ChatTemplate *chat) {
    const SamplerOptions *s = &options->generate.sampler;
    double reals[] = {s->temperature, s->top_p, s->min_p, s->repetition_penalty};
    uint64_t numbers[] = {options->model,     chat_template_hash(chat), s->seed,
                          (uint64_t)s->top_k, options->as_system,       (uint64_t)options->generate.max_new_tokens};
    uint64_t hash = hash_bytes(reals, sizeof reals, HASH_START);
    for (size_t i = 0; i < options->generate.n_stop; i++)
        hash = hash_bytes(options->generate.stop[i], strlen(options->generate.stop[i]) + 1, hash);
    return hash_bytes(numbers, sizeof numbers, hash);
}

static uint64_t hash_job(const Job *job, uint64_t hash) {
    const char *system = system_of(job->prompt), *question;
    hash = hash_bytes(job->instruction, strlen(job->instruction) + 1, hash);
    if (system) hash = hash_bytes(system, strlen(system) + 1, hash);
    for (size_t k = 0; (question = question_of(job->prompt, k)) != NULL; k++)
        hash = hash_bytes(question, strlen(question) + 1, hash);
    return hash;
}

static int by_id(const void *a, const void *b) {
    const Job *const *x = a, *const *y = b;
    if ((*x)->id != (*y)->id) return (*x)->id < (*y)->id ? -1 : 1;
    return *x < *y ? -1 : *x > *y; /* the first of equals is the one that stays */
}

static Job *find_job(Job *const *sorted, size_t n, uint64_t id) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (sorted[middle]->id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && sorted[low]->id == id ? sorted[low] : NULL;
}

/* Marks duplicates, and what the file has. */
static int mark(Ghost *ghost) {
    int rc = OK;
    Job **sorted = malloc(ghost->n * sizeof(Job *));
    if (!sorted) FAIL(ERR_FAILED, "out of memory");
    for (size_t i = 0; i < ghost->n; i++) sorted[i] = &ghost->jobs[i];
    qsort(sorted, ghost->n, sizeof *sorted, by_id);
    for (size_t i = 1; i < ghost->n; i++) {
        sorted[i]->is_duplicate = sorted[i]->id == sorted[i - 1]->id;
        ghost->result->duplicates += sorted[i]->is_duplicate;
    }
    for (size_t i = 0; i < ghost->file.n; i++) {
        Job *job = find_job(sorted, ghost->n, ghost->file.ids[i]);
        if (!job)
            FAIL_TO(done, ERR_REFUSED,
                    "%s:%zu: this record is of another run: other conversations, instructions, model or options; give "
                    "another file",
                    ghost->file.path, i + 1);
        job->is_done = true;
    }
    ghost->result->resumed = ghost->file.n;
    ghost->result->records = ghost->n - ghost->result->duplicates;
done:
    free(sorted);
    return rc;
}

static int make_jobs(Ghost *ghost, const Prompts *prompts) {
    const GhostOptions *options = ghost->options;
    uint64_t hash = hash_options(options, ghost->chat);
    uint32_t *order = malloc(options->n_instructions * sizeof *order);
    ghost->jobs = calloc(prompts->n * options->per_conversation, sizeof *ghost->jobs);
    int rc = order && ghost->jobs ? OK : ERR_FAILED;
    if (rc != OK) error_set(rc, __FILE__, __LINE__, "out of memory");
    for (size_t i = 0; rc == OK && i < prompts->n; i++) {
        PhiloxKey key = philox_key(options->generate.sampler.seed, PHILOX_MIX, (uint32_t)i, 1);
        philox_permutation(order, (uint32_t)options->n_instructions, key);
        rc = check_prompt(&prompts->items[i], i + 1, options);
        for (size_t k = 0; rc == OK && k < options->per_conversation; k++) {
            Job *job = &ghost->jobs[ghost->n++];
            *job = (Job){.prompt = &prompts->items[i], .instruction = options->instructions[order[k]]};
            job->id = hash_job(job, hash);
        }
    }
    free(order);
    return rc;
}

/* ---- answers ------------------------------------------------------------------------------------------------------
 */

/* The conversation so far, with the instruction on every question, as the model is to see it. */
static int render_turn(const Ghost *ghost, const Talk *talk, TokenList *out) {
    int rc = OK;
    Conversation conversation = {.kind = RECORD_MESSAGES};
    ChatTokens tokens = {0};
    Text *texts = calloc(talk->n + 1, sizeof *texts);
    const char *system = system_of(talk->job->prompt);
    if (!texts) FAIL(ERR_FAILED, "out of memory");
    if (system) TRY_TO(done, conversation_add(&conversation, CHAT_SYSTEM, system));
    for (size_t k = 0; k <= talk->n; k++) {
        text_printf(&texts[k], "%s\n%s", talk->job->instruction, question_of(talk->job->prompt, k));
        TRY_TO(done, text_check(&texts[k]));
        TRY_TO(done, conversation_add(&conversation, CHAT_USER, texts[k].bytes));
        if (k < talk->n) TRY_TO(done, conversation_add(&conversation, CHAT_ASSISTANT, talk->answers[k]));
    }
    TRY_TO(done, chat_render_prompt(ghost->chat, &conversation, &tokens));
    TRY_TO(done, token_list_append(out, tokens.ids, tokens.n));
done:
    for (size_t k = 0; k <= talk->n; k++) text_free(&texts[k]);
    free(texts);
    chat_tokens_free(&tokens);
    conversation_free(&conversation);
    return rc;
}

static int interrupted(void *context, size_t sequence, const Generation *generation) {
    (void)context, (void)sequence, (void)generation;
    if (interrupt_requested()) FAIL(ERR_INTERRUPTED, "stopped by %s; the same command goes on", interrupt_name());
    return OK;
}

static bool is_blank(const char *text) {
    return text[strspn(text, " \t\r\n")] == '\0';
}

/* An answer without an end would teach a model not to stop. */
static int take_answer(Ghost *ghost, Talk *talk, const Generation *generation) {
    bool ended = generation->reason == FINISH_STOP_TOKEN || generation->reason == FINISH_STOP_TEXT;
    json_t *text = json_stringn(generation->text, generation->text_size);
    bool has_text = text && strlen(generation->text) == generation->text_size && !is_blank(generation->text);
    json_decref(text);
    ghost->result->unfinished += !ended;
    ghost->result->empty += ended && !has_text;
    talk->left_out = !ended || !has_text;
    if (talk->left_out) return OK;
    char **grown = realloc(talk->answers, (talk->n + 1) * sizeof *grown);
    if (!grown) FAIL(ERR_FAILED, "out of memory");
    talk->answers = grown;
    grown[talk->n] = strdup(generation->text);
    if (!grown[talk->n]) FAIL(ERR_FAILED, "out of memory");
    talk->n++;
    return OK;
}

/* Asks the turn-th question of those that have one; *asked: how many. */
static int answer_turn(Ghost *ghost, Talk *talks, size_t n, size_t turn, uint32_t first, size_t *asked) {
    int rc = OK;
    TokenList prompts[CHUNK] = {0};
    Generation generations[CHUNK] = {0};
    Talk *who[CHUNK];
    GenerateOptions options = ghost->options->generate;
    options.first_prompt = first;
    options.finished = interrupted;
    options.sampler.seed = philox_u64(philox_key(options.sampler.seed, PHILOX_SAMPLE, 0, 1), turn);
    *asked = 0;
    for (size_t i = 0; i < n; i++) {
        TokenList *prompt = &prompts[*asked];
        if (talks[i].left_out || !question_of(talks[i].job->prompt, turn)) continue;
        prompt->n = 0;
        TRY_TO(done, render_turn(ghost, &talks[i], prompt));
        talks[i].left_out = prompt->n >= (size_t)ghost->options->max_sequence;
        ghost->result->overlong += talks[i].left_out;
        if (!talks[i].left_out) who[(*asked)++] = &talks[i];
    }
    if (*asked > 0) TRY_TO(done, generator_run(ghost->generator, prompts, *asked, &options, generations));
    for (size_t k = 0; k < *asked; k++) TRY_TO(done, take_answer(ghost, who[k], &generations[k]));
done:
    for (size_t k = 0; k < CHUNK; k++) {
        token_list_free(&prompts[k]);
        generation_free(&generations[k]);
    }
    return rc;
}

/* ---- records ------------------------------------------------------------------------------------------------------
 */

static void put_message(Text *out, const char *role, const char *text, const char *more) {
    text_printf(out, "{\"role\": \"%s\", \"content\": ", role);
    json_text_string(out, text, strlen(text));
    text_printf(out, "%s}", more);
}

static void put_record(Text *out, const Talk *talk, bool as_system) {
    const Job *job = talk->job;
    const char *system = as_system ? job->instruction : system_of(job->prompt);
    text_printf(out, GHOST_LINE "%016" PRIx64 "\", \"messages\": [", job->id);
    if (system) put_message(out, "system", system, "");
    for (size_t k = 0; k < talk->n; k++) {
        Text first = {0};
        const char *question = question_of(job->prompt, k);
        if (k == 0 && !as_system) text_printf(&first, "%s\n%s", job->instruction, question);
        text_puts(out, k > 0 || system ? ", " : "");
        put_message(out, "user", first.bytes ? first.bytes : question, "");
        text_puts(out, ", ");
        put_message(out, "assistant", talk->answers[k], k + 1 < talk->n ? ", \"train\": false" : "");
        out->failed = out->failed || first.failed;
        text_free(&first);
    }
    text_puts(out, "]}\n");
}

static int write_chunk(Ghost *ghost, const Talk *talks, size_t n) {
    Text lines = {0};
    size_t written = 0;
    for (size_t i = 0; i < n; i++) {
        if (talks[i].left_out || talks[i].job->is_done) continue;
        put_record(&lines, &talks[i], ghost->options->as_system);
        written++;
    }
    int rc = text_check(&lines);
    if (rc == OK) rc = ghost_file_append(&ghost->file, &lines);
    if (rc == OK) ghost->result->written += written;
    text_free(&lines);
    return rc;
}

/* jobs[first … end) */
static int run_chunk(Ghost *ghost, size_t first, size_t end) {
    int rc = OK;
    Talk talks[CHUNK] = {0};
    size_t n = 0, asked = 1;
    for (size_t i = first; i < end; i++)
        if (!ghost->jobs[i].is_duplicate) talks[n++].job = &ghost->jobs[i];
    for (size_t turn = 0; rc == OK && asked > 0; turn++)
        rc = answer_turn(ghost, talks, n, turn, (uint32_t)first, &asked);
    if (rc == OK) rc = write_chunk(ghost, talks, n);
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < talks[i].n; k++) free(talks[i].answers[k]);
        free(talks[i].answers);
    }
    return rc;
}

/* Chunks before the one that the file's last record is of are through; so is that one, where it lacks nothing. */
static size_t first_chunk(const Ghost *ghost) {
    size_t last = 0;
    bool lacks = false;
    for (size_t i = 0; i < ghost->n; i++)
        if (ghost->jobs[i].is_done) last = i / CHUNK * CHUNK;
    for (size_t i = last; i < ghost->n && i < last + CHUNK; i++)
        lacks = lacks || (!ghost->jobs[i].is_done && !ghost->jobs[i].is_duplicate);
    return lacks ? last : last + CHUNK;
}

static int run_all(Ghost *ghost) {
    int rc = OK;
    size_t first = first_chunk(ghost);
    interrupt_install(NULL);
    progress_begin(&ghost->progress, "ghost", "conversations", (int64_t)first, (int64_t)ghost->n);
    for (size_t i = first; rc == OK && i < ghost->n; i += CHUNK) {
        progress_draw(&ghost->progress, (int64_t)i, "");
        rc = run_chunk(ghost, i, i + CHUNK < ghost->n ? i + CHUNK : ghost->n);
    }
    progress_end(&ghost->progress);
    interrupt_restore();
    return rc;
}

int ghost_run(Llama *model, const Tokenizer *tokenizer, const ChatTemplate *chat, const Prompts *prompts,
              const GhostOptions *options, const char *out, GhostResult *result) {
    int rc = OK;
    Ghost ghost = {.options = options, .tokenizer = tokenizer, .chat = chat, .result = result, .file.fd = -1};
    *result = (GhostResult){0};
    TRY_TO(done, make_jobs(&ghost, prompts));
    TRY_TO(done, ghost_file_open(&ghost.file, out));
    TRY_TO(done, mark(&ghost));
    TRY_TO(done, generator_new(&ghost.generator, model, tokenizer,
                               (GeneratorOptions){.max_batch = options->max_batch < CHUNK ? options->max_batch : CHUNK,
                                                  .max_sequence = options->max_sequence}));
    rc = run_all(&ghost);
done:
    generator_free(ghost.generator);
    ghost_file_close(&ghost.file);
    free(ghost.jobs);
    return rc;
}
