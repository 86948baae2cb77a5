/* The rows that the fast_*.h files give. Included by avx2_kernels.c and avx512_kernels.c after them. */
static void fast_table(Kernels *table) {
    table->row_major_product = fast_row_major_product;
    table->rmsnorm_forward = fast_rmsnorm_forward;
    table->rotary = fast_rotary;
    table->attention_forward = fast_attention_forward;
    table->attention_backward = fast_attention_backward;
    table->attention_cached = fast_attention_cached;
    table->swiglu_forward = fast_swiglu_forward;
    table->swiglu_backward = fast_swiglu_backward;
    table->head_forward = fast_head_forward;
    table->head_backward = fast_head_backward;
    table->head_forward_backward = fast_head_forward_backward;
    table->softmax_weights = fast_softmax_weights;
    table->adamw = fast_adamw;
    table->sum_of_squares = fast_sum_of_squares;
    table->add = fast_add;
    table->add_rmsnorm_forward = fast_add_rmsnorm_forward;
    table->add_rmsnorm_backward = fast_add_rmsnorm_backward;
    table->quantise = encode_blocks;
    fast_bf16_rows(&table->bf16);
    fast_bf16_attention(&table->bf16);
    table->bf16.attention_cached = fast_bf16_attention_cached;
    fast_bf16_head(&table->bf16);
    fast_bf16_adamw(&table->bf16);
}
