/* Llama 3.1's scaled rotary frequencies as GGUF has them: not as parameters but as their effect, one divisor for each
 * frequency. With turns = original_context·frequency/2π (those that a channel makes in the original context):
 *
 *   turns > high   1          turns < low   factor          between   1 / ((1 − s)/factor + s), s = (turns − low)/(high
 * − low)
 *
 * (transformers' modeling_rope_utils.py; llama.cpp's converter, generate_extra_tensors). The three of low, high and
 * original_context matter only up to a common multiple, and with the published low = 1 they follow from two divisors
 * that lie between. */
#include <math.h>
#include <stdlib.h>

#include "model/core/error.h"
#include "model/formats/gguf_names.h"

static const double TWO_PI = 6.283185307179586476925286766559;
static const double SAME = 1e-4; /* relative: what converters in fp32 may differ by at large exponents of the base */

static double frequency_of(const HfConfig *config, size_t i) {
    return pow(config->rope_theta, -2.0 * (double)i / config->head_dim);
}

void gguf_rope_factors(const HfConfig *config, float *factors) {
    double factor = config->rope_scaling.factor, low = config->rope_scaling.low_freq_factor,
           high = config->rope_scaling.high_freq_factor,
           context = config->rope_scaling.original_max_position_embeddings;
    for (size_t i = 0; i < (size_t)config->head_dim / 2; i++) {
        double turns = context * frequency_of(config, i) / TWO_PI;
        double s = (turns - low) / (high - low);
        double divisor = turns > high ? 1 : turns < low ? factor : 1 / ((1 - s) / factor + s);
        factors[i] = (float)divisor;
    }
}

static bool gives(const HfConfig *config, const float *factors, size_t n) {
    bool same = hf_config_check(config) == OK;
    float *again = malloc((n + 1) * sizeof *again);
    if (!again) return false;
    if (same) gguf_rope_factors(config, again);
    for (size_t i = 0; i < n && same; i++) same = fabs((double)again[i] / (double)factors[i] - 1) <= SAME;
    free(again);
    error_clear();
    return same;
}

/* s of a divisor that lies between 1 and `factor`. */
static double blend_of(double divisor, double factor) {
    return (1 / divisor - 1 / factor) / (1 - 1 / factor);
}

/* The least-squares line of s over frequencies, whose slope is context/(2π(high − 1)) and whose value at 0 is
 * −1/(high − 1); with fewer than two points, high is 4. */
static void fit(HfConfig *config, const float *factors, size_t n, double factor) {
    double points = 0, f_sum = 0, s_sum = 0, ff = 0, fs = 0, high = 4, context;
    double last_whole = 0, first_scaled = 0; /* frequencies around the blend, where it has no point */
    for (size_t i = 0; i < n; i++) {
        double frequency = frequency_of(config, i), divisor = (double)factors[i];
        if (divisor <= 1) last_whole = frequency;
        if (divisor >= factor && first_scaled == 0) first_scaled = frequency;
        if (divisor <= 1 || divisor >= factor) continue;
        double s = blend_of(divisor, factor);
        points++, f_sum += frequency, s_sum += s, ff += frequency * frequency, fs += frequency * s;
    }
    if (points >= 2) {
        double slope = (points * fs - f_sum * s_sum) / (points * ff - f_sum * f_sum);
        double at_zero = (s_sum - slope * f_sum) / points;
        high = 1 - 1 / at_zero;
        context = slope * TWO_PI * (high - 1);
    } else if (points == 1) {
        context = TWO_PI * (1 + s_sum * (high - 1)) / f_sum;
    } else if (last_whole > 0 && first_scaled > 0) {
        double between = sqrt(last_whole / first_scaled);
        high = between < high ? between : high;
        context = TWO_PI / first_scaled / sqrt(between * between / high);
    } else {
        context = last_whole > 0 ? TWO_PI * 2 * high / last_whole : TWO_PI / 2;
    }
    if (fabs(high - round(high)) < 1e-2) high = round(high);
    config->rope_scaling.high_freq_factor = high;
    config->rope_scaling.original_max_position_embeddings = context >= 1 && context < 1e9 ? (int)lround(context) : 0;
}

int gguf_rope_recover(HfConfig *config, const float *factors, size_t n) {
    double factor = 1;
    if (n != (size_t)config->head_dim / 2)
        FAIL(ERR_REFUSED, "'" GGUF_ROPE_FREQS "' has %zu factors; %d, half of head_dim, are expected", n,
             config->head_dim / 2);
    for (size_t i = 0; i < n; i++) {
        if (!(factors[i] >= 1) || !isfinite(factors[i]))
            FAIL(ERR_REFUSED, "'" GGUF_ROPE_FREQS "' divides frequency %zu by %g; 1 or more is expected", i,
                 (double)factors[i]);
        factor = fmax(factor, (double)factors[i]);
    }
    if (factor == 1) return OK;
    enum { PUBLISHED_CONTEXT = 8192, PUBLISHED_HIGH = 4 }; /* of Llama 3.1, 3.2 and 3.3 */
    config->rope_scaling.llama3 = true;
    config->rope_scaling.factor = factor;
    config->rope_scaling.low_freq_factor = 1;
    config->rope_scaling.high_freq_factor = PUBLISHED_HIGH;
    config->rope_scaling.original_max_position_embeddings = PUBLISHED_CONTEXT;
    if (gives(config, factors, n)) return OK;
    fit(config, factors, n, factor);
    if (gives(config, factors, n)) return OK;
    FAIL(ERR_REFUSED,
         "'" GGUF_ROPE_FREQS "' is no scaling of Llama 3.1's kind (1 to factor %g, blended between two wavelengths); "
         "other kinds are not implemented",
         factor);
}
