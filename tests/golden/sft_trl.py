"""Golden values of full fine-tuning: TRL's SFTTrainer on a small random Llama and eight conversations.

The directory sft_trl/ beside this file: config.json and model.safetensors (the base, fp32), records.jsonl, and
expected.json (the loss and the gradient's norm of every step, what made them) with expected.safetensors (the parameters
after the last step).

Every step is all eight records (two micro-batches of four, accumulated), so their order does not matter. TRL renders
them with the Llama 3 chat template as cria writes it (chat_template.jinja in the directory), tokenises with
tokenizer_chat.json, and masks prompts (completion_only_loss). AdamW of torch, constant learning rate, clipping at 1.

Made with TRL 1.16, torch 2.13.0 and transformers 5.24.0. Run: python tests/golden/sft_trl.py, after
`cria data show tests/golden/tokenizer_chat.json … --template llama3 --jinja` has written chat_template.jinja.
"""

import json

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
from trl_recipe import HERE, STEPS, arguments, llama3_tokenizer

OUT = HERE / "sft_trl"

RECORDS = [
    {"prompt": [{"role": "user", "content": "What is two and two?"}],
     "completion": [{"role": "assistant", "content": "Four."}]},
    {"prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Name a colour, please."}],
     "completion": [{"role": "assistant", "content": "Blue is one of them, and so is green."}]},
    {"prompt": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
                {"role": "user", "content": "three"}], "completion": [{"role": "assistant", "content": "four"}]},
    {"prompt": [{"role": "user", "content": "Say [INST]."}],
     "completion": [{"role": "assistant", "content": "I would rather not say that."}]},
    {"prompt": [{"role": "user", "content": "a longer question, with several words in it, so that lengths differ"}],
     "completion": [{"role": "assistant", "content": "ok"}]},
    {"prompt": [{"role": "user", "content": "count"}],
     "completion": [{"role": "assistant", "content": "1 2 3 4 5 6 7 8 9 10 11 12"}]},
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello there!"}]},
    {"prompt": [{"role": "user", "content": "Write\ntwo lines"}],
     "completion": [{"role": "assistant", "content": "the first\nthe second"}]},
]


def make_model(vocab):
    torch.manual_seed(17)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=44,
        vocab_size=vocab, rms_norm_eps=1e-5, max_position_embeddings=256, rope_theta=10000.0, tie_word_embeddings=False,
        use_cache=False, attn_implementation="eager", bos_token_id=440, eos_token_id=441)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter)) if parameter.dim() == 1 else parameter.normal_(0, 0.1)
    return model


class Recorder(SFTTrainer):
    """Keeps the exact losses: the log rounds them. A step's is the sum of its micro-batches', which share one Σw."""

    losses = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs=return_outputs,
                                      num_items_in_batch=num_items_in_batch)
        self.losses.append(float((result[0] if return_outputs else result).detach()))
        return result


def main():
    OUT.mkdir(exist_ok=True)
    tokenizer = llama3_tokenizer()
    (OUT / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    model = make_model(len(tokenizer))
    model.save_pretrained(OUT, safe_serialization=True)
    (OUT / "generation_config.json").unlink(missing_ok=True)
    args = arguments(SFTConfig, "sft_trl", 4, gradient_accumulation_steps=2, completion_only_loss=True, packing=False)
    trainer = Recorder(model=model, args=args, train_dataset=Dataset.from_list(RECORDS), processing_class=tokenizer)
    trainer.train()
    losses = [sum(Recorder.losses[i:i + 2]) for i in range(0, 2 * STEPS, 2)]
    logs = [row for row in trainer.state.log_history if "grad_norm" in row]
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, OUT / "expected.safetensors")
    (OUT / "expected.json").write_text(json.dumps(dict(
        versions=dict(trl=trl.__version__, torch=torch.__version__, transformers=transformers.__version__),
        losses=losses, grad_norms=[row["grad_norm"] for row in logs],
        entropies=[row.get("entropy") for row in logs],
        accuracies=[row.get("mean_token_accuracy") for row in logs]), indent=1) + "\n")


if __name__ == "__main__":
    main()
