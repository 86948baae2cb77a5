/* See eval_pairs.h. Records are gathered into a flat run of tokens as long as they fit, and scored together. */
#include "train/answers/eval_pairs.h"

#include <stdlib.h>
#include <string.h>

#include "data/source.h"
#include "model/core/error.h"
#include "train/objectives/answer_logps.h"

enum { LEAST_CAPACITY = 4096, MOST_SEGMENTS = 1024 };

/* A record of the run: its answers are segments first … first + n - 1, the best first. */
typedef struct {
    int first, n;
    bool differs[PREFERENCE_ANSWERS][PREFERENCE_ANSWERS];
    uint8_t strength; /* of the last two */
} Scored;

typedef struct {
    const EvalPairsOptions *options;
    PairEvaluation *result;
    Tape *tape, *reference_tape;
    AnswerLogps recorded, reference_recorded;
    int capacity;
    MicroBatch micro;
    MicroBuffers buffers;
    Scored records[MOST_SEGMENTS];
    int n_records;
    float *reference_logps; /* [MOST_SEGMENTS] */
} Evaluation;

/* ---- set-up -------------------------------------------------------------------------------------------------------
 */

static int make_tape(Tape **tape, AnswerLogps *recorded, Llama *model, int capacity) {
    *tape = tape_new(
        &(TapeOptions){.capacity = capacity, .segments = MOST_SEGMENTS, .dtype = llama_inference_dtype(model)});
    if (!*tape) FAIL(ERR_FAILED, "out of memory");
    *recorded = answer_logps_record(*tape, model, (LlamaRecord){0}, false);
    return tape_plan(*tape);
}

static int start(Evaluation *e, const EvalPairsOptions *options, PairEvaluation *result) {
    size_t most = PREFERENCE_ANSWERS * options->context, n = most > LEAST_CAPACITY ? most : LEAST_CAPACITY;
    *e = (Evaluation){.options = options, .result = result, .capacity = (int)n};
    MicroBatch *m = &e->micro;
    m->tokens = calloc(n, sizeof *m->tokens);
    m->targets = calloc(n, sizeof *m->targets);
    m->positions = calloc(n, sizeof *m->positions);
    m->weights = calloc(n, sizeof *m->weights);
    m->segment_start = calloc(MOST_SEGMENTS + 1, sizeof *m->segment_start);
    m->segment = calloc(MOST_SEGMENTS, sizeof *m->segment);
    e->reference_logps = calloc(MOST_SEGMENTS, sizeof *e->reference_logps);
    if (!m->tokens || !m->targets || !m->positions || !m->weights || !m->segment_start || !m->segment ||
        !e->reference_logps)
        FAIL(ERR_FAILED, "out of memory");
    TRY(micro_buffers_new(&e->buffers, e->capacity, false));
    TRY(make_tape(&e->tape, &e->recorded, options->model, e->capacity));
    if (!options->reference) return OK;
    return make_tape(&e->reference_tape, &e->reference_recorded, options->reference, e->capacity);
}

static void stop(Evaluation *e) {
    MicroBatch *m = &e->micro;
    tape_free(e->tape);
    tape_free(e->reference_tape);
    free(m->tokens);
    free(m->targets);
    free(m->positions);
    free(m->weights);
    free(m->segment_start);
    free(m->segment);
    free(e->reference_logps);
    micro_buffers_free(&e->buffers);
}

/* ---- scoring ------------------------------------------------------------------------------------------------------
 */

static double length_of(const MicroBatch *micro, int segment) {
    double length = 0;
    for (int t = micro->segment_start[segment]; t < micro->segment_start[segment + 1]; t++)
        length += (double)micro->weights[t];
    return length;
}

static void count_pair(Evaluation *e, const float *logps, int better, int worse, uint8_t strength) {
    PairEvaluation *result = e->result;
    double a = (double)logps[better] - (double)e->reference_logps[better];
    double b = (double)logps[worse] - (double)e->reference_logps[worse];
    result->pairs++;
    result->margin += a - b;
    result->right += a > b;
    result->right_by_token += a / length_of(&e->micro, better) > b / length_of(&e->micro, worse);
    result->strength_pairs[strength]++;
    result->strength_right[strength] += a > b;
}

/* Scores what was gathered, and begins anew. */
static int flush(Evaluation *e) {
    MicroBatch *m = &e->micro;
    if (e->n_records == 0) return OK;
    m->n_samples = m->n_segments;
    if (e->reference_tape) {
        TRY(answer_logps_bind(&e->reference_recorded, e->reference_tape, 0, m, &e->buffers));
        TRY(tape_forward(e->reference_tape, 0));
        memcpy(e->reference_logps, tape_value(e->reference_tape, 0, e->reference_recorded.logps),
               (size_t)m->n_segments * sizeof *e->reference_logps);
    }
    TRY(answer_logps_bind(&e->recorded, e->tape, 0, m, &e->buffers));
    TRY(tape_forward(e->tape, 0));
    const float *logps = tape_value(e->tape, 0, e->recorded.logps);
    for (int r = 0; r < e->n_records; r++) {
        const Scored *record = &e->records[r];
        for (int a = 0; a < record->n; a++)
            for (int b = a + 1; b < record->n; b++)
                if (record->differs[a][b])
                    count_pair(e, logps, record->first + a, record->first + b,
                               a + 2 == record->n && b + 1 == record->n ? record->strength : STRENGTH_UNKNOWN);
    }
    e->n_records = m->n_segments = m->n_tokens = 0;
    return OK;
}

static void add_answer(MicroBatch *m, const ChatTokens *tokens) {
    int n = (int)tokens->n, first = m->n_tokens;
    for (int t = 0; t < n; t++) {
        m->tokens[first + t] = tokens->ids[t];
        m->positions[first + t] = t;
        m->targets[first + t] = t + 1 < n ? tokens->ids[t + 1] : 0;
        m->weights[first + t] = t + 1 < n ? tokens->weights[t + 1] : 0;
    }
    m->segment_start[m->n_segments++] = first;
    m->n_tokens += n;
    m->segment_start[m->n_segments] = m->n_tokens;
}

/* Adds a record that fits; one whose answers are all alike is left out. */
static int add_record(Evaluation *e, const PairTokens *pair) {
    const Preference *p = &pair->preference;
    Scored record = {.n = (int)p->n_answers, .strength = p->mark.strength};
    size_t tokens = 0;
    bool any = false;
    for (size_t a = 0; a < p->n_answers; a++) {
        tokens += pair->tokens[a].n;
        for (size_t b = a + 1; b < p->n_answers; b++) {
            record.differs[a][b] = pair->tokens[a].n_live > 0 && pair->tokens[b].n_live > 0 &&
                                   !chat_tokens_equal(&pair->tokens[a], &pair->tokens[b]);
            any = any || record.differs[a][b];
            e->result->equal += !record.differs[a][b];
        }
    }
    if (!any) return OK;
    if (e->micro.n_tokens + (int)tokens > e->capacity || e->micro.n_segments + record.n > MOST_SEGMENTS) TRY(flush(e));
    record.first = e->micro.n_segments;
    for (size_t a = 0; a < p->n_answers; a++) add_answer(&e->micro, &pair->tokens[a]);
    e->records[e->n_records++] = record;
    return OK;
}

/* ---- records ------------------------------------------------------------------------------------------------------
 */

static int read_pair(const EvalPairsOptions *options, const Record *record, PairTokens *pair, bool *fits) {
    TRY(preference_parse(&pair->preference, record->text, record->size, options->columns));
    if (pair->preference.kind != PREFERENCE_PAIR) FAIL(ERR_REFUSED, "it has no chosen and rejected");
    TRY(pair_render(pair, options->chat, false));
    size_t longest = pair_longest(pair);
    *fits = pair_fit(pair, options->context, options->overlong);
    if (!*fits && options->overlong == OVERLONG_FAIL)
        FAIL(ERR_REFUSED, "%zu tokens, and the context is %zu", longest, options->context);
    return OK;
}

static int run(Evaluation *e, RecordReader *reader, PairTokens *pair) {
    const EvalPairsOptions *options = e->options;
    for (uint64_t n = 0;; n++) {
        Record record;
        bool found, fits;
        TRY(records_next(reader, &record, &found));
        if (!found) break;
        int rc = read_pair(options, &record, pair, &fits);
        if (rc != OK) return error_context(rc, "%s:%lld", record.path, (long long)record.line);
        if (fits) TRY(add_record(e, pair));
        e->result->overlong += !fits;
        if (options->progress) options->progress(options->progress_context, n + 1);
    }
    TRY(flush(e));
    if (e->result->pairs == 0) FAIL(ERR_REFUSED, "there is no pair of different answers in the data");
    e->result->margin /= (double)e->result->pairs;
    return OK;
}

int eval_pairs(const EvalPairsOptions *options, PairEvaluation *result) {
    int rc = OK;
    RecordReader *reader = NULL;
    PairTokens pair = {0};
    Evaluation *e = calloc(1, sizeof *e);
    if (!e) FAIL(ERR_FAILED, "out of memory");
    *result = (PairEvaluation){0};
    TRY_TO(done, start(e, options, result));
    TRY_TO(done, records_open(&reader, &(RecordOptions){.paths = options->paths,
                                                        .n_paths = options->n_paths,
                                                        .fail_on_error = true,
                                                        .whole = true}));
    rc = run(e, reader, &pair);
done:
    records_close(reader);
    pair_tokens_free(&pair);
    stop(e);
    free(e);
    return rc;
}
