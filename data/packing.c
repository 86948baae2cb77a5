/* Both packings answer "which runs of tokens are sequence i" from a plan of the epoch; neither touches a token. */
#include "data/packing.h"
#include "data/order.h"
#include "model/core/error.h"

#include <stdlib.h>
#include <string.h>

/* Makes *array (a pointer of any type, hence memcpy) one of n elements. */
static int grow(void *array, size_t n, size_t element) {
    void *memory;
    memcpy(&memory, array, sizeof memory);
    memory = n < SIZE_MAX / element ? realloc(memory, n * element) : NULL;
    if (!memory) FAIL(ERR_FAILED, "out of memory: a packing plan of %zu elements", n);
    memcpy(array, &memory, sizeof memory);
    return OK;
}

static int append_run(RunList *runs, Run run) {
    if (runs->n == runs->capacity) {
        runs->capacity = 2 * runs->n + 64;
        TRY(grow(&runs->runs, runs->capacity, sizeof *runs->runs));
    }
    runs->runs[runs->n++] = run;
    return OK;
}

/* ---- best fit --------------------------------------------------------------------------------------------------- */

/* The window being packed. Open sequences are kept in a stack per room left: the best fit for a piece is the first
 * non-empty stack at or above its length, found through a bitmap. */
typedef struct {
    Piece *pieces; /* of the window, in the order of the documents */
    uint32_t *lengths, *by_length, *sequence_of;
    size_t n, capacity;
    int32_t *top_of_room; /* [context + 1] newest sequence with this room, -1 none */
    int32_t *below;       /* [capacity] the next one in its stack */
    uint64_t *has_room;   /* bitmap over 0..context */
    uint64_t *n_in;       /* [capacity + 1] pieces of each sequence, then where it begins */
    int context;
} Window;

static int window_init(Window *window, int context) {
    window->context = context;
    TRY(grow(&window->top_of_room, (size_t)context + 1, sizeof *window->top_of_room));
    return grow(&window->has_room, (size_t)context / 64 + 1, sizeof *window->has_room);
}

static void window_free(Window *window) {
    free(window->pieces);
    free(window->lengths);
    free(window->by_length);
    free(window->sequence_of);
    free(window->top_of_room);
    free(window->below);
    free(window->has_room);
    free(window->n_in);
}

static int window_add(Window *window, uint32_t document, uint64_t length) {
    size_t n_pieces = (size_t)((length + (uint64_t)window->context - 1) / (uint64_t)window->context);
    if (n_pieces > INT32_MAX - window->n) FAIL(ERR_REFUSED, "documents of too many tokens for best-fit packing");
    if (window->n + n_pieces > window->capacity) {
        size_t wanted = 2 * (window->n + n_pieces);
        TRY(grow(&window->pieces, wanted, sizeof *window->pieces));
        TRY(grow(&window->lengths, wanted, sizeof *window->lengths));
        TRY(grow(&window->by_length, wanted, sizeof *window->by_length));
        TRY(grow(&window->sequence_of, wanted, sizeof *window->sequence_of));
        TRY(grow(&window->below, wanted, sizeof *window->below));
        TRY(grow(&window->n_in, wanted + 1, sizeof *window->n_in));
        window->capacity = wanted;
    }
    for (size_t piece = 0; piece < n_pieces; piece++) {
        uint64_t left = length - piece * (uint64_t)window->context;
        window->pieces[window->n] = (Piece){document, (uint32_t)piece};
        window->lengths[window->n++] = left < (uint64_t)window->context ? (uint32_t)left : (uint32_t)window->context;
    }
    return OK;
}

/* by_length: the pieces, longest first, equal ones in their order (a counting sort; top_of_room serves as the table).
 */
static void sort_by_length(Window *window) {
    int32_t *count = window->top_of_room;
    memset(count, 0, ((size_t)window->context + 1) * sizeof *count);
    for (size_t i = 0; i < window->n; i++) count[window->lengths[i]]++;
    int32_t before = 0;
    for (int length = window->context; length >= 0; length--) {
        int32_t n = count[length];
        count[length] = before;
        before += n;
    }
    for (size_t i = 0; i < window->n; i++) window->by_length[count[window->lengths[i]]++] = (uint32_t)i;
}

static int least_room(const Window *window, uint32_t wanted) {
    size_t word = wanted / 64, n_words = (size_t)window->context / 64 + 1;
    uint64_t bits = window->has_room[word] & (UINT64_MAX << wanted % 64);
    while (!bits && ++word < n_words) bits = window->has_room[word];
    return bits ? (int)(word * 64) + __builtin_ctzll(bits) : -1;
}

static void push_room(Window *window, int room, int32_t sequence) {
    window->below[sequence] = window->top_of_room[room];
    window->top_of_room[room] = sequence;
    window->has_room[room / 64] |= (uint64_t)1 << room % 64;
}

static int32_t pop_room(Window *window, int room) {
    int32_t sequence = window->top_of_room[room];
    window->top_of_room[room] = window->below[sequence];
    if (window->top_of_room[room] < 0) window->has_room[room / 64] &= ~((uint64_t)1 << room % 64);
    return sequence;
}

/* Fills sequence_of and n_in; returns the number of sequences. */
static size_t best_fit(Window *window) {
    size_t n_sequences = 0;
    sort_by_length(window);
    for (int room = 0; room <= window->context; room++) window->top_of_room[room] = -1;
    memset(window->has_room, 0, ((size_t)window->context / 64 + 1) * sizeof *window->has_room);
    for (size_t i = 0; i < window->n; i++) {
        uint32_t piece = window->by_length[i], length = window->lengths[piece];
        int room = least_room(window, length);
        int32_t sequence = room < 0 ? (int32_t)n_sequences++ : pop_room(window, room);
        if (room < 0) {
            room = window->context;
            window->n_in[sequence] = 0;
        }
        window->sequence_of[piece] = (uint32_t)sequence;
        window->n_in[sequence]++;
        if (room > (int)length) push_room(window, room - (int)length, sequence);
    }
    return n_sequences;
}

/* The same, each piece a sequence. */
static size_t each_alone(Window *window) {
    for (size_t i = 0; i < window->n; i++) {
        window->sequence_of[i] = (uint32_t)i;
        window->n_in[i] = 1;
    }
    return window->n;
}

/* Packs the window's pieces and appends its sequences to the plan. */
static int window_pack(Window *window, EpochPlan *plan) {
    size_t n_sequences = plan->options.packing == PACKING_ALONE ? each_alone(window) : best_fit(window),
           had = (size_t)plan->n_sequences;
    uint64_t first = had ? plan->first_piece[had] : 0;
    if (first + window->n > plan->pieces_capacity) {
        plan->pieces_capacity = 2 * ((size_t)first + window->n);
        TRY(grow(&plan->pieces, plan->pieces_capacity, sizeof *plan->pieces));
    }
    if (had + n_sequences + 1 > plan->sequences_capacity) {
        plan->sequences_capacity = 2 * (had + n_sequences + 1);
        TRY(grow(&plan->first_piece, plan->sequences_capacity, sizeof *plan->first_piece));
    }
    plan->first_piece[had] = first;
    for (size_t i = 0; i < n_sequences; i++) {
        plan->first_piece[had + i + 1] = plan->first_piece[had + i] + window->n_in[i];
        window->n_in[i] = plan->first_piece[had + i]; /* from a count to the place of its next piece */
    }
    for (size_t i = 0; i < window->n; i++) plan->pieces[window->n_in[window->sequence_of[i]]++] = window->pieces[i];
    plan->n_sequences += (int64_t)n_sequences;
    window->n = 0;
    return OK;
}

static int make_best_fit(EpochPlan *plan) {
    int rc = OK;
    Window window = {0};
    TRY_TO(done, window_init(&window, plan->options.context));
    for (uint32_t i = 0; i < plan->n_documents; i++) {
        uint32_t document = plan->order[i];
        TRY_TO(done, window_add(&window, document, plan->start[document + 1] - plan->start[document]));
        if ((i + 1) % PACKING_WINDOW == 0 || i + 1 == plan->n_documents) TRY_TO(done, window_pack(&window, plan));
    }
    free(plan->order); /* the pieces name their documents */
    plan->order = NULL;
done:
    window_free(&window);
    return rc;
}

int runs_add_document(RunList *runs, const uint64_t *start, const uint64_t *second, uint32_t document) {
    int64_t first = (int64_t)start[document], end = (int64_t)start[document + 1];
    int64_t bound[] = {first, second ? (int64_t)second[document] : end, end};
    for (int i = 0; i < (second ? 2 : 1); i++)
        TRY(append_run(
            runs,
            (Run){.first = bound[i], .n = (int32_t)(bound[i + 1] - bound[i]), .next = -1, .begins_segment = true}));
    return OK;
}

int runs_add_mismatched(RunList *runs, const uint64_t *start, const uint64_t *second, uint32_t document, uint32_t other,
                        int64_t longest) {
    int64_t first = (int64_t)start[document], n = (int64_t)second[document] - first;
    int64_t answer = (int64_t)second[other], left = (int64_t)start[other + 1] - answer;
    if (left > longest - n) left = longest - n;
    TRY(append_run(runs, (Run){.first = first, .n = (int32_t)n, .next = answer, .begins_segment = true}));
    return append_run(runs, (Run){.first = answer, .n = (int32_t)left, .next = -1});
}

static int best_fit_sequence(const EpochPlan *plan, int64_t index, RunList *runs) {
    for (uint64_t i = plan->first_piece[index]; i < plan->first_piece[index + 1]; i++) {
        Piece piece = plan->pieces[i];
        if (plan->second) {
            TRY(runs_add_document(runs, plan->start, plan->second, piece.document));
            continue;
        }
        int64_t context = plan->options.context, end = (int64_t)plan->start[piece.document + 1];
        int64_t first = (int64_t)plan->start[piece.document] + piece.piece * context;
        int64_t n = end - first < context ? end - first : context;
        TRY(append_run(
            runs,
            (Run){.first = first, .n = (int32_t)n, .next = first + n < end ? first + n : -1, .begins_segment = true}));
    }
    return OK;
}

/* ---- stream ----------------------------------------------------------------------------------------------------- */

static int make_stream(EpochPlan *plan) {
    TRY(grow(&plan->stream_start, (size_t)plan->n_documents + 1, sizeof *plan->stream_start));
    plan->stream_start[0] = 0;
    for (uint32_t i = 0; i < plan->n_documents; i++) {
        uint32_t document = plan->order[i];
        plan->stream_start[i + 1] = plan->stream_start[i] + plan->start[document + 1] - plan->start[document];
    }
    int64_t context = plan->options.context, bound = plan->n_tokens < context ? plan->n_tokens : context;
    plan->n_sequences = (plan->n_tokens + context - 1) / context;
    plan->options.phase = plan->options.shuffle && bound ? plan->options.phase % (uint64_t)bound : 0;
    return OK;
}

/* The place in the order of the document that holds token `position` of the stream. */
static uint32_t find_document(const EpochPlan *plan, uint64_t position) {
    uint32_t low = 0, high = plan->n_documents; /* stream_start[low] <= position < stream_start[high] */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (plan->stream_start[middle] <= position)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Where the token after the last one of the document at place i lies; -1 where the stream ends or may not be crossed.
 */
static int64_t after_document(const EpochPlan *plan, uint32_t i) {
    bool is_last = i + 1 == plan->n_documents;
    if (plan->options.document_mask || (is_last && !plan->options.shuffle)) return -1;
    return (int64_t)plan->start[plan->order[is_last ? 0 : i + 1]];
}

static int stream_sequence(const EpochPlan *plan, int64_t index, RunList *runs) {
    int64_t context = plan->options.context, offset = index * context;
    int64_t left = plan->n_tokens - offset < context ? plan->n_tokens - offset : context;
    uint64_t position = (plan->options.phase + (uint64_t)offset) % (uint64_t)plan->n_tokens;
    uint32_t i = find_document(plan, position);
    bool begins = true;
    while (left > 0) {
        uint32_t document = plan->order[i];
        int64_t here = (int64_t)(plan->stream_start[i + 1] - position), n = here < left ? here : left;
        int64_t first = (int64_t)(plan->start[document] + (position - plan->stream_start[i]));
        TRY(append_run(runs, (Run){.first = first,
                                   .n = (int32_t)n,
                                   .next = n < here ? first + n : after_document(plan, i),
                                   .begins_segment = begins || plan->options.document_mask}));
        left -= n;
        begins = false;
        i = i + 1 == plan->n_documents ? 0 : i + 1;
        position = plan->stream_start[i];
    }
    return OK;
}

/* ---- both ------------------------------------------------------------------------------------------------------- */

int plan_make(EpochPlan *plan, const DocumentSet *set, const PlanOptions *options) {
    int rc = OK;
    *plan =
        (EpochPlan){.options = *options, .start = set->start, .second = set->second, .n_documents = set->n_documents};
    TRY_TO(done, grow(&plan->order, (size_t)set->n_documents + 1, sizeof *plan->order));
    for (uint32_t i = 0; i < set->n_documents; i++)
        plan->n_tokens += (int64_t)(set->start[set->documents[i] + 1] - set->start[set->documents[i]]);
    if (options->shuffle) {
        philox_permutation(plan->order, set->n_documents, options->documents);
        for (uint32_t i = 0; i < set->n_documents; i++) plan->order[i] = set->documents[plan->order[i]];
    } else if (set->n_documents) {
        memcpy(plan->order, set->documents, (size_t)set->n_documents * sizeof *plan->order);
    }
    TRY_TO(done, options->packing == PACKING_STREAM ? make_stream(plan) : make_best_fit(plan));
done:
    if (rc != OK) plan_free(plan);
    return rc;
}

void plan_free(EpochPlan *plan) {
    free(plan->order);
    free(plan->stream_start);
    free(plan->pieces);
    free(plan->first_piece);
    *plan = (EpochPlan){0};
}

int plan_sequence(const EpochPlan *plan, int64_t index, RunList *runs, int *n_tokens, int *n_targets) {
    const PlanOptions *options = &plan->options;
    size_t had = runs->n;
    if (options->shuffle)
        index = (int64_t)order_permute(options->sequences, (uint64_t)plan->n_sequences, (uint64_t)index);
    TRY(options->packing == PACKING_STREAM ? stream_sequence(plan, index, runs) : best_fit_sequence(plan, index, runs));
    *n_tokens = *n_targets = 0;
    for (size_t i = had; i < runs->n; i++) {
        *n_tokens += runs->runs[i].n;
        *n_targets += runs->runs[i].n - (runs->runs[i].next < 0);
    }
    return OK;
}
