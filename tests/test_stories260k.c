/* A real trained Llama: llama2.c's stories260K read from its own format, and its greedy text through the cache of keys
 * and values. The expected text is what llama2.c's run.c prints for 200 steps at temperature 0 (its test_all.py holds
 * the same string). */
#include <stdio.h>
#include <string.h>

#include "data/tokenizer/tokenizer.h"
#include "model/core/file.h"
#include "model/core/threads.h"
#include "model/formats/llama2c.h"
#include "model/llama.h"
#include "model/shape_hf.h"
#include "tests/check_main.h"

#define STORIES "../shared/data/stories260K/"
enum { STEPS = 200 };

static const char *const tables[] = {"reference", "openblas", "avx2", "avx512"};

static Llama *load(void) {
    HfConfig config;
    NamedFile *file = NULL;
    Llama *model = NULL;
    CHECK_OK(llama2c_open(&file, &config, STORIES "stories260K.bin"));
    LlamaShape shape = llama_shape_from_hf(&config);
    CHECK_OK(llama_shape_check(&shape));
    CHECK_OK(llama_new(&model, &shape, (LlamaOptions){0}));
    CHECK_OK(llama_load(model, file));
    named_close(file);
    return model;
}

/* The best id after each of `n` tokens, the first being `bos`, one cached step at a time. */
static void greedy(Llama *model, int32_t bos, int32_t *ids, int n) {
    KvCache *cache = NULL;
    CHECK_OK(kv_cache_new(&cache, &model->shape, (KvCacheOptions){.n_slots = 1, .max_sequence = n}));
    CHECK_OK(kv_cache_extend(cache, 0, 0, n));
    Tape *tape = tape_new(&(TapeOptions){.capacity = 1});
    HeadOutputs head = llama_record(tape, model, (LlamaRecord){.cache = cache}, (HeadOptions){.top1 = true});
    tape_keep(head.top1);
    CHECK_OK(tape_plan(tape));
    const int32_t start[2] = {0, 1}, slot = 0, target = 0;
    for (int32_t position = 0, token = bos; position < n; position++) {
        TapeBatch batch = {.n_tokens = 1,
                           .n_segments = 1,
                           .tokens = &token,
                           .positions = &position,
                           .segment_start = start,
                           .targets = &target,
                           .slots = &slot};
        CHECK_OK(tape_bind(tape, 0, &batch));
        CHECK_OK(tape_forward(tape, 0));
        token = ids[position] = *(const int32_t *)tape_value(tape, 0, head.top1);
    }
    tape_free(tape);
    kv_cache_free(cache);
}

START_TEST(greedy_text_is_that_of_llama2c_byte_for_byte) {
    if (!file_exists(STORIES "stories260K.bin")) {
        printf("skipped: %s is absent\n", STORIES "stories260K.bin");
        return;
    }
    char *expected = NULL;
    size_t n_expected;
    Tokenizer *tokenizer = NULL;
    CHECK_OK(file_read(&expected, &n_expected, STORIES "expected_greedy.txt", 0));
    CHECK_OK(tokenizer_load(&tokenizer, STORIES "tok512.bin"));
    for (size_t k = 0; k < sizeof tables / sizeof *tables; k++) {
        threads_init(1);
        int rc = kernels_select(tables[k]);
        if (rc == ERR_REFUSED) {
            printf("without the %s kernels: %s\n", tables[k], error_text());
            continue;
        }
        ck_assert_int_eq(rc, OK);
        Llama *model = load();
        int32_t ids[STEPS];
        char *text = NULL;
        size_t size;
        greedy(model, tokenizer_bos(tokenizer), ids, STEPS);
        CHECK_OK(tokenizer_decode(tokenizer, ids, STEPS, false, &text, &size));
        ck_assert_msg(size == n_expected && memcmp(text, expected, size) == 0, "%s: %s", tables[k], text);
        free(text);
        llama_free(model);
    }
    tokenizer_free(tokenizer);
    free(expected);
}
END_TEST

CHECK_MAIN("stories260k", greedy_text_is_that_of_llama2c_byte_for_byte)
