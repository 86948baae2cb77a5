/* Losses on preferences: plain numbers in and out, fp64. An answer's log-probability is the sum over its learned
 * tokens, its ratio log π/π_ref; lengths are the learned tokens'. With z the chosen ratio minus the rejected one:
 *
 *   sigmoid  -(1-ε)·log σ(βz) - ε·log σ(-βz)                    Rafailov et al. 2023, equation 7; with the label
 *                                                              smoothing ε conservative DPO (Mitchell 2023)
 *   robust   (-(1-ε)·log σ(βz) + ε·log σ(-βz)) / (1-2ε)         Chowdhury et al. 2024, equation 8
 *   hinge    max(0, 1 - βz)                                    Zhao et al. 2023 (SLiC-HF), as in Liu et al. 2024
 *   ipo      (z̄ - 1/(2β))²                                     Azar et al. 2024, equation 17
 *   simpo    -(1-ε)·log σ(βz̄ - γ) - ε·log σ(γ - βz̄)             Meng et al. 2024, equation 6; there is no reference
 *   kto      λ·(1 - σ(β(r - z0))); λ·(1 - σ(β(z0 - r))) of a bad answer       Ethayarajh et al. 2024, equation 8
 *
 * z̄ is of ratios divided by their answer's length: always in ipo (as TRL does, after the authors' advice) and simpo, in
 * the others where length_normalised says so. */
#ifndef CRIA_TRAIN_PREFERENCE_LOSS_H
#define CRIA_TRAIN_PREFERENCE_LOSS_H

#include <stdbool.h>

/* in the order of dpo.loss's choices */
typedef enum { DPO_SIGMOID, DPO_IPO, DPO_HINGE, DPO_ROBUST, DPO_SIMPO, DPO_KTO } DpoLoss;

typedef struct {
    DpoLoss loss;
    double beta, label_smoothing, gamma;
    bool length_normalised;
    double desirable, undesirable; /* kto: λ of good and of bad answers */
} PreferenceLoss;

bool preference_has_reference(const PreferenceLoss *options);

/* Of a pair: [0] the chosen answer, [1] the rejected one. */
typedef struct {
    double logp[2], reference[2], length[2];
} PairScores;

typedef struct {
    double loss;
    double gradient[2]; /* dloss / dlogp */
    double reward[2];   /* β·log π/π_ref; simpo: β·log π / length */
} PairLoss;

PairLoss pair_loss(const PreferenceLoss *options, const PairScores *scores);

/* Of one answer that is good or bad; z0 is the estimate of the KL divergence, from 0 on. gradient[1] and reward[1] are
 * 0. */
PairLoss labelled_loss(const PreferenceLoss *options, double logp, double reference, bool is_good, double z0);

#endif
