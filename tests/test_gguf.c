/* GGUF: the quantisers' bytes, a model there and back, rotary factors, tokenizers, and files that are damaged. */
#include <math.h>
#include <string.h>

#include "data/tokenizer/arrays.h"
#include "model/core/philox.h"
#include "model/formats/gguf.h"
#include "model/formats/gguf_names.h"
#include "tests/formats_scratch.h"
#include "tests/golden/gguf_blocks.h"
#include "tests/tokenizer_data.h"

#define VOCABULARY SHARED "tokenizers/vectors/ggml-vocab-llama-spm.gguf"

/* ---- element types ---- */

static void check_kind(GgmlType type, const unsigned char *golden, size_t row_bytes) {
    unsigned char bytes[32 * 4];
    float row[32];
    for (int r = 0; r < GOLDEN_ROWS; r++) {
        memcpy(row, golden_numbers[r], sizeof row);
        CHECK_OK(ggml_encode(type, row, 32, bytes));
        ck_assert_msg(memcmp(bytes, golden + (size_t)r * row_bytes, row_bytes) == 0, "type %d, row %d", (int)type, r);
    }
}

START_TEST(blocks_are_the_bytes_of_gguf_py) {
    check_kind(GGML_Q8_0, golden_q8_0[0], sizeof golden_q8_0[0]);
    check_kind(GGML_Q4_0, golden_q4_0[0], sizeof golden_q4_0[0]);
    check_kind(GGML_F16, golden_f16[0], sizeof golden_f16[0]);
    check_kind(GGML_BF16, golden_bf16[0], sizeof golden_bf16[0]);
}
END_TEST

START_TEST(blocks_decode_to_scale_times_level) {
    float out[32];
    for (int r = 0; r < GOLDEN_ROWS; r++) {
        const unsigned char *q8 = golden_q8_0[r], *q4 = golden_q4_0[r];
        float d8 = f16_to_f32((uint16_t)(q8[0] | q8[1] << 8)), d4 = f16_to_f32((uint16_t)(q4[0] | q4[1] << 8));
        ggml_decode(ggml_type_info(GGML_Q8_0), q8, 0, 32, out);
        for (int i = 0; i < 32; i++) ck_assert(out[i] == d8 * (float)(int8_t)q8[2 + i]);
        ggml_decode(ggml_type_info(GGML_Q4_0), q4, 3, 20, out); /* from the middle of the block */
        for (int i = 3; i < 23; i++)
            ck_assert(out[i - 3] == d4 * (float)((i < 16 ? q4[2 + i] & 15 : q4[2 + i - 16] >> 4) - 8));
    }
}
END_TEST

START_TEST(what_a_type_cannot_hold_is_refused) {
    unsigned char bytes[32 * 4];
    float row[32] = {0};
    row[5] = 70000;
    CHECK_ERROR(ggml_encode(GGML_F16, row, 32, bytes), ERR_REFUSED, "too large for F16");
    CHECK_OK(ggml_encode(GGML_Q8_0, row, 32, bytes));
    row[5] = 9e6f;
    CHECK_ERROR(ggml_encode(GGML_Q8_0, row, 32, bytes), ERR_REFUSED, "scale");
    CHECK_ERROR(ggml_encode(GGML_Q4_0, row, 32, bytes), ERR_REFUSED, "scale");
    row[5] = NAN;
    CHECK_ERROR(ggml_encode(GGML_Q8_0, row, 32, bytes), ERR_REFUSED, "nan");
    CHECK_OK(ggml_encode(GGML_BF16, row, 32, bytes));
}
END_TEST

/* ---- a model ---- */

/* One layer, dim 32 and 40: 2 heads of 8, 1 KV head, FFN 40: the rows of down_proj are no whole blocks. */
enum { DIM = 32, FFN = 40, HEADS = 2, KV = 1, HEAD = 8, N_ARRAYS = 12 };
typedef struct {
    NamedSource sources[N_ARRAYS];
    float *values[N_ARRAYS];
    HfConfig config;
    HfGeneration generation;
    Tokenizer *tokenizer;
    GgufModel model;
} Tiny;

static void tiny_free(Tiny *tiny) {
    for (int i = 0; i < N_ARRAYS; i++) free(tiny->values[i]);
    tokenizer_free(tiny->tokenizer);
}

static void tiny_new(Tiny *tiny, GgmlType type) {
#define LAYER "model.layers.0."
    static const NamedArray arrays[N_ARRAYS] = {
        {.name = "model.embed_tokens.weight", .n_dims = 2, .dims = {260, DIM}},
        {.name = LAYER "input_layernorm.weight", .n_dims = 1, .dims = {DIM}},
        {.name = LAYER "self_attn.q_proj.weight", .n_dims = 2, .dims = {HEADS * HEAD, DIM}},
        {.name = LAYER "self_attn.k_proj.weight", .n_dims = 2, .dims = {KV * HEAD, DIM}},
        {.name = LAYER "self_attn.v_proj.weight", .n_dims = 2, .dims = {KV * HEAD, DIM}},
        {.name = LAYER "self_attn.o_proj.weight", .n_dims = 2, .dims = {DIM, HEADS * HEAD}},
        {.name = LAYER "post_attention_layernorm.weight", .n_dims = 1, .dims = {DIM}},
        {.name = LAYER "mlp.gate_proj.weight", .n_dims = 2, .dims = {FFN, DIM}},
        {.name = LAYER "mlp.up_proj.weight", .n_dims = 2, .dims = {FFN, DIM}},
        {.name = LAYER "mlp.down_proj.weight", .n_dims = 2, .dims = {DIM, FFN}},
        {.name = "model.norm.weight", .n_dims = 1, .dims = {DIM}},
        {.name = "lm_head.weight", .n_dims = 2, .dims = {260, DIM}},
    };
    *tiny = (Tiny){.config = hf_config_default(), .generation = hf_generation_default()};
    for (int i = 0; i < N_ARRAYS; i++) {
        size_t n = named_elements(&arrays[i]);
        tiny->values[i] = malloc(n * sizeof(float));
        for (size_t e = 0; e < n; e++) tiny->values[i][e] = (float)((int)((e * 37 + (size_t)i * 11) % 255) - 127) / 128;
        tiny->sources[i] = (NamedSource){.array = arrays[i], .f32 = tiny->values[i]};
    }
    HfConfig *c = &tiny->config;
    c->dim = DIM, c->ffn_dim = FFN, c->n_layers = 1, c->n_heads = HEADS, c->n_kv_heads = KV, c->head_dim = HEAD;
    c->vocab_size = 260, c->rms_norm_eps = 1e-5, c->rope_theta = 500000, c->max_position_embeddings = 77;
    c->rope_scaling.llama3 = true, c->rope_scaling.factor = 8, c->rope_scaling.low_freq_factor = 1;
    c->rope_scaling.high_freq_factor = 4, c->rope_scaling.original_max_position_embeddings = 8192;
    tiny->generation.n_eos = 2;
    tiny->generation.eos_token_ids[0] = 7, tiny->generation.eos_token_ids[1] = 257;
    CHECK_OK(tokenizer_load(&tiny->tokenizer, "bytes"));
    tiny->model = (GgufModel){.name = "tiny",
                              .type = type,
                              .config = &tiny->config,
                              .generation = &tiny->generation,
                              .tokenizer = tiny->tokenizer,
                              .chat_template = "{{ messages }}"};
}

/* Each array comes back within the type's step, exactly for F32; norms always exactly. */
static void check_arrays(const Tiny *tiny, const NamedFile *file, double step) {
    ck_assert_uint_eq(named_count(file), N_ARRAYS);
    for (int i = 0; i < N_ARRAYS; i++) {
        const NamedArray *wanted = &tiny->sources[i].array, *found;
        CHECK_OK(named_get(&found, file, wanted->name));
        size_t n = named_elements(wanted);
        ck_assert_uint_eq(named_elements(found), n);
        float *out = malloc(n * sizeof *out);
        CHECK_OK(named_read_f32(file, found, 0, n, out));
        double bound = wanted->n_dims == 1 ? 0 : step;
        for (size_t e = 0; e < n; e++)
            ck_assert_msg(fabs((double)(out[e] - tiny->values[i][e])) <= bound, "%s[%zu]: %g, not %g", wanted->name, e,
                          (double)out[e], (double)tiny->values[i][e]);
        CHECK_OK(named_read_f32(file, found, 5, 20, out)); /* a piece from the middle of rows */
        for (size_t e = 0; e < 20; e++) ck_assert(fabs((double)(out[e] - tiny->values[i][5 + e])) <= bound);
        free(out);
    }
}

static void check_config(const HfConfig *a, const HfConfig *b) {
    ck_assert(a->dim == b->dim && a->ffn_dim == b->ffn_dim && a->n_layers == b->n_layers && a->n_heads == b->n_heads);
    ck_assert(a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim && a->vocab_size == b->vocab_size);
    ck_assert(a->rms_norm_eps == b->rms_norm_eps && a->rope_theta == b->rope_theta && !a->tie_word_embeddings);
    ck_assert(a->max_position_embeddings == b->max_position_embeddings && a->rope_scaling.llama3);
    ck_assert(a->rope_scaling.factor == 8 && a->rope_scaling.high_freq_factor == 4);
    ck_assert(a->rope_scaling.original_max_position_embeddings == 8192 && a->bos_token_id == 256);
    ck_assert(a->n_eos == 2 && a->eos_token_ids[0] == 257 && a->eos_token_ids[1] == 7); /* the tokenizer's own first */
}

START_TEST(every_kind_is_read_as_it_was_written) {
    static const struct {
        GgmlType type;
        double step; /* largest number 1: half a level of 127, of 8, of the mantissa; and the scale's own rounding */
    } kinds[] = {{GGML_F32, 0}, {GGML_F16, 0x1p-11}, {GGML_BF16, 0x1p-9}, {GGML_Q8_0, 0.0045}, {GGML_Q4_0, 0.126}};
    char directory[SCRATCH_NAME], *path = in(scratch(directory), "x.gguf");
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        Tiny tiny;
        NamedFile *file;
        Tokenizer *tokenizer;
        tiny_new(&tiny, kinds[k].type);
        CHECK_OK(gguf_write(path, tiny.sources, N_ARRAYS, &tiny.model));
        CHECK_OK(named_open(&file, path));
        CHECK_OK(gguf_check_readable(file));
        check_arrays(&tiny, file, kinds[k].step);
        check_config(gguf_config(file), &tiny.config);
        ck_assert_str_eq(named_text(file, GGUF_TEMPLATE), "{{ messages }}");
        CHECK_OK(gguf_tokenizer(&tokenizer, file));
        ck_assert_int_eq(tokenizer_vocab_size(tokenizer), 258); /* the two rows beyond are left out again */
        CHECK_IDS(tokenizer, "h\xc3\xb6!", TOKENIZE_BOS, 256, 'h', 0xc3, 0xb6, '!');
        tokenizer_free(tokenizer);
        named_close(file);
        tiny_free(&tiny);
    }
    free(path);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(rows_of_q_and_k_are_in_llama_cpps_order) {
    for (size_t row = 0; row < 3 * HEAD; row++) ck_assert_uint_eq(gguf_row_to_hf(gguf_row_of_hf(row, HEAD), HEAD), row);
    static const size_t of_second_head[HEAD] = {8, 10, 12, 14, 9, 11, 13, 15}; /* reshape(2, 4).swapaxes(0, 1) */
    for (size_t i = 0; i < HEAD; i++) ck_assert_uint_eq(gguf_row_of_hf(HEAD + i, HEAD), of_second_head[i]);
    ck_assert(gguf_is_rotary("model.layers.12.self_attn.k_proj.weight"));
    ck_assert(!gguf_is_rotary("model.layers.12.self_attn.v_proj.weight"));
}
END_TEST

/* ---- rotary factors ---- */

START_TEST(rotary_factors_give_their_scaling_back) {
    static const struct {
        int head_dim, context;
        double theta, factor, high;
    } cases[] = {
        {128, 8192, 500000, 8, 4}, {64, 8192, 500000, 32, 4}, {128, 4096, 10000, 4, 3}, {12, 64, 500000, 8, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float factors[64], again[64];
        HfConfig c = hf_config_default(), found;
        c.head_dim = cases[i].head_dim, c.rope_theta = cases[i].theta;
        found = c;
        c.rope_scaling.factor = cases[i].factor, c.rope_scaling.low_freq_factor = 1;
        c.rope_scaling.high_freq_factor = cases[i].high;
        c.rope_scaling.original_max_position_embeddings = cases[i].context;
        size_t n = (size_t)c.head_dim / 2;
        gguf_rope_factors(&c, factors);
        CHECK_OK(gguf_rope_recover(&found, factors, n));
        gguf_rope_factors(&found, again);
        ck_assert(found.rope_scaling.llama3 && found.rope_scaling.factor == cases[i].factor);
        for (size_t f = 0; f < n; f++) ck_assert(fabsf(again[f] / factors[f] - 1) < 1e-4f);
        if (n >= 32) ck_assert_int_eq(found.rope_scaling.original_max_position_embeddings, cases[i].context);
        if (n >= 32) ck_assert(found.rope_scaling.high_freq_factor == cases[i].high);
    }
}
END_TEST

START_TEST(rotary_factors_of_another_kind_are_refused) {
    float factors[64];
    HfConfig c = hf_config_default();
    for (int i = 0; i < 64; i++) factors[i] = 1;
    CHECK_OK(gguf_rope_recover(&c, factors, 64));
    ck_assert(!c.rope_scaling.llama3);
    for (int i = 0; i < 64; i++) factors[i] = 1 + (float)(i * i % 7);
    CHECK_ERROR(gguf_rope_recover(&c, factors, 64), ERR_REFUSED, "no scaling of Llama 3.1's kind");
    factors[3] = 0;
    CHECK_ERROR(gguf_rope_recover(&c, factors, 64), ERR_REFUSED, "divides frequency 3 by 0");
    CHECK_ERROR(gguf_rope_recover(&c, factors, 32), ERR_REFUSED, "has 32 factors; 64");
}
END_TEST

/* ---- tokenizers ---- */

static Tokenizer *tokenizer_in(const char *path) {
    NamedFile *file;
    Tokenizer *t;
    CHECK_OK(gguf_open(&file, path));
    CHECK_OK(gguf_tokenizer(&t, file));
    named_close(file);
    return t;
}

START_TEST(a_real_vocabulary_gives_the_published_ids) {
    SKIP_UNLESS(VOCABULARY);
    Tokenizer *t = tokenizer_in(VOCABULARY);
    int n, matching = matching_vectors(t, VOCABULARY ".inp", VOCABULARY ".out", &n);
    ck_assert_int_eq(n, 47);
    ck_assert_int_eq(matching, 47);
    ck_assert_int_eq(tokenizer_vocab_size(t), 32000);
    ck_assert(tokenizer_bos(t) == 1 && tokenizer_eos(t) == 2);
    tokenizer_free(t);
}
END_TEST

/* A tokenizer as arrays, and a tokenizer of them again, which encodes alike. */
static void check_arrays_of(const char *path) {
    static const char *const texts[] = {"Hello  world", " \n\n\tx", "na\xc3\xafve 12345 \xf0\x9f\xa6\x99",
                                        "We'll've <s>", ""};
    Tokenizer *t = tokenizer_of(path), *again;
    Arena arena = {0};
    TokenizerArrays arrays;
    int32_t unknown;
    CHECK_OK(tokenizer_to_arrays(t, &arena, &arrays, &unknown));
    CHECK_OK(tokenizer_from_arrays(&again, &arrays));
    ck_assert(tokenizer_vocab_size(again) == tokenizer_vocab_size(t));
    ck_assert(tokenizer_bos(again) == tokenizer_bos(t) && tokenizer_eos(again) == tokenizer_eos(t));
    int flags = TOKENIZE_SPECIAL | (tokenizer_bos(t) >= 0 ? TOKENIZE_BOS : 0);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        TokenList list = encoded(t, texts[i], strlen(texts[i]), flags);
        check_ids(again, texts[i], flags, list.n, list.ids);
        token_list_free(&list);
    }
    arena_free(&arena);
    tokenizer_free(t);
    tokenizer_free(again);
}

START_TEST(tokenizers_survive_as_arrays) {
    check_arrays_of("bytes");
    check_arrays_of("tests/golden/tokenizer_gpt2.json");
    check_arrays_of("tests/golden/tokenizer_llama3.json");
    check_arrays_of("tests/golden/tokenizer_llama.model");
    check_arrays_of("tests/golden/tokenizer_ranks.tiktoken");
    if (file_exists(STORIES)) check_arrays_of(STORIES);
    if (file_exists(LLAMA2)) check_arrays_of(LLAMA2);
    if (file_exists(LLAMA2_JSON)) check_arrays_of(LLAMA2_JSON); /* scores from the ranks of its merges */
}
END_TEST

START_TEST(a_table_of_replacements_is_refused) {
    Tokenizer *t = tokenizer_of("tests/golden/tokenizer_rules.model");
    Arena arena = {0};
    TokenizerArrays arrays;
    int32_t unknown;
    CHECK_ERROR(tokenizer_to_arrays(t, &arena, &arrays, &unknown), ERR_REFUSED, "by a table");
    arena_free(&arena);
    tokenizer_free(t);
}
END_TEST

/* ---- damage ---- */

/* Opens, reads every element and the tokenizer; false where it was refused, for which a reason must be given. */
static bool opens(const char *path) {
    NamedFile *file;
    Tokenizer *tokenizer = NULL;
    error_clear();
    if (gguf_open(&file, path) != OK) {
        ck_assert_msg(strstr(error_text(), path) && strlen(error_text()) > strlen(path) + 10, "no reason given");
        return false;
    }
    for (size_t i = 0; i < named_count(file); i++) {
        const NamedArray *array = named_at(file, i);
        if (array->dtype == DTYPE_COUNT) continue;
        void *bytes = malloc(named_bytes(array) + 1);
        CHECK_OK(named_read(file, array, 0, named_elements(array), bytes));
        free(bytes);
    }
    bool good = gguf_tokenizer(&tokenizer, file) == OK;
    tokenizer_free(tokenizer);
    named_close(file);
    return good;
}

START_TEST(damaged_files_never_crash) {
    char directory[SCRATCH_NAME], *bytes, *path = in(scratch(directory), "x.gguf");
    size_t size;
    Tiny tiny;
    tiny_new(&tiny, GGML_Q8_0);
    CHECK_OK(gguf_write(path, tiny.sources, N_ARRAYS, &tiny.model));
    CHECK_OK(file_read(&bytes, &size, path, 0));
    ck_assert(opens(path));
    for (size_t kept = 0; kept + 40 < size; kept += kept < 1500 ? 1 : 97) { /* the last bytes may be padding */
        overwrite(path, bytes, kept);
        ck_assert_msg(!opens(path), "opens with %zu of its %zu bytes", kept, size);
    }
    PhiloxKey key = philox_key(5, PHILOX_TEST, 0, 0);
    size_t head = 9000; /* metadata and the list of tensors */
    ck_assert(head < size);
    char *copy = malloc(size);
    int refused = 0;
    for (int i = 0; i < 1500; i++) {
        memcpy(copy, bytes, size);
        for (int f = 0; f <= i % 3; f++) {
            size_t bit = (size_t)philox_below(key, (uint64_t)(3 * i + f), 8 * (i % 2 ? head : 1000));
            copy[bit / 8] = (char)(copy[bit / 8] ^ 1 << bit % 8);
        }
        overwrite(path, copy, size);
        refused += !opens(path);
    }
    ck_assert_int_gt(refused, 500);
    free(copy);
    free(bytes);
    free(path);
    tiny_free(&tiny);
    CHECK_OK(directory_remove(directory));
}
END_TEST

CHECK_MAIN("gguf", blocks_are_the_bytes_of_gguf_py, blocks_decode_to_scale_times_level,
           what_a_type_cannot_hold_is_refused, every_kind_is_read_as_it_was_written,
           rows_of_q_and_k_are_in_llama_cpps_order, rotary_factors_give_their_scaling_back,
           rotary_factors_of_another_kind_are_refused, a_real_vocabulary_gives_the_published_ids,
           tokenizers_survive_as_arrays, a_table_of_replacements_is_refused, damaged_files_never_crash)
