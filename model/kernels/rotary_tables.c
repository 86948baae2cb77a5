/* Angles of the rotary embedding: frequency i is θ^(−2i/HD) (Su et al. 2021, eq. 15), optionally stretched as Llama 3.1
 * does for long contexts (rope_type "llama3" in Hugging Face's modeling_rope_utils.py): with wavelength 2π/frequency,
 *
 *   longer than original_context/low_freq_factor      frequency / factor
 *   shorter than original_context/high_freq_factor    frequency
 *   between                                           a linear blend of the two, in original_context/wavelength
 *
 * Everything in fp64; the table is rounded once. */
#include <math.h>

#include "model/kernels/kernels.h"

static const double two_pi = 6.283185307179586476925286766559;

static double scaled_frequency(double frequency, RotaryScaling scaling) {
    if (!(scaling.factor > 0)) return frequency;
    double low = (double)scaling.low_freq_factor, high = (double)scaling.high_freq_factor;
    double turns = scaling.original_context * frequency / two_pi; /* in the original context */
    if (turns < low) return frequency / (double)scaling.factor;
    if (turns > high) return frequency;
    double kept = (turns - low) / (high - low);
    return (1 - kept) * frequency / (double)scaling.factor + kept * frequency;
}

void rotary_tables(float *cos_table, float *sin_table, int n_positions, int head_dim, float theta,
                   RotaryScaling scaling) {
    int half = head_dim / 2;
    for (int i = 0; i < half; i++) {
        double frequency = scaled_frequency(pow((double)theta, -2.0 * i / head_dim), scaling);
        for (int p = 0; p < n_positions; p++) {
            size_t at = (size_t)p * (size_t)half + (size_t)i;
            cos_table[at] = (float)cos(p * frequency);
            sin_table[at] = (float)sin(p * frequency);
        }
    }
}
