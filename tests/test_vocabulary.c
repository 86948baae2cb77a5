/* Adapters with a vocabulary of their own (PEFT's modules_to_save), or of the vocabulary: opened they compute what PEFT
 * computes, in every form they can be brought into; what does not fit the base is refused by its array. */
#include "model/formats/safetensors.h"
#include "tests/golden_llama.h"
#include "tests/model_directories.h"

static const double logit_bound = 1e-5;

/* Where embedding and head are one matrix: in the base; opened with the adapter beside it; merged. */
static const struct {
    const char *name, *base;
    bool tied_base, tied, tied_merged;
} adapters[] = {{"vocabulary", "gqa", false, false, false},        {"vocabulary_tied", "tied", true, true, true},
                {"vocabulary_untied", "tied", true, false, false}, {"nine", "gqa", false, false, false},
                {"nine_tied", "tied", true, true, false},          {"nine_dora", "odd_heads", false, false, false},
                {"nine_fresh", "tied", true, true, false}};
enum { N_ADAPTERS = sizeof adapters / sizeof *adapters };

/* The largest difference of the model's logits from those that PEFT gave the first tokens of the base's first batch. */
static double apart_from_peft(const char *path, int c, bool tied, bool training) {
    Golden golden;
    ModelFile file;
    char expected_path[128];
    size_t n;
    golden_open(&golden, adapters[c].base);
    named_close(golden.expected);
    snprintf(expected_path, sizeof expected_path, "tests/golden/lora_%s/expected.safetensors", adapters[c].name);
    CHECK_OK(named_open(&golden.expected, expected_path));
    const float *expected = golden_array(&golden, "logits", DTYPE_F32, &n);
    CHECK_OK(model_file_open(&file, path, (ModelFileOptions){.training = training}));
    ck_assert_int_eq(file.model->head.tied != NULL, tied);
    ck_assert_int_eq(file.config.tie_word_embeddings, tied);
    const Run *run = &golden.batches[0];
    TapeBatch batch = {.n_tokens = run->n_tokens,
                       .n_segments = run->n_segments,
                       .tokens = run->tokens,
                       .positions = run->positions,
                       .segment_start = run->segment_start};
    Tape *tape = tape_new(&(TapeOptions){.capacity = run->n_tokens, .segments = run->n_segments, .dtype = DTYPE_F32});
    Tensor *logits = op_logits(tape, llama_hidden(tape, file.model, (LlamaRecord){0}), &file.model->head);
    tape_keep(logits);
    CHECK_OK(tape_plan(tape));
    CHECK_OK(tape_bind(tape, 0, &batch));
    CHECK_OK(tape_forward(tape, 0));
    const float *found = tape_value(tape, 0, logits);
    double worst = 0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)found[i] - (double)expected[i]));
    ck_assert_uint_eq(n % (size_t)file.model->shape.vocab_size, 0);
    tape_free(tape);
    model_file_close(&file);
    golden_close(&golden);
    return worst;
}

static void check_forms(int c) {
    char root[SCRATCH_NAME], path[128];
    scratch(root);
    snprintf(path, sizeof path, "tests/golden/lora_%s", adapters[c].name);
    char *peft = in(root, "peft"), *checkpoint = in(root, "checkpoint"), *again = in(root, "again"),
         *merged = in(root, "merged");
    CHECK_OK(EXPORT("--format", "peft", path, peft));
    CHECK_OK(IMPORT(path, checkpoint, "-t", "bytes"));
    CHECK_OK(EXPORT("--format", "peft", checkpoint, again));
    CHECK_OK(EXPORT(checkpoint, merged));
    const char *forms[] = {path, peft, checkpoint, again, merged};
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++)
        for (int training = 0; training < 2; training++) { /* an adapter is merged into what is trained */
            bool tied = training || forms[f] == merged ? adapters[c].tied_merged : adapters[c].tied;
            double apart = apart_from_peft(forms[f], c, tied, training);
            ck_assert_msg(apart <= logit_bound, "%s, training %d: %g", forms[f], training, apart);
        }
    CHECK_OK(directory_remove(root));
    free(peft), free(checkpoint), free(again), free(merged);
}

START_TEST(they_give_the_logits_of_peft_in_every_form) {
    if (!golden_select("auto")) return;
    for (int c = 0; c < N_ADAPTERS; c++) check_forms(c);
}
END_TEST

/* A tied one is written twice, as PEFT has it: else PEFT does not open it. */
START_TEST(a_vocabulary_of_one_matrix_is_written_as_peft_writes_it) {
    char root[SCRATCH_NAME];
    NamedFile *file;
    const NamedArray *embedding, *head;
    scratch(root);
    char *checkpoint = in(root, "checkpoint"), *peft = in(root, "peft"), *arrays = in(root, "peft/" PEFT_ARRAYS);
    CHECK_OK(IMPORT("tests/golden/lora_vocabulary_tied", checkpoint, "-t", "bytes"));
    CHECK_OK(EXPORT("--format", "peft", checkpoint, peft));
    CHECK_OK(named_open(&file, arrays));
    CHECK_OK(named_get(&embedding, file, LORA_EMBEDDING));
    CHECK_OK(named_get(&head, file, LORA_HEAD));
    ck_assert(named_bytes(embedding) == named_bytes(head) &&
              memcmp(embedding->data, head->data, named_bytes(head)) == 0);
    named_close(file);
    CHECK_OK(directory_remove(root));
    free(checkpoint), free(peft), free(arrays);
}
END_TEST

/* ---- refusals ---- */

typedef struct {
    int rows, head_rows; /* 0: the array is not there */
    PeftSaved saved;
    const char *error;
} Damage;

/* The golden adapter "vocabulary" with other matrices in place of its own, opened on its base of 67 tokens. */
static int open_with(const char *directory, const Damage *damage, ModelFile *file) {
    PeftAdapter adapter;
    NamedSource sources[64];
    size_t n = 0;
    CHECK_OK(peft_open(&adapter, "tests/golden/lora_vocabulary"));
    adapter.config.saved = damage->saved;
    const char *targets[] = {"q_proj", "down_proj"};
    adapter.config.targets = targets;
    adapter.config.n_targets = 2;
    float *zeros = calloc((size_t)200 * 32, sizeof *zeros);
    for (size_t i = 0; i < named_count(adapter.arrays); i++) {
        const NamedArray *array = named_at(adapter.arrays, i);
        bool is_embedding = strcmp(array->name, LORA_EMBEDDING) == 0, is_head = strcmp(array->name, LORA_HEAD) == 0;
        int rows = is_embedding ? damage->rows : damage->head_rows;
        ck_assert(zeros && n < 64);
        sources[n] = (NamedSource){.array = *array};
        if (is_embedding || is_head) {
            sources[n].array.dims[0] = rows;
            sources[n].array.data = zeros;
        }
        n += rows > 0 || !(is_embedding || is_head);
    }
    CHECK_OK(peft_write(directory, &adapter.config, sources, n, NULL, 0));
    peft_close(&adapter);
    free(zeros);
    return model_file_open(file, directory, (ModelFileOptions){0});
}

START_TEST(what_does_not_fit_the_base_is_refused) {
    static const PeftSaved both = {.embedding = true, .head = true};
    static const Damage damages[] = {
        {67, 0, both, LORA_HEAD " is missing from the file, though 'modules_to_save' names it"},
        {0, 67, both, LORA_EMBEDDING " is missing"},
        {70, 71, both, "its embedding has 70 rows and its head 71"},
        {70, 0, {.embedding = true}, "70 tokens in place of the base's 67, and not in both"},
        {0, 60, {.head = true}, "60 tokens in place of the base's 67, and not in both"},
    };
    char root[SCRATCH_NAME];
    ModelFile file;
    if (!golden_select("auto")) return;
    scratch(root);
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++)
        CHECK_ERROR(open_with(root, &damages[i], &file), ERR_REFUSED, damages[i].error);
    CHECK_OK(directory_remove(root));
}
END_TEST

START_TEST(more_tokens_than_the_base_or_a_part_of_it_are_taken) {
    static const Damage taken[] = {
        {70, 70, {.embedding = true, .head = true}, ""},
        {67, 0, {.embedding = true}, ""},
        {0, 67, {.head = true}, ""},
        {67, 67, {0}, ""}, /* PEFT saves what was resized though nobody names it */
    };
    char root[SCRATCH_NAME];
    if (!golden_select("auto")) return;
    scratch(root);
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        Golden base;
        ModelFile file;
        size_t n = (size_t)67 * 32;
        golden_open(&base, "gqa");
        CHECK_OK(open_with(root, &taken[i], &file));
        const float *embedding = file.model->embedding.value, *head = file.model->head.value;
        ck_assert_int_eq(file.model->shape.vocab_size, taken[i].rows > 67 ? 70 : 67);
        ck_assert_int_eq(memcmp(embedding, base.model->embedding.value, n * sizeof(float)) == 0, taken[i].rows == 0);
        ck_assert_int_eq(memcmp(head, base.model->head.value, n * sizeof(float)) == 0, taken[i].head_rows == 0);
        model_file_close(&file);
        golden_close(&base);
    }
    CHECK_OK(directory_remove(root));
}
END_TEST

CHECK_MAIN("vocabulary", they_give_the_logits_of_peft_in_every_form,
           a_vocabulary_of_one_matrix_is_written_as_peft_writes_it, what_does_not_fit_the_base_is_refused,
           more_tokens_than_the_base_or_a_part_of_it_are_taken)
