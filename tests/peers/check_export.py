"""Loads a directory written by `cria export` in transformers and runs it.

python check_export.py DIR ID [ID ...] [--expected FILE] [--save FILE] [--tolerance 1e-5]
  DIR         config.json, model.safetensors (or shards), perhaps tokenizer files
  ID ...      token ids of one sequence
  --expected  a safetensors file with `logits` [T, V], as build/tests/peers/logits writes: compared; exit status 1 where
              they differ by more than the tolerance times the greatest logit (an absolute bound would ask more of large
              logits than fp32 has: near 20, transformers' own fp32 is some 2e-5 from fp64)
  --save      writes the logits found here as such a file
Prints one JSON line: mean negative log-likelihood of ids 2 … T, best next id, differences.
"""

import argparse
import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("ids", type=int, nargs="+")
    parser.add_argument("--expected")
    parser.add_argument("--save")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()

    model, loading = AutoModelForCausalLM.from_pretrained(options.directory, dtype=torch.float32,
                                                          output_loading_info=True)
    problems = [f"{what}: {sorted(names)}" for what, names in loading.items() if names]
    ids = torch.tensor([options.ids])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[0].float()
    result = dict(directory=options.directory, tokens=ids.shape[1], vocabulary=logits.shape[1],
                  best_next=logits[-1].argmax().item(), greatest=round(logits.abs().max().item(), 4))
    if ids.shape[1] > 1:
        result["loss"] = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:]).item()
    if options.save:
        save_file({"logits": logits.contiguous()}, options.save)
    if options.expected:
        expected = load_file(options.expected)["logits"]
        n = min(len(expected), len(logits))
        if expected.shape[1] != logits.shape[1]:
            problems.append(f"expected logits have {expected.shape[1]} columns")
        else:
            result["compared"], result["difference"] = n, (logits[:n] - expected[:n]).abs().max().item()
            result["relative"] = result["difference"] / expected[:n].abs().max().item()
            if not result["relative"] <= options.tolerance:
                problems.append(f"logits differ by {result['relative']:.3g} of the greatest")
    result["problems"] = problems
    print(json.dumps(result))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
