"""A Llama in plain PyTorch, for measuring beside cria: the same mathematics in the ops PyTorch does best on a CPU
(fused attention, torch's rms_norm, one product each for query/key/value and gate/up)."""

import json
import math
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Norm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x, cos, sin):
    """Half-split rotary embedding of x [B, H, T, HD], in x's type as transformers does it."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Layer(nn.Module):
    def __init__(self, dim, heads, kv_heads, ffn):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.attention_norm, self.ffn_norm = Norm(dim), Norm(dim)
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.gate_up = nn.Linear(dim, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, dim, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True,
                                               enable_gqa=self.kv_heads != self.heads)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """Tied head; matrices N(0, 0.02²), those that end a residual branch 1/sqrt(2·layers) of that when scaled."""

    def __init__(self, dim, layers, heads, kv_heads, ffn, vocab, context, theta=10000.0, scaled_residual=False):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(Layer(dim, heads, kv_heads, ffn) for _ in range(layers))
        self.norm = Norm(dim)
        half = torch.arange(0, dim // heads, 2, dtype=torch.float64) / (dim // heads)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), theta ** -half)
        self.register_buffer("cos", angle.cos().float())
        self.register_buffer("sin", angle.sin().float())
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends_branch = name.endswith(("attention_out.weight", "down.weight"))
                shrink = math.sqrt(2 * layers) if scaled_residual and ends_branch else 1
                nn.init.normal_(parameter, 0.0, 0.02 / shrink)

    def forward(self, tokens, targets, reduction="mean"):
        x = self.embedding(tokens)
        cos, sin = self.cos[:tokens.shape[1]], self.sin[:tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def adamw(model, weight_decay, betas):
    """Fused AdamW that decays matrices (embedding and head too) and not norms."""
    groups = [dict(params=[p for p in model.parameters() if p.dim() == 2], weight_decay=weight_decay),
              dict(params=[p for p in model.parameters() if p.dim() == 1], weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, fused=True)


def set_learning_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def peak_memory_bytes():
    """Peak resident memory of this process (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def reset_peak_memory():
    """peak_memory_bytes counts from here on (proc(5), /proc/PID/clear_refs)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def run_steps(step, at_least, seconds):
    """Seconds of each of some steps: at least so many, for at least so long."""
    times, start = [], time.perf_counter()
    while len(times) < at_least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    return times


def serve(step, tokens, **facts):
    """As `cria bench --serve`: a line of JSON when ready, then for every line "STEPS SECONDS" on stdin so many steps
    and a line of JSON. The peak of memory counts from here: what compiling took is not the step's."""
    reset_peak_memory()
    print(json.dumps(dict(ready=True, tokens_per_step=tokens, torch=torch.__version__, **facts)), flush=True)
    for line in sys.stdin:
        steps, seconds = line.split()
        times = run_steps(step, int(steps), float(seconds))
        median = statistics.median(times)
        print(json.dumps(dict(tokens_per_second=tokens / median, steps=len(times), step_seconds=median,
                              peak_memory_bytes=peak_memory_bytes())), flush=True)
