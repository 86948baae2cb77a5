/* Shapes: the presets have the released models' numbers of parameters, and what cannot be a Llama is refused before a
 * byte is asked for. */
#include <math.h>
#include <string.h>

#include "model/shape.h"
#include "tests/check_main.h"

/* Counted in the released checkpoints: what Hugging Face shows of each. */
START_TEST(presets_have_the_released_numbers_of_parameters) {
    static const struct {
        const char *name;
        uint64_t parameters;
    } released[] = {
        {"llama2-7b", 6738415616},   {"llama2-13b", 13015864320}, {"llama2-70b", 68976648192},
        {"llama3-8b", 8030261248},   {"llama3.1-8b", 8030261248}, {"llama3.1-70b", 70553706496},
        {"llama3.2-1b", 1235814400}, {"llama3.2-3b", 3212749824}, {"260k", 260032},
    };
    for (size_t i = 0; i < sizeof released / sizeof *released; i++) {
        LlamaShape shape;
        CHECK_OK(llama_preset(&shape, released[i].name));
        CHECK_OK(llama_shape_check(&shape));
        ck_assert_msg(llama_parameters(&shape) == released[i].parameters, "%s: %llu", released[i].name,
                      (unsigned long long)llama_parameters(&shape));
    }
}
END_TEST

static const LlamaShape good = {.dim = 64,
                                .n_layers = 2,
                                .n_heads = 4,
                                .vocab_size = 100,
                                .max_context = 32,
                                .norm_eps = 1e-5f,
                                .rope_theta = 1e4f};

static void check_refused(LlamaShape shape, const char *names) {
    CHECK_ERROR(llama_shape_check(&shape), ERR_REFUSED, names);
}

START_TEST(what_cannot_be_a_llama_is_refused_by_name) {
    LlamaShape shape = good;
    CHECK_OK(llama_shape_check(&shape));
    ck_assert(shape.n_kv_heads == 4 && shape.head_dim == 16 && shape.ffn_dim == 192);
    check_refused((shape = good, shape.n_layers = 4097, shape), "n_layers");
    check_refused((shape = good, shape.dim = 1 << 21, shape), "dim");
    check_refused((shape = good, shape.n_kv_heads = 3, shape), "n_kv_heads");
    check_refused((shape = good, shape.head_dim = 15, shape), "head_dim");
    check_refused((shape = good, shape.rope_theta = INFINITY, shape), "rope_theta");
    check_refused((shape = good, shape.norm_eps = 0, shape), "norm_eps");
    check_refused((shape = good, shape.norm_eps = NAN, shape), "norm_eps");
    RotaryScaling scaling = {.factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_context = 16};
    CHECK_OK(llama_shape_check((shape = good, shape.rope_scaling = scaling, &shape)));
    shape.rope_scaling.factor = 0.5f;
    check_refused(shape, "rope_scaling");
    shape.rope_scaling = scaling;
    shape.rope_scaling.high_freq_factor = 1;
    check_refused(shape, "rope_scaling");
    shape.rope_scaling = scaling;
    shape.rope_scaling.factor = INFINITY;
    check_refused(shape, "rope_scaling");
}
END_TEST

CHECK_MAIN("shape", presets_have_the_released_numbers_of_parameters, what_cannot_be_a_llama_is_refused_by_name)
