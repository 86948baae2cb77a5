/* config.json and generation_config.json: what transformers writes is understood, what cria cannot do is refused. */
#include <string.h>

#include "model/core/error.h"
#include "model/formats/hf_config.h"
#include "tests/formats_scratch.h"

static int parse(HfConfig *config, const char *json) {
    TRY(hf_config_parse(config, json, strlen(json), "config.json"));
    return OK;
}

START_TEST(an_empty_config_is_the_default_llama) {
    HfConfig c;
    CHECK_OK(parse(&c, "{}"));
    ck_assert(c.dim == 4096 && c.n_layers == 32 && c.n_heads == 32 && c.n_kv_heads == 32 && c.head_dim == 128);
    ck_assert(c.ffn_dim == 11008 && c.vocab_size == 32000 && c.max_position_embeddings == 2048);
    ck_assert(c.rms_norm_eps == 1e-6 && c.rope_theta == 10000.0 && !c.rope_scaling.llama3 && !c.tie_word_embeddings);
    ck_assert(c.bos_token_id == 1 && c.n_eos == 1 && c.eos_token_ids[0] == 2 && c.dtype == DTYPE_F32);
    CHECK_OK(parse(&c, "{\"hidden_size\": 96, \"num_attention_heads\": 6, \"num_key_value_heads\": null, "
                       "\"head_dim\": null, \"rope_scaling\": null, \"eos_token_id\": null, \"bos_token_id\": null}"));
    ck_assert(c.n_kv_heads == 6 && c.head_dim == 16 && c.n_eos == 0 && c.bos_token_id == -1);
}
END_TEST

static void check_golden(const HfConfig *c) {
    ck_assert(c->dim == 96 && c->ffn_dim == 256 && c->n_layers == 3 && c->n_heads == 6 && c->n_kv_heads == 2);
    ck_assert(c->head_dim == 32 && c->vocab_size == 128256 && c->max_position_embeddings == 131072);
    ck_assert(c->rms_norm_eps == 1e-5 && c->rope_theta == 500000.0 && c->tie_word_embeddings);
    ck_assert(c->rope_scaling.llama3 && c->rope_scaling.factor == 32 && c->rope_scaling.low_freq_factor == 1);
    ck_assert(c->rope_scaling.high_freq_factor == 4 && c->rope_scaling.original_max_position_embeddings == 8192);
    ck_assert(c->bos_token_id == 128000 && c->n_eos == 3 && c->eos_token_ids[2] == 128009);
    ck_assert(c->dtype == DTYPE_BF16 && c->initializer_range == 0.02);
}

START_TEST(a_config_by_transformers_is_understood_and_survives_writing) {
    char directory[SCRATCH_NAME];
    HfConfig c, again;
    CHECK_OK(hf_config_read(&c, "tests/golden/formats_config.json"));
    check_golden(&c);
    scratch(directory);
    CHECK_OK(hf_config_write(&c, directory));
    CHECK_OK(hf_config_read(&again, directory));
    check_golden(&again);
    CHECK_OK(directory_remove(directory));
}
END_TEST

START_TEST(the_form_of_transformers_5_is_understood) {
    HfConfig c;
    CHECK_OK(parse(&c, "{\"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"llama3\", \"factor\": 8.0, "
                       "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
                       "\"original_max_position_embeddings\": 8192}, \"dtype\": \"float16\"}"));
    ck_assert(c.rope_theta == 500000.0 && c.rope_scaling.llama3 && c.rope_scaling.factor == 8 && c.dtype == DTYPE_F16);
    CHECK_OK(parse(&c, "{\"rope_parameters\": {\"rope_theta\": 7.5, \"rope_type\": \"default\"}}"));
    ck_assert(c.rope_theta == 7.5 && !c.rope_scaling.llama3);
    CHECK_OK(parse(&c, "{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 1, "
                       "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 64}}")); /* and the oldest */
    ck_assert(c.rope_scaling.llama3);
}
END_TEST

START_TEST(what_would_change_the_mathematics_is_refused_by_name) {
    static const struct {
        const char *json, *key;
    } cases[] = {
        {"{\"attention_bias\": true}", "attention_bias"},
        {"{\"mlp_bias\": true}", "mlp_bias"},
        {"{\"hidden_act\": \"gelu\"}", "hidden_act"},
        {"{\"model_type\": \"mistral\"}", "model_type"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}", "rope_scaling"},
        {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2}}", "rope_scaling"},
        {"{\"rope_parameters\": {\"rope_type\": \"dynamic\"}}", "rope_parameters"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 2}}", "low_freq_factor"},
        {"{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor"},
        {"{\"rope_parameters\": {\"partial_rotary_factor\": 0.5}}", "partial_rotary_factor"},
        {"{\"quantization_config\": {\"bits\": 4}}", "quantization_config"},
        {"{\"hidden_size\": 0}", "hidden_size"},
        {"{\"hidden_size\": 99999999999}", "hidden_size"},
        {"{\"hidden_size\": \"64\"}", "hidden_size"},
        {"{\"num_key_value_heads\": 5}", "num_key_value_heads"},
        {"{\"head_dim\": 33}", "head_dim"},
        {"{\"head_dim\": 16777216}", "head_dim"},
        {"{\"rms_norm_eps\": 0}", "rms_norm_eps"},
        {"{\"rope_theta\": -1}", "rope_theta"},
        {"{\"eos_token_id\": [1, 2, 3, 4, 5, 6, 7, 8, 9]}", "eos_token_id"},
        {"{\"eos_token_id\": -2}", "eos_token_id"},
        {"{\"torch_dtype\": \"int8\"}", "torch_dtype"},
        {"{\"tie_word_embeddings\": 1}", "tie_word_embeddings"},
        {"{\"architectures\": [\"LlamaForSequenceClassification\"], \"num_labels\": 9}", "9 labels; 1 to 8"},
        {"{\"architectures\": [\"LlamaForSequenceClassification\"], \"id2label\": {\"0\": \"a\", \"1\": \"a\", \"2\": "
         "\"c\"}}",
         "'a' is given twice"},
        {"{\"architectures\": [\"LlamaForSequenceClassification\"], \"id2label\": {\"0\": \"a\", \"2\": \"c\"}}",
         "names no label 1 of 2"},
        {"{\"architectures\": [\"LlamaForSequenceClassification\"], \"id2label\": {\"0\": \"a\\nb\"}}",
         "control characters"},
        {"{\"pad_token_id\": \"none\"}", "pad_token_id"},
        {"[1]", "object"},
        {"{\"hidden_size\": 64", "config.json:1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        HfConfig c;
        CHECK_ERROR(parse(&c, cases[i].json), ERR_REFUSED, cases[i].key);
        ck_assert_ptr_nonnull(strstr(error_text(), "config.json"));
    }
}
END_TEST

START_TEST(a_score_head_survives_writing) {
    HfConfig c, again;
    char *json;
    CHECK_OK(parse(&c, "{\"architectures\": [\"LlamaForSequenceClassification\"], \"id2label\": {\"0\": \"LABEL_0\"}, "
                       "\"pad_token_id\": 7, \"tie_word_embeddings\": true}"));
    ck_assert(c.labels.n == 1 && c.pad_token_id == 7);
    CHECK_OK(hf_config_format(&c, &json));
    CHECK_OK(parse(&again, json));
    ck_assert(again.labels.n == 1 && again.pad_token_id == 7);
    free(json);
    CHECK_OK(parse(&c, "{\"architectures\": [\"LlamaForCausalLM\"], \"pad_token_id\": -1}"));
    ck_assert(c.labels.n == 0 && c.pad_token_id == -1);
}
END_TEST

START_TEST(the_names_of_several_scores_survive_writing) {
    HfConfig c, again;
    HfLabels labels = {.n = 0};
    char *json, text[HF_LABELS_TEXT];
    CHECK_OK(parse(&c, "{\"architectures\": [\"LlamaForSequenceClassification\"], \"id2label\": {\"1\": \"safety\", "
                       "\"0\": \"helpfulness\"}}"));
    ck_assert(c.labels.n == 2 && hf_label_find(&c.labels, "safety") == 1 && !hf_labels_are_unnamed(&c.labels));
    ck_assert_str_eq(hf_labels_text(&c.labels, text), "helpfulness, safety");
    CHECK_OK(hf_config_format(&c, &json));
    CHECK_OK(parse(&again, json));
    ck_assert(hf_labels_equal(&c.labels, &again.labels) && strstr(json, "\"label2id\""));
    free(json);
    CHECK_OK(parse(&c, "{\"architectures\": [\"LlamaForSequenceClassification\"]}")); /* transformers' default */
    ck_assert(c.labels.n == 2 && hf_labels_are_unnamed(&c.labels) && hf_label_find(&c.labels, "LABEL_1") == 1);
    for (int i = 0; i < HF_MAX_LABELS; i++) CHECK_OK(hf_labels_add(&labels, (char[]){(char)('a' + i), '\0'}));
    CHECK_ERROR(hf_labels_add(&labels, "ninth"), ERR_USAGE, "at most 8");
}
END_TEST

START_TEST(generation_settings_survive_writing) {
    char directory[SCRATCH_NAME];
    HfGeneration g, again;
    scratch(directory);
    CHECK_OK(hf_generation_read(&g, directory)); /* absent: greedy */
    ck_assert(!g.do_sample && g.n_eos == 0 && g.bos_token_id == -1 && g.temperature == 1 && g.top_p == 1);
    g = (HfGeneration){128000, {128001, 128009}, 2, true, 0.6, 0.9, 0};
    CHECK_OK(hf_generation_write(&g, directory));
    CHECK_OK(hf_generation_read(&again, directory));
    ck_assert(again.bos_token_id == 128000 && again.n_eos == 2 && again.eos_token_ids[1] == 128009);
    ck_assert(again.do_sample && again.temperature == 0.6 && again.top_p == 0.9 && again.top_k == 0);
    static const char wrong[] = "{\"top_p\": 2}";
    CHECK_ERROR(hf_generation_parse(&g, wrong, strlen(wrong), "g.json"), ERR_REFUSED, "top_p");
    CHECK_OK(directory_remove(directory));
}
END_TEST

CHECK_MAIN("hf_config", an_empty_config_is_the_default_llama,
           a_config_by_transformers_is_understood_and_survives_writing, the_form_of_transformers_5_is_understood,
           what_would_change_the_mathematics_is_refused_by_name, a_score_head_survives_writing,
           the_names_of_several_scores_survive_writing, generation_settings_survive_writing)
