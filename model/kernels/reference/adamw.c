/* AdamW (Loshchilov and Hutter 2019, algorithm 2; decay and epsilon placed as in torch.optim.AdamW), with g the scaled
 * gradient:
 *
 *   θ ← θ·(1 − lr·wd);  m ← β1·m + (1 − β1)·g;  v ← β2·v + (1 − β2)·g²
 *   θ ← θ − lr · (m/c1) / (sqrt(v/c2) + ε),   c = 1 − β^step
 */
#include <math.h>

#include "model/core/threads.h"
#include "model/kernels/reference/reference.h"

void reference_adamw(float *param, float *m, float *v, const float *grad, size_t n, AdamwStep step) {
    float decay = (float)(1 - step.learning_rate * step.weight_decay);
    float beta1 = (float)step.beta1, beta2 = (float)step.beta2;
    float rest1 = (float)(1 - step.beta1), rest2 = (float)(1 - step.beta2);
    float rate = (float)(step.learning_rate / step.bias_correction1);
    float unbias = (float)(1 / sqrt(step.bias_correction2));
    float epsilon = (float)step.epsilon, scale = (float)step.grad_scale;
#pragma omp parallel for num_threads(threads_count()) schedule(static) if (n > 4096)
    for (size_t i = 0; i < n; i++) {
        float g = grad[i] * scale;
        m[i] = beta1 * m[i] + rest1 * g;
        v[i] = beta2 * v[i] + rest2 * g * g;
        param[i] = param[i] * decay - rate * m[i] / (sqrtf(v[i]) * unbias + epsilon);
    }
}
