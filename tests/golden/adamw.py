"""Makes tests/golden/adamw.h: 20 steps of torch.optim.AdamW and torch.nn.utils.clip_grad_norm_ in fp32, with learning
rates from transformers' schedules.

    python tests/golden/adamw.py > tests/golden/adamw.h

Values and gradients come from integer formulas that are exact in fp32 (tests/test_optim.c has the same ones), so the
two programs start from identical bits. Gradients of one tensor span 2^24, down to where epsilon matters; every fourth
step is eight times larger than the first, so that clipping is active in some steps and not in others.
"""
import platform

import torch
import transformers
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

STEPS = 20
SIZES = [97, 24, 61]  # a matrix, a norm (starts at 1, no decay), a matrix
NORM = 1


def initial(p, i):
    return 1.0 if p == NORM else ((i * 37 + p * 11) % 101 - 50) / 1024


def gradient(step, p, i):
    return ((i * 7919 + step * 104729 + p * 1299709) % 1009 - 504) / 512 * 2.0 ** (step % 4 - 2 - i % 24)


def constant(optimizer, case):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1, total_iters=0)


def linear(optimizer, case):
    assert case["final_ratio"] == 0
    return get_linear_schedule_with_warmup(optimizer, case["warmup"], case["total"])


def cosine(optimizer, case):
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, case["warmup"], case["total"], min_lr_rate=case["final_ratio"])


def wsd(optimizer, case):
    return get_wsd_schedule(optimizer, case["warmup"], case["decay"], num_training_steps=case["total"],
                            decay_type="1-sqrt", min_lr_ratio=case["final_ratio"])


CASES = [
    dict(name="constant rate, decay, no clipping", kind="SCHEDULE_CONSTANT", make=constant, beta2=0.95, eps=1e-8,
         weight_decay=0.1, clip=0, final_ratio=1, warmup=0, total=20, decay=0),
    dict(name="cosine, decay, clipping now and then", kind="SCHEDULE_COSINE", make=cosine, beta2=0.95, eps=1e-8,
         weight_decay=0.1, clip=1.0, final_ratio=0.1, warmup=4, total=20, decay=0),
    dict(name="linear to zero, no decay, clipping always", kind="SCHEDULE_LINEAR", make=linear, beta2=0.999, eps=1e-6,
         weight_decay=0, clip=0.25, final_ratio=0, warmup=2, total=20, decay=0),
    dict(name="warm-up, stable, decline", kind="SCHEDULE_WSD", make=wsd, beta2=0.99, eps=1e-8,
         weight_decay=0.5, clip=2.0, final_ratio=0.05, warmup=3, total=20, decay=8),
]
PEAK, BETA1 = 1e-2, 0.9


def run(case):
    values = [torch.tensor([initial(p, i) for i in range(n)], dtype=torch.float32, requires_grad=True)
              for p, n in enumerate(SIZES)]
    groups = [dict(params=[v for p, v in enumerate(values) if p != NORM], weight_decay=case["weight_decay"]),
              dict(params=[values[NORM]], weight_decay=0)]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(BETA1, case["beta2"]), eps=case["eps"], foreach=False)
    scheduler = case["make"](optimizer, case)
    rates, norms = [], []
    for step in range(STEPS):
        # transformers warms up from 0 with step/warmup; cria's first step already learns
        rate = PEAK * (step + 1) / case["warmup"] if step < case["warmup"] else optimizer.param_groups[0]["lr"]
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p, v in enumerate(values):
            v.grad = torch.tensor([gradient(step, p, i) for i in range(v.numel())], dtype=torch.float32)
        max_norm = case["clip"] if case["clip"] else float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(values, max_norm)))
        rates.append(rate)
        optimizer.step()
        scheduler.step()
    return rates, norms, torch.cat([v.detach() for v in values]).tolist()


def listing(numbers):
    lines = []
    for start in range(0, len(numbers), 8):
        lines.append("         " + ", ".join(numbers[start:start + 8]))
    return ",\n".join(lines)


print(f"""/* Made by tests/golden/adamw.py with torch {torch.__version__}, transformers {transformers.__version__}, \
Python {platform.python_version()}. */
#ifndef CRIA_TESTS_GOLDEN_ADAMW_H
#define CRIA_TESTS_GOLDEN_ADAMW_H

#include "optim/optimizer.h"

/* clang-format off */
enum {{ GOLDEN_STEPS = {STEPS}, GOLDEN_PARAMETERS = {len(SIZES)}, GOLDEN_NORM = {NORM}, GOLDEN_ELEMENTS = {sum(SIZES)} }};
static const int golden_sizes[GOLDEN_PARAMETERS] = {{{", ".join(map(str, SIZES))}}};

typedef struct {{
    const char *name;
    OptimOptions options;
    Schedule schedule;
    double rates[GOLDEN_STEPS], norms[GOLDEN_STEPS];
    float values[GOLDEN_ELEMENTS]; /* after the last step */
}} GoldenCase;

static const GoldenCase golden_cases[] = {{""")
for case in CASES:
    rates, norms, values = run(case)
    print(f"""    {{"{case['name']}",
     {{.learning_rate = {PEAK}, .beta1 = {BETA1}, .beta2 = {case['beta2']}, .epsilon = {case['eps']}, \
.weight_decay = {case['weight_decay']}, .clip = {case['clip']}}},
     {{.kind = {case['kind']}, .peak = {PEAK}, .final_ratio = {case['final_ratio']}, .warmup = {case['warmup']}, \
.total = {case['total']}, .decay = {case['decay']}}},
     .rates = {{
{listing([repr(r) for r in rates])}}},
     .norms = {{
{listing([repr(n) for n in norms])}}},
     .values = {{
{listing([repr(v) + "F" for v in torch.tensor(values, dtype=torch.float32).double().tolist()])}}}}},""")
print("""};
/* clang-format on */

#endif""")
