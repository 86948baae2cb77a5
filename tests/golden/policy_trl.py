"""Golden values of GRPO and RLOO: TRL's trainers on a small random Llama and fixed samples.

The directory policy_trl/ beside this file: config.json and model.safetensors (the base, fp32), samples.json (for every
rollout the prompts, completions and scores; a null score could not be judged), and for each case NAME.json (its
options, the loss and the logged metrics of every step) with NAME.safetensors (gradients of the first step before
clipping, as grad.*, and the parameters after the last).

TRL's own code does all but the sampling: prompts, completions and scores are put in its way. Every rollout is one
batch without accumulation. AdamW of torch, constant learning rate, clipping at 1.

Made with TRL 1.16, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/policy_trl.py
"""

import json
import pathlib
import random
import sys

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from trl_recipe import word_tokenizer

OUT = pathlib.Path(__file__).parent / "policy_trl"
VOCAB, PAD, EOS, LONGEST, STEPS = 48, 1, 2, 10, 20
PROMPTS, SAMPLES = 3, 4
RATE, DECAY, BETAS = 4e-3, 0.1, (0.9, 0.95)

CASES = {
    "dapo": dict(algorithm="grpo"),
    "grpo": dict(algorithm="grpo", loss_type="grpo", beta=0.04, num_iterations=2, epsilon=0.1, epsilon_high=0.28),
    "bnpo": dict(algorithm="grpo", loss_type="bnpo", scale_rewards="batch", beta=0.1, num_iterations=4, epsilon=0.05,
                 use_bias_correction_kl=False),
    "dr_grpo": dict(algorithm="grpo", loss_type="dr_grpo", scale_rewards="none", temperature=0.7),
    "rloo": dict(algorithm="rloo", beta=0.05, num_iterations=4, epsilon=0.1),
    # In fp32 whitening leaves 1e-9 where a group's advantages are 0, and epsilon 1e-8 would make steps of that noise.
    "rloo_normalised": dict(algorithm="rloo", beta=0.0, normalize_advantages=True, temperature=1.3, adam_epsilon=1e-5),
}


def make_model():
    torch.manual_seed(23)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
        vocab_size=VOCAB, rms_norm_eps=1e-5, max_position_embeddings=64, rope_theta=10000.0,
        tie_word_embeddings=False, use_cache=False, bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter)) if parameter.dim() == 1 else parameter.normal_(0, 0.2)
    model.save_pretrained(OUT, safe_serialization=True)
    (OUT / "generation_config.json").unlink(missing_ok=True)


def make_samples():
    """Groups with a completion of one token, with none that ends, with equal scores, with one that is not judged."""
    draw = random.Random(5)
    rollouts = []
    for r in range(STEPS):
        prompts = [[draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 6))] for _ in range(PROMPTS)]
        completions, scores = [], []
        for p in range(PROMPTS):
            for k in range(SAMPLES):
                n = LONGEST if (p, k) == (0, 0) else draw.randint(0, LONGEST - 1)
                ids = [draw.randrange(3, VOCAB) for _ in range(n)]
                completions.append(ids if n == LONGEST else ids + [EOS])
                scores.append(1.0 if p == 1 and r % 3 == 0 else round(draw.uniform(-1, 1), 3))
        if r % 4 == 2:
            scores[PROMPTS * SAMPLES - 1] = None
        rollouts.append(dict(prompts=prompts, completions=completions, scores=scores))
    (OUT / "samples.json").write_text(json.dumps(dict(samples_per_prompt=SAMPLES, rollouts=rollouts)) + "\n")
    return rollouts


def recorder(trainer_class, rollouts):
    class Recorder(trainer_class):
        def _tokenize_prompts(self, prompts):
            rollout = self.rollout = rollouts[self.made]
            self.made += 1
            return [p for p in rollout["prompts"] for _ in range(SAMPLES)], None, {}

        def _generate_single_turn(self, *arguments, **more):
            completions = [list(c) for c in self.rollout["completions"]]
            return (completions, None) if trainer_class is GRPOTrainer else completions

        def compute_loss(self, *arguments, **more):
            loss = super().compute_loss(*arguments, **more)
            self.losses.append(float(loss.detach()))
            return loss

        def training_step(self, model, *arguments, **more):
            result = super().training_step(model, *arguments, **more)
            if not self.gradients:
                self.gradients = {"grad." + name: p.grad.clone() for name, p in model.named_parameters()}
            return result

    Recorder.made, Recorder.losses, Recorder.gradients = 0, [], {}
    return Recorder


def run_case(name, options, rollouts):
    options = dict(options)
    algorithm = options.pop("algorithm")
    config_class, trainer_class = dict(grpo=(GRPOConfig, GRPOTrainer), rloo=(RLOOConfig, RLOOTrainer))[algorithm]
    kind = recorder(trainer_class, rollouts)

    def score(prompts, completions, **more):
        return instance[0].rollout["scores"]

    score.__name__ = "score"
    args = config_class(
        output_dir="/tmp/policy_trl", max_steps=STEPS, per_device_train_batch_size=PROMPTS * SAMPLES,
        gradient_accumulation_steps=1, num_generations=SAMPLES, max_completion_length=LONGEST, learning_rate=RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        max_grad_norm=1.0, optim="adamw_torch", logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, seed=1, shuffle_dataset=False,
        model_init_kwargs=dict(dtype="float32", attn_implementation="eager"), disable_tqdm=True, **(dict(adam_epsilon=1e-8) | options))
    data = Dataset.from_list([dict(prompt="w3")] * (PROMPTS * STEPS))
    trainer = kind(model=str(OUT), reward_funcs=score, args=args, train_dataset=data, processing_class=word_tokenizer(VOCAB, PAD, EOS))
    instance = [trainer]
    trainer.train()
    logs = [row for row in trainer.state.log_history if "grad_norm" in row]
    skipped = {"epoch", "step", "step_time", "loss"}
    arrays = {n: p.detach().contiguous() for n, p in trainer.model.named_parameters()}
    save_file(trainer.gradients | arrays, OUT / f"{name}.safetensors")
    (OUT / f"{name}.json").write_text(json.dumps(dict(
        versions=dict(trl=trl.__version__, torch=torch.__version__, transformers=transformers.__version__),
        algorithm=algorithm, options=options, rollouts=trainer.made, losses=trainer.losses,
        metrics=[{k: v for k, v in row.items() if k not in skipped} for row in logs]), indent=1) + "\n")
    assert len(trainer.losses) == len(logs) == STEPS
    print(name, trainer.made, "rollouts, loss", trainer.losses[0], trainer.losses[-1], {
        k: v for k, v in logs[-1].items() if "clip_ratio" in k or k == "kl"})


def main():
    OUT.mkdir(exist_ok=True)
    make_model()
    rollouts = make_samples()
    for name in sys.argv[1:] or CASES:
        options = CASES[name]
        run_case(name, options, rollouts)


if __name__ == "__main__":
    main()
