"""nanoGPT's CPU recipe for tinyshakespeare (4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps; its README
reports a loss of 1.88, estimated on 20 random batches) as a Llama on bytes, in PyTorch.

python torch_nanogpt_llama.py TINYSHAKESPEARE.txt [--compile] [--seed N] [--threads N] [--steps N]
One JSON line: loss over the whole validation set (the last 10 % of the bytes, in windows of 64), wall times.
"""

import argparse
import json
import math
import time

import numpy as np
import torch

from llama_module import Llama, adamw, peak_memory_bytes, set_learning_rate

CONTEXT, BATCH, WARMUP = 64, 12, 100
PEAK, FINAL = 1e-3, 1e-4


def learning_rate(step, total):
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    progress = min(1.0, (step - WARMUP) / max(1, total - WARMUP))
    return FINAL + (PEAK - FINAL) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def whole_loss(model, data):
    """Mean over every byte but the first, each predicted within its window (windows do not overlap)."""
    n = (len(data) - 1) // CONTEXT * CONTEXT
    windows = list(zip(data[:n].view(-1, CONTEXT).split(256), data[1:n + 1].view(-1, CONTEXT).split(256)))
    if n < len(data) - 1:
        windows.append((data[None, n:-1], data[None, n + 1:]))
    total = sum(model(tokens, targets, reduction="sum").item() for tokens, targets in windows)
    return total / (len(data) - 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    data = torch.from_numpy(np.fromfile(options.text, dtype=np.uint8).astype(np.int64))
    cut = int(0.9 * len(data))
    train, validation = data[:cut], data[cut:]
    model = Llama(dim=128, layers=4, heads=4, kv_heads=4, ffn=352, vocab=256, context=CONTEXT, scaled_residual=True)
    forward = torch.compile(model) if options.compile else model
    optimizer = adamw(model, 0.1, (0.9, 0.99))

    start = time.perf_counter()
    first = 0.0
    for step in range(options.steps):
        set_learning_rate(optimizer, learning_rate(step, options.steps))
        offsets = torch.randint(len(train) - CONTEXT, (BATCH,))
        windows = torch.stack([train[o:o + CONTEXT + 1] for o in offsets])
        loss = forward(windows[:, :-1], windows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        first = first or time.perf_counter() - start
    trained = time.perf_counter() - start
    loss = whole_loss(model, validation)
    print(json.dumps(dict(
        validation_loss=round(loss, 4), validation_bytes=len(validation) - 1, steps=options.steps, seed=options.seed,
        compiled=options.compile, threads=options.threads, torch=torch.__version__,
        parameters=sum(p.numel() for p in model.parameters()), train_seconds=round(trained, 2),
        first_step_seconds=round(first, 2), total_seconds=round(time.perf_counter() - start, 2),
        peak_memory_bytes=peak_memory_bytes())))


if __name__ == "__main__":
    main()
