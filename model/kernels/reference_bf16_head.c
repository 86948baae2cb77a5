#include <stdlib.h>
#include <string.h>

#include "model/kernels/reference.h"

static float *weights(const Panels *p) {
    float *w = malloc((size_t)p->lanes * (size_t)p->depth * 4);
    bf16 *packed = malloc(panels_elements(p->lanes, p->depth) * 2);
    size_t stride = panels_elements(16, p->depth);
    if (p->packed) memcpy(packed, p->packed, panels_elements(p->lanes, p->depth) * 2);
    else kernels()->bf16.pack(packed, stride, p, 0, p->lanes, 0, p->depth);
    for (int l = 0; l < p->lanes; l++) for (int d = 0; d < p->depth; d++)
        w[(size_t)l * (size_t)p->depth + (size_t)d] = bf16_to_f32(packed[(size_t)(l / 16) * stride + (size_t)(d / 2 * 32 + l % 16 * 2 + d % 2)]);
    free(packed);
    return w;
}
static float *widen(const bf16 *x, size_t n) { float *y = malloc(n * 4 + 4); for (size_t i = 0; i < n; i++) y[i] = bf16_to_f32(x[i]); return y; }
static void narrow(bf16 *y, bool acc, float *x, size_t n) { for (size_t i = 0; i < n; i++) y[i] = f32_to_bf16(x[i] + (acc ? bf16_to_f32(y[i]) : 0)); free(x); }
static void fwd(HeadResults out, const bf16 *x, Panels f, const int32_t *targets, const float *mask, int n, float s, float *scratch) {
    float *w = weights(&f), *y = widen(x, (size_t)n * (size_t)f.depth);
    reference_head_forward(out, y, w, targets, mask, n, f.depth, f.lanes, s, scratch);
    free(w); free(y);
}
static void bwd(bf16 *dx, bool acc, float *dw, const float *dl, const bf16 *x, Panels f, Panels b, const float *lse, const int32_t *targets, int n, float s, float *scratch) {
    float *w = weights(&f), *y = widen(x, (size_t)n * (size_t)f.depth), *d = calloc((size_t)n * (size_t)f.depth + 1, 4);
    (void)b;
    reference_head_backward(dx ? d : NULL, false, dw, dl, y, w, lse, targets, n, f.depth, f.lanes, s, scratch);
    if (dx) narrow(dx, acc, d, (size_t)n * (size_t)f.depth);
    free(w); free(y);
}
static void both(HeadResults out, bf16 *dx, float *dw, const float *dl, const bf16 *x, Panels f, Panels b, const int32_t *targets, int n, float s, float *scratch) {
    fwd(out, x, f, targets, dl, n, s, scratch);
    bwd(dx, false, dw, dl, x, f, b, out.lse, targets, n, s, scratch);
}
void reference_bf16_head(Bf16Kernels *table) {
    table->head_forward = fwd;
    table->head_backward = bwd;
    table->head_forward_backward = both;
}
