/* cria sft against TRL: the same base, the same conversations, 20 AdamW steps (tests/golden/sft_trl.py). The program
 * itself runs, from records to checkpoint, so that template, mask, weights, normalisation and update are all in it.
 * Bounds as in test_golden.c: losses within 1e-6 of values up to 6 (an ulp is 4.8e-7), the parameters' change within
 * 5e-5 of its norm, where two correct fp32 programs differ by some 1e-5. */
#include "tests/sft_trl.h"

typedef struct {
    double loss, norm, change;
} Distance;

static Distance distance_of(const char *config, int number, const char *way, const char *more) {
    char name[16];
    snprintf(name, sizeof name, "run%d", number);
    const char *output = fixture_path(name);
    json_t *golden = json_load_file(GOLDEN "/expected.json", 0, NULL);
    ck_assert_ptr_nonnull(golden);
    run_cria(config, output, way, more);
    Distance d = {compare_metric(output, "loss", json_object_get(golden, "losses"), false),
                  compare_metric(output, "grad_norm", json_object_get(golden, "grad_norms"), true),
                  trl_compare(output, GOLDEN "/model.safetensors", GOLDEN "/expected.safetensors", 0, 21)};
    json_decref(golden);
    return d;
}

START_TEST(twenty_steps_end_where_those_of_trl_end_however_records_are_cut) {
    fixture_setup();
    const char *config = fixture_text("sft.yaml", recipe);
    for (int way = 0; way < N_WAYS; way++) {
        Distance d = distance_of(config, way, ways[way], "");
        printf("%s\n  losses %.1e, norms %.1e, change %.1e\n", ways[way], d.loss, d.norm, d.change);
        ck_assert_msg(d.loss <= 1e-6, "loss: %g", d.loss);
        ck_assert_msg(d.norm <= 1e-5, "norm: %g", d.norm);
        ck_assert_msg(d.change <= 5e-5, "change: %g", d.change);
    }
    fixture_teardown();
}
END_TEST

START_TEST(another_mask_template_or_decay_is_noticed) {
    static const char *const wrong[] = {"sft.train_on=all", "template.name=chatml", "optim.weight_decay=0"};
    fixture_setup();
    const char *config = fixture_text("sft.yaml", recipe);
    for (int i = 0; i < 3; i++) {
        Distance d = distance_of(config, i, ways[0], wrong[i]);
        ck_assert_msg(d.change > 1e-3, "%s passes: change %g", wrong[i], d.change);
    }
    fixture_teardown();
}
END_TEST

CHECK_MAIN("sft and TRL", twenty_steps_end_where_those_of_trl_end_however_records_are_cut,
           another_mask_template_or_decay_is_noticed)
