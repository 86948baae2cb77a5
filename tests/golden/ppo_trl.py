"""Golden values of PPO: TRL 0.24's own lines on fixed samples (TRL 1 has no PPO any more).

Writes ppo_trl.json beside this file: for two batches of answers the rewards, advantages and returns; for random ratios
and values the clipped losses, their gradients and what is clipped; and one whitening.

PPOTrainer.train holds its mathematics in its body, so the lines from "# 4. compute rewards" to the advantages, and
those of the losses, are taken out of the installed source and run as they are, on padded batches as the trainer has
them. Wanted: trl==0.24 anywhere (it is read, not imported) and torch.

Made with TRL 0.24.0 and torch 2.13.0. Run: python tests/golden/ppo_trl.py DIRECTORY_OF_TRL_0.24
"""

import ast
import json
import pathlib
import sys
import textwrap
import types

import torch

PACKAGE = pathlib.Path(sys.argv[1])
SOURCE = (PACKAGE / "trainer" / "ppo_trainer.py").read_text()
INVALID = 1.0


def helpers():
    names, space = {"masked_mean", "masked_var", "masked_whiten"}, dict(torch=torch, Optional=None)
    space["Optional"] = __import__("typing").Optional
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in names and node.name not in space:
                exec(ast.unparse(node), space)
    return space


def lines(begin, end):
    first = SOURCE.index(begin)
    first = SOURCE.rindex("\n", 0, first) + 1
    last = SOURCE.index(end, first)
    return textwrap.dedent(SOURCE[first:SOURCE.rindex("\n", 0, last) + 1])


REWARDS = lines("# 4. compute rewards", "empty_cache()\n\n            # Do multiple epochs")
LOSSES = lines("vpredclipped = torch.clamp(", "loss = pg_loss + args.vf_coef")
CLIPPED = "pg_clipped = (pg_losses2 > pg_losses)\nvf_clipped = (vf_losses2 > vf_losses1)\n"


def batch(space, lengths, width, **options):
    args = types.SimpleNamespace(**options)
    n = len(lengths)
    valid = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    logprobs, ref_logprobs, values = -torch.rand(n, width) * 3, -torch.rand(n, width) * 3, torch.randn(n, width)
    sequence_lengths = torch.tensor(lengths) - 1
    padding_mask = ~valid
    padding_mask_p1 = torch.arange(width)[None] > (sequence_lengths + 1)[:, None]
    scores = torch.randn(n)
    here = dict(space, args=args, scores=scores, responses=torch.zeros(n, width, dtype=torch.long),
                sequence_lengths_p1=sequence_lengths + 1, sequence_lengths=sequence_lengths, padding_mask=padding_mask,
                padding_mask_p1=padding_mask_p1, logprobs=torch.masked_fill(logprobs, padding_mask, INVALID),
                ref_logprobs=torch.masked_fill(ref_logprobs, padding_mask, INVALID),
                values=torch.masked_fill(values, padding_mask_p1, 0))
    exec(REWARDS, here)
    answers = []
    for i, length in enumerate(lengths):
        behind = min(length + 1, width)  # values, one behind the stop token where there is room for it
        answers.append(dict(
            logprobs=logprobs[i, :length].tolist(), references=ref_logprobs[i, :length].tolist(),
            values=values[i, :behind].tolist(), score=scores[i].item(), kl=args.kl_estimator, kl_coef=args.kl_coef,
            gamma=args.gamma, **{"lambda": args.lam}, rewards=here["rewards"][i, :behind].tolist(),
            advantages=here["advantages"][i, :length].tolist(), returns=here["returns"][i, :behind].tolist()))
    return dict(answers=answers)


def losses(space, n):
    rows = []
    args = types.SimpleNamespace(cliprange=0.2, cliprange_value=0.2)
    for _ in range(n):
        new = (torch.randn(1, 1) * 0.5).requires_grad_()
        vpred = torch.randn(1, 1).requires_grad_()
        old, target, advantage = vpred.detach() + torch.randn(1, 1) * 0.3, torch.randn(1, 1), torch.randn(1, 1)
        none = torch.zeros(1, 1, dtype=torch.bool)
        here = dict(space, args=args, vpred=vpred, mb_values=old, mb_return=target, mb_advantage=advantage,
                    new_logprobs=new, mb_logprobs=torch.zeros(1, 1), padding_mask=none, padding_mask_p1=none,
                    micro_batch_inds=[0])
        exec(LOSSES, here)
        exec(CLIPPED, here)
        here["pg_loss"].backward()
        here["vf_loss"].backward()
        rows.append(dict(
            log_ratio=new.item(), advantage=advantage.item(), policy_loss=here["pg_loss"].item(),
            policy_gradient=new.grad.item(), policy_clipped=float(here["pg_clipped"]), value=vpred.item(),
            old_value=old.item(), target=target.item(), value_loss=here["vf_loss"].item(),
            value_gradient=vpred.grad.item(), value_clipped=float(here["vf_clipped"])))
    return rows


def main():
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    space = helpers()
    x = torch.randn(20) * 3 + 1
    kept = space["masked_whiten"](x[None], torch.ones(1, 20), shift_mean=False)[0]
    golden = dict(
        versions=dict(trl="0.24.0", torch=torch.__version__),
        batches=[batch(space, [3, 8, 1, 5], 8, kl_estimator="k1", kl_coef=0.05, whiten_rewards=False, gamma=1.0,
                       lam=0.95),
                 batch(space, [2, 6, 4, 7, 1], 9, kl_estimator="k3", kl_coef=0.2, whiten_rewards=False, gamma=0.9,
                       lam=0.8)],
        losses=losses(space, 120), whiten=dict(x=x.tolist(), kept=kept.tolist()))
    (pathlib.Path(__file__).parent / "ppo_trl.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
