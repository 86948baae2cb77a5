"""Golden values of PPO: TRL 0.24's PPOTrainer (TRL 1 has none any more) on small random Llamas and fixed samples.

The directory ppo_train_trl/ beside this file: value.safetensors (the value model, fp32; the policy and its reference
are policy_trl/'s base), samples.json (for every rollout the prompts, completions and scores) and for each case
NAME.json (its options, the loss of every update and the logged metrics of every rollout) with NAME.safetensors
(gradients of the first update, as grad.policy.* and grad.value.*, and the parameters after the last as policy.* and
value.*).

The trainer's own code does all but what is drawn: batches, completions, scores and the order of minibatches are put in
its way (the order as cria draws it: ORDERS, by rollout and epoch). Some of its means are over padding too
(policy/approxkl_avg, val/ratio; objective/entropy, where each token of it counts as one of log-probability 1); `width`
says how much there was. policy/entropy_avg is left out: it is the entropy of
what follows the padding as well. The completion that fills the width is the only one that does not end by itself: TRL
puts the score behind the last token where there is padding, cria where the answer has ended.

Wanted: torch, transformers, accelerate, pandas, and trl==0.24 before any other on PYTHONPATH.
Made with TRL 0.24.0, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/ppo_train_trl.py
"""

import json
import os
import pathlib
import random
import sys

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl import PPOConfig, PPOTrainer
from trl.trainer import ppo_trainer

from trl_recipe import word_tokenizer

HERE = pathlib.Path(__file__).parent
OUT, BASE = HERE / "ppo_train_trl", HERE / "policy_trl"
ROLLOUTS, PROMPTS, VOCAB, PAD, EOS, LONGEST = 5, 8, 48, 1, 2, 10
RATE, DECAY, BETAS = 4e-3, 0.1, (0.9, 0.95)

# Of cria's prompts with seed 0: ORDERS[rollout][epoch].
ORDERS = json.loads((OUT / "orders.json").read_text())

CASES = {
    "plain": dict(num_ppo_epochs=4),
    "minibatches": dict(num_ppo_epochs=2, num_mini_batches=2, kl_estimator="k3", kl_coef=0.2, gamma=0.98, lam=0.9,
                        vf_coef=0.5, cliprange=0.1, cliprange_value=0.05, temperature=0.7),
    "whitened": dict(num_ppo_epochs=4, whiten_rewards=True, missing_eos_penalty=1.0, cliprange_value=0.1, vf_coef=0.2),
}


class Judge(torch.nn.Module):
    """In the reward model's place."""


def make_value():
    torch.manual_seed(31)
    model = LlamaForSequenceClassification(LlamaConfig.from_pretrained(BASE, num_labels=1)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter)) if parameter.dim() == 1 else parameter.normal_(0, 0.2)
    save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, OUT / "value.safetensors")


def make_samples():
    draw = random.Random(11)
    rollouts = []
    for _ in range(ROLLOUTS):
        prompts = [[draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 6))] for _ in range(PROMPTS)]
        completions = []
        for p in range(PROMPTS):
            n = LONGEST if p == 0 else draw.randint(0, LONGEST - 2)
            ids = [draw.randrange(3, VOCAB) for _ in range(n)]
            completions.append(ids if n == LONGEST else ids + [EOS])
        rollouts.append(dict(prompts=prompts, completions=completions,
                             scores=[round(draw.uniform(-2, 2), 3) for _ in range(PROMPTS)]))
    (OUT / "samples.json").write_text(json.dumps(dict(samples_per_prompt=1, rollouts=rollouts)) + "\n")
    return rollouts


def pad(rows, width, left):
    return torch.tensor([[PAD] * (width - len(r)) * left + r + [PAD] * (width - len(r)) * (not left) for r in rows])


def run_case(name, options, rollouts):
    options = dict(num_mini_batches=1, temperature=1.0) | options
    policy = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")
    reference = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")
    value = LlamaForSequenceClassification(LlamaConfig.from_pretrained(BASE, num_labels=1, attn_implementation="eager"))
    value.load_state_dict(load_file(OUT / "value.safetensors"))
    args = PPOConfig(
        output_dir="/tmp/ppo_train_trl", total_episodes=ROLLOUTS * PROMPTS, gradient_accumulation_steps=1,
        per_device_train_batch_size=PROMPTS, local_rollout_forward_batch_size=PROMPTS,
        num_sample_generations=0, response_length=LONGEST, learning_rate=RATE, lr_scheduler_type="constant",
        warmup_steps=0, weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=1e-8,
        optim="adamw_torch", logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, fp16=False,
        gradient_checkpointing=False, seed=1, disable_tqdm=True, **options)
    made, epochs, losses, gradients, rows = [], [], [], {}, []

    def batch_generation(model, queries, size, pad_token_id, generation_config):
        rollout = rollouts[len(made)]
        made.append(rollout)
        sequences = torch.cat([queries, pad(rollout["completions"], LONGEST, False)], 1)
        logits = ppo_trainer.forward(model, sequences, pad_token_id).logits[:, queries.shape[1] - 1:-1]
        return sequences, logits / (args.temperature + 1e-7)

    get_reward = ppo_trainer.__dict__.get("true_get_reward") or ppo_trainer.get_reward
    ppo_trainer.true_get_reward = get_reward

    def judge(model, query_responses, pad_token_id, context_length):
        if not isinstance(model, Judge):
            return get_reward(model, query_responses, pad_token_id, context_length)
        return None, torch.tensor(made[-1]["scores"]), None

    def permutation(n):
        epoch = len(epochs)
        epochs.append(epoch)
        return ORDERS[epoch // args.num_ppo_epochs][epoch % args.num_ppo_epochs]

    ppo_trainer.batch_generation, ppo_trainer.get_reward = batch_generation, judge
    ppo_trainer.np.random.permutation = permutation
    data = Dataset.from_list([dict(input_ids=[3])] * (PROMPTS * ROLLOUTS))
    trainer = PPOTrainer(args=args, processing_class=word_tokenizer(VOCAB, PAD, EOS), model=policy, ref_model=reference,
                         reward_model=Judge(), train_dataset=data, eval_dataset=data, value_model=value)
    width = max(len(p) for r in rollouts for p in r["prompts"])
    trainer.dataloader = [dict(input_ids=pad(r["prompts"], width, True)) for r in rollouts]
    backward = trainer.accelerator.backward

    def keep(loss, **more):
        losses.append(loss.item())
        backward(loss, **more)
        if not gradients:
            gradients.update({"grad.policy." + n: p.grad.clone() for n, p in policy.named_parameters()})
            gradients.update({"grad.value." + n: p.grad.clone() for n, p in value.named_parameters()})

    trainer.accelerator.backward = keep
    trainer.log = lambda metrics, *more: rows.append(dict(metrics))
    trainer.train()
    arrays = {"policy." + n: p.detach().contiguous() for n, p in policy.named_parameters()}
    arrays |= {"value." + n: p.detach().contiguous() for n, p in value.named_parameters()}
    save_file(gradients | arrays, OUT / f"{name}.safetensors")
    skipped = {"eps", "lr", "episode", "policy/entropy_avg"}
    (OUT / f"{name}.json").write_text(json.dumps(dict(
        versions=dict(trl=trl.__version__, torch=torch.__version__, transformers=transformers.__version__),
        options=options, width=LONGEST, losses=losses,
        metrics=[{k: v for k, v in row.items() if k not in skipped} for row in rows]), indent=1) + "\n")
    print(name, len(losses), "updates, losses", losses[0], losses[-1], rows[0], rows[-1])


def main():
    OUT.mkdir(exist_ok=True)
    make_value()
    rollouts = make_samples()
    for name in sys.argv[1:] or CASES:
        run_case(name, CASES[name], rollouts)


if __name__ == "__main__":
    main()
