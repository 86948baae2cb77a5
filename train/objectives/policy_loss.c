/* See policy_loss.h. Where both arguments of a min or max are equal, their gradients are too, but on a set of measure
 * zero. */
#include "train/objectives/policy_loss.h"

#include <math.h>

static double clamp(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

PolicyLoss policy_loss(double log_ratio, double advantage, double epsilon_low, double epsilon_high) {
    double ratio = exp(log_ratio), low = 1 - epsilon_low, high = 1 + epsilon_high;
    double free = ratio * advantage, bounded = clamp(ratio, low, high) * advantage;
    PolicyLoss out = {.loss = -fmin(free, bounded),
                      .ratio = ratio,
                      .low = ratio < low && advantage<0, .high = ratio> high && advantage > 0};
    out.gradient = out.low || out.high ? 0 : -free;
    return out;
}

KlLoss kl_loss(double logprob, double reference) {
    double log_ratio = reference - logprob, excess = expm1(log_ratio);
    return (KlLoss){.loss = excess - log_ratio, .gradient = -excess};
}

KlLoss kl_loss_weighed(double logprob, double reference, double ratio) {
    KlLoss plain = kl_loss(logprob, reference);
    return (KlLoss){.loss = ratio * plain.loss, .gradient = ratio * (plain.gradient + plain.loss)};
}

ValueLoss value_loss(double value, double old_value, double target, double epsilon) {
    double bounded = clamp(value, old_value - epsilon, old_value + epsilon);
    double free_square = (value - target) * (value - target), square = (bounded - target) * (bounded - target);
    if (square > free_square) return (ValueLoss){.loss = 0.5 * square, .clipped = true};
    return (ValueLoss){.loss = 0.5 * free_square, .gradient = value - target};
}
