"""Golden values of whole Llamas: small random models made, run and trained by Hugging Face transformers.

Each case becomes a directory llama_CASE/ beside this file:

  config.json, model.safetensors   the random model, as save_pretrained writes it (fp32)
  expected.json                    hyperparameters, versions, how exact the values are
  expected.safetensors             the values, all under their Hugging Face names:

    batchK.tokens, .targets, .positions [T] int32, .segment_start [S+1] int32, .weights [T] fp32, K = 0, 1, 2:
        one flat run of ragged segments; a token's loss has its weight, 0 where it is not learned. The last token of a
        segment has weight 0 and target -100, torch's mark for a target that is not looked at.
    loss, loss_fp64 [1] fp64       of batch 0: sum(w * nll) / sum(w); of transformers in fp32 and of the fp64 Llama
    logits [8, V]                  of the first tokens of batch 0
    grad.NAME                      of that loss
    greedy.prompt, greedy.tokens   greedy continuation of the prompt (every step's best logit leads by > 1e-3)
    losses, losses_fp64, grad_norms, learning_rates [20] fp64
    theta.NAME                     after 20 AdamW steps on batches 0, 1, 2, 0, 1, …

Formulas: torch.optim.AdamW (decay multiplies the weight by 1 - lr * wd first; no decay on norms, decay on embedding
and head); torch clip_grad_norm_ (factor min(1, clip / (norm + 1e-6))); learning rate of update `step` = 0, 1, …:
peak * (step + 1) / warmup while step < warmup, then final + (peak - final) * (1 + cos(pi * progress)) / 2 with
progress = (step - warmup) / (total - warmup).

What is checked here before anything is written: transformers' fp32 run agrees with an fp64 Llama written out below
(transformers computes norms, rotary angles and softmax in fp32 even for an fp64 model), gradients to GRADIENT_BOUND of
their norm; one packed run under a block-diagonal mask equals its segments run separately; and wrong hyperparameters
show in the parameters' change (`controls` in expected.json).

Training must also be well conditioned, or a correct program could not be told from a wrong one: where one element's
first gradient happens to be near zero, Adam makes a whole step of its rounding error. Each case takes the first seed
for which fp32 runs that differ in rounding alone (eager and fused attention, packed and not) and the fp64 run stay
within CHANGE_BOUND of each parameter's change and LOSS_BOUND of every loss.

Made with torch 2.13.0 and transformers 4.57.6. Run: python tests/golden/llama.py [CASE ...]. A second run gives the
same values (the order of the two texts in a safetensors header may change).
"""

import contextlib
import json
import math
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
STEPS, BATCHES = 20, 3
HYPER = dict(final_ratio=0.1, warmup=4, total=STEPS, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1)
GRADIENT_BOUND = 1e-6  # fp32 against fp64, relative to the norm; twice that for peaked attention
CHANGE_BOUND, LOSS_BOUND = 2e-5, 5e-7  # after 20 steps
SEEDS = range(100, 150)

# name: (config, standard deviation of the matrices, lengths of each batch's segments, packed in one run?, peak learning
# rate, clip); clip is about the median gradient norm, because Adam hides a clip that always acts
CASES = {
    "gqa": (dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=44, vocab_size=67), 0.1, [(23, 14), (9, 31), (17, 17)], False, 5e-3, 2.0),
    "tied": (dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
                  intermediate_size=40, vocab_size=61, tie_word_embeddings=True), 0.05,
             [(19, 26), (33, 5), (12, 28)], False, 5e-3, 1.6),
    "llama31": (dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                     intermediate_size=36, vocab_size=71, rope_theta=500000.0, max_position_embeddings=512,
                     rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                       original_max_position_embeddings=64)), 0.1,
                [(41, 22), (13, 55), (30, 24)], False, 5e-3, 1.8),
    "odd_heads": (dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=10,
                       intermediate_size=28, vocab_size=97, rms_norm_eps=1e-6), 0.1,
                  [(21, 16), (1, 35), (11, 18)], False, 5e-3, 2.4),
    "packed": (dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                    intermediate_size=40, vocab_size=61), 0.1, [(27, 10), (7, 25, 4), (16, 19)], True, 5e-3, 2.0),
    "large_init": (dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        intermediate_size=36, vocab_size=61), 0.2, [(20, 29), (35, 8), (15, 22)], False, 2e-3, 4.0),
}


def make_model(config, std, seed):
    torch.manual_seed(seed)
    settings = dict(rms_norm_eps=1e-5, max_position_embeddings=128, rope_theta=10000.0, tie_word_embeddings=False,
                    attention_dropout=0.0, use_cache=False, attn_implementation="eager", bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **config})).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norm weights around 1, none exactly 1
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(0.0, std)
    return model


def make_batch(lengths, vocab, generator):
    """A flat run; about a fifth of the tokens is not learned, the others' weights are 0.25 to 2."""
    n, start = sum(lengths), np.concatenate([[0], np.cumsum(lengths)])
    tokens = torch.randint(0, vocab, (n,), generator=generator)
    targets = torch.full((n,), -100)
    weights = torch.tensor([0.0, 0.25, 1.0, 1.0, 2.0])[torch.randint(0, 5, (n,), generator=generator)]
    positions = torch.cat([torch.arange(length) for length in lengths])
    for s in range(len(lengths)):
        targets[start[s]:start[s + 1] - 1] = tokens[start[s] + 1:start[s + 1]]
        weights[start[s + 1] - 1] = 0
    return dict(tokens=tokens, targets=targets, weights=weights, positions=positions,
                segment_start=torch.tensor(start))


class Exact(torch.nn.Module):
    """The same Llama in fp64 throughout, segment by segment: the yardstick for the rounding of the values."""

    def __init__(self, model):
        super().__init__()
        self.config = model.config
        self.names = [name for name, _ in model.named_parameters()]
        self.values = torch.nn.ParameterList(p.detach().double() for p in model.parameters())

    def named_parameters(self, *_, **__):
        return zip(self.names, self.values)

    def frequencies(self):
        c, n = self.config, self.config.head_dim
        f = c.rope_theta ** -(torch.arange(0, n, 2, dtype=torch.float64) / n)
        if c.rope_scaling:  # Llama 3.1: long wavelengths divided, short ones kept, a blend between
            r = c.rope_scaling
            turns = r["original_max_position_embeddings"] * f / (2 * math.pi)
            blend = ((turns - r["low_freq_factor"]) / (r["high_freq_factor"] - r["low_freq_factor"])).clamp(0, 1)
            f = f / r["factor"] * (1 - blend) + f * blend
        return f

    def segment(self, tokens):
        c, w = self.config, dict(self.named_parameters())
        t, heads, groups = len(tokens), c.num_attention_heads, c.num_key_value_heads
        angle = torch.outer(torch.arange(t, dtype=torch.float64), self.frequencies())
        cos, sin = angle.cos(), angle.sin()

        def norm(x, name):
            return x * (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).rsqrt() * w[name]

        def turn(x):
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        x = w["model.embed_tokens.weight"][tokens]
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            h = norm(x, at + "input_layernorm.weight")
            q, k, v = ((h @ w[f"{at}self_attn.{n}_proj.weight"].T).view(t, -1, c.head_dim).transpose(0, 1)
                       for n in "qkv")
            k, v = (a.repeat_interleave(heads // groups, 0) for a in (turn(k), v))
            scores = turn(q) @ k.transpose(1, 2) / math.sqrt(c.head_dim)
            scores = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -math.inf)
            y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(t, -1)
            x = x + y @ w[at + "self_attn.o_proj.weight"].T
            h = norm(x, at + "post_attention_layernorm.weight")
            gate, up = (h @ w[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
            x = x + (F.silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return norm(x, "model.norm.weight") @ head.T


def logits_of(model, batch, packed):
    if isinstance(model, Exact):
        start = batch["segment_start"]
        return torch.cat([model.segment(batch["tokens"][a:b]) for a, b in zip(start[:-1], start[1:])])
    if packed:  # one run: positions restart, attention is causal and block-diagonal
        n = len(batch["tokens"])
        segment = torch.searchsorted(batch["segment_start"], torch.arange(n), right=True)
        seen = (segment[:, None] == segment[None, :]) & torch.ones(n, n, dtype=torch.bool).tril()
        mask = torch.zeros(n, n, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
        return model(input_ids=batch["tokens"][None], position_ids=batch["positions"][None],
                     attention_mask=mask[None, None]).logits[0]
    start = batch["segment_start"]
    return torch.cat([model(input_ids=batch["tokens"][None, a:b]).logits[0] for a, b in zip(start[:-1], start[1:])])


def loss_of(model, batch, packed):
    nll = F.cross_entropy(logits_of(model, batch, packed), batch["targets"], reduction="none", ignore_index=-100)
    weights = batch["weights"].double()
    return (weights * nll.double()).sum() / weights.sum()


def gradients_of(model, batch, packed):
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, batch, packed)
    loss.backward()
    return loss.item(), {name: p.grad.detach().clone() for name, p in model.named_parameters()}


def learning_rate(step, hyper):
    if step < hyper["warmup"]:
        return hyper["peak"] * (step + 1) / hyper["warmup"]
    final = hyper["peak"] * hyper["final_ratio"]
    progress = (step - hyper["warmup"]) / (hyper["total"] - hyper["warmup"])
    return final + (hyper["peak"] - final) * 0.5 * (1 + math.cos(math.pi * progress))


def train(model, batches, packed, hyper):
    """20 AdamW steps in place; losses, gradient norms before clipping, learning rates."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=hyper["weight_decay"]),
                                   dict(params=norms, weight_decay=0.0)], lr=0.0,
                                  betas=(hyper["beta1"], hyper["beta2"]), eps=hyper["epsilon"], foreach=False)
    losses, grad_norms, rates = [], [], []
    for step in range(STEPS):
        rate = learning_rate(step, hyper)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, batches[step % len(batches)], packed)
        loss.backward()
        grad_norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), hyper["clip"]).item())
        optimizer.step()
        losses.append(loss.item())
        rates.append(rate)
    return losses, grad_norms, rates


def relative(values, reference):
    """Largest ||value - reference|| / ||reference|| over the parameters, and whose it is."""
    distance = {name: ((values[name].double() - r.double()).norm() / r.double().norm()).item()
                for name, r in reference.items()}
    worst = max(distance, key=distance.get)
    return distance[worst], worst


def change(model, before):
    return {name: p.detach().double() - before[name].double() for name, p in model.named_parameters()}


def greedy(model, prompt, n):
    tokens = prompt.tolist()
    for _ in range(n):
        with torch.no_grad():
            best = model(input_ids=torch.tensor([tokens])).logits[0, -1].topk(2)
        assert best.values[0] - best.values[1] > 1e-3, "greedy choice is too close: take another prompt"
        tokens.append(best.indices[0].item())
    return tokens[len(prompt):]


def first_clear_greedy(model, tokens, n):
    for length in range(3, 12):
        with contextlib.suppress(AssertionError):
            return tokens[:length], greedy(model, tokens[:length], n)
    raise AssertionError("no prompt has a clear greedy continuation")


def check_bands(config):
    """Llama 3.1's scaling keeps, blends and divides: all three must occur for the case to mean anything."""
    scaling, head_dim = config.rope_scaling, config.head_dim
    wavelengths = [2 * math.pi * config.rope_theta ** (2 * i / head_dim) for i in range(head_dim // 2)]
    context = scaling["original_max_position_embeddings"]
    short, long = context / scaling["high_freq_factor"], context / scaling["low_freq_factor"]
    bands = [sum(w < short for w in wavelengths), sum(short <= w <= long for w in wavelengths),
             sum(w > long for w in wavelengths)]
    assert all(bands), bands
    return dict(zip(("kept", "blended", "divided"), bands))


def make_case(name, seed):
    """Writes the case, or says in what this seed is ill-conditioned."""
    settings, std, lengths, packed, peak, clip = CASES[name]
    hyper = dict(HYPER, peak=peak, clip=clip)
    model = make_model(settings, std, seed)
    vocab = model.config.vocab_size
    generator = torch.Generator().manual_seed(1000 + seed)
    batches = [make_batch(of_batch, vocab, generator) for of_batch in lengths]
    directory = HERE / f"llama_{name}"
    directory.mkdir(exist_ok=True)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def fresh():  # from the files, so that they are what the values belong to
        return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")

    report, gradient_bound = {}, GRADIENT_BOUND * (2 if std > 0.1 else 1)
    loss, grads = gradients_of(model, batches[0], packed)
    loss64, grads64 = gradients_of(Exact(model), batches[0], packed)
    report["loss_against_fp64"] = abs(loss - loss64)
    report["gradient_against_fp64"], report["gradient_worst"] = relative(grads, grads64)
    if report["gradient_against_fp64"] > gradient_bound:
        return f"{report}"
    other = gradients_of(model, batches[0], not packed)[1]
    report["packed_against_separate"] = relative(other, grads)[0]
    assert report["packed_against_separate"] < gradient_bound, report
    if model.config.rope_scaling:
        report["rotary_bands"] = check_bands(model.config)

    tensors = {"loss": torch.tensor([loss], dtype=torch.float64),
               "loss_fp64": torch.tensor([loss64], dtype=torch.float64),
               "logits": logits_of(model, batches[0], packed).detach()[:8].contiguous()}
    prompt, continuation = first_clear_greedy(model, batches[0]["tokens"], 16)
    tensors["greedy.prompt"] = prompt.to(torch.int32)
    tensors["greedy.tokens"] = torch.tensor(continuation, dtype=torch.int32)
    for k, batch in enumerate(batches):
        for key, value in batch.items():
            tensors[f"batch{k}.{key}"] = value if value.is_floating_point() else value.to(torch.int32)
    for parameter, grad in grads.items():
        tensors[f"grad.{parameter}"] = grad

    trained = fresh()
    losses, grad_norms, rates = train(trained, batches, packed, hyper)
    delta = change(trained, before)
    report["variants"] = {}
    fused = fresh()
    fused.set_attn_implementation("sdpa")
    for variant, other, cut in (("fp64", Exact(fresh()), packed), ("fused attention", fused, packed),
                                ("other packing", fresh(), not packed)):
        other_losses, _, _ = train(other, batches, cut, hyper)
        distance = dict(change=relative(delta, change(other, before))[0],
                        losses=max(abs(a - b) for a, b in zip(losses, other_losses)))
        report["variants"][variant] = distance
        if variant == "fp64":
            tensors["losses_fp64"] = torch.tensor(other_losses, dtype=torch.float64)
        if distance["change"] > CHANGE_BOUND or distance["losses"] > LOSS_BOUND:
            return f"{variant}: {distance}"
    report["clipped_steps"] = sum(norm > hyper["clip"] for norm in grad_norms)
    assert STEPS // 5 <= report["clipped_steps"] <= 4 * STEPS // 5, sorted(grad_norms)
    controls = {"no weight decay": dict(weight_decay=0.0), "beta2 0.999": dict(beta2=0.999),
                "epsilon 1e-6": dict(epsilon=1e-6), "no clipping": dict(clip=1e9), "no warm-up": dict(warmup=0)}
    report["controls"] = {}
    for control, wrong in controls.items():
        model = fresh()
        wrong_losses, _, _ = train(model, batches, packed, {**hyper, **wrong})
        report["controls"][control] = dict(
            change=relative(change(model, before), delta)[0],
            losses=max(abs(a - b) for a, b in zip(losses, wrong_losses)))

    for parameter, value in trained.named_parameters():
        tensors[f"theta.{parameter}"] = value.detach()
    for key, values in (("losses", losses), ("grad_norms", grad_norms), ("learning_rates", rates)):
        tensors[key] = torch.tensor(values, dtype=torch.float64)
    torch_version = torch.__version__.split("+")[0]
    versions = f"torch {torch_version}, transformers {transformers.__version__}, fp32, eager attention"
    expected = dict(made_by=f"tests/golden/llama.py, {versions}", seed=seed, packed=packed, hyperparameters=hyper,
                    report=report)
    save_file({key: value.contiguous() for key, value in tensors.items()}, directory / "expected.safetensors",
              metadata={"made_by": expected["made_by"], "hyperparameters": json.dumps(hyper)})
    (directory / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    assert load_file(directory / "expected.safetensors").keys() == tensors.keys()

    size = sum(f.stat().st_size for f in directory.iterdir())
    print(f"{name:10} {sum(p.numel() for p in model.parameters()):6} parameters, {size / 1000:.0f} kB, loss {loss:.6f}")
    for key, value in report.items():
        if isinstance(value, dict) and key != "rotary_bands":
            for which, v in value.items():
                print(f"    {key} {which}: change {v['change']:.1e}, losses {v['losses']:.1e}")
        else:
            print(f"    {key}: {value:.2e}" if isinstance(value, float) else f"    {key}: {value}")
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for case in sys.argv[1:] or CASES:
        for seed in SEEDS:
            unfit = make_case(case, seed)
            if unfit is None:
                break
            print(f"{case}: seed {seed} is ill-conditioned, {unfit}")
        else:
            sys.exit(f"{case}: no seed is well-conditioned")
