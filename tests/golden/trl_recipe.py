"""What the goldens of TRL's trainers share: the recipe, the tokenizer, small random models, and a trainer that keeps what
TRL's log rounds."""

import json
import pathlib

import torch
import transformers
import trl
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
STEPS, RATE, DECAY, BETAS = 20, 2e-3, 0.1, (0.9, 0.95)


def arguments(config, name, batch, **options):
    """AdamW of torch, constant learning rate, clipping at 1; `config` is TRL's class of them."""
    return config(
        output_dir=f"/tmp/{name}", max_steps=STEPS, per_device_train_batch_size=batch, learning_rate=RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_epsilon=1e-8, max_grad_norm=1.0, optim="adamw_torch", logging_steps=1, max_length=128, report_to=[],
        save_strategy="no", use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, seed=1, **options)


def llama3_tokenizer():
    """With the Llama 3 chat template as cria writes it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer_chat.json"),
                                        bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
                                        pad_token="<|end_of_text|>")
    tokenizer.chat_template = (HERE / "sft_trl" / "chat_template.jinja").read_text()
    return tokenizer


def word_tokenizer(vocab, pad, eos):
    """Of words w0, w1, …; two of them are special."""
    words = {f"w{i}": i for i in range(vocab)}
    words["<pad>"], words["<eos>"] = words.pop(f"w{pad}"), words.pop(f"w{eos}")
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def small_llama(kind, vocab, seed, tied, **config):
    """`kind` is a class of transformers."""
    torch.manual_seed(seed)
    model = kind(LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
        vocab_size=vocab, rms_norm_eps=1e-5, max_position_embeddings=256, rope_theta=10000.0, tie_word_embeddings=tied,
        use_cache=False, attn_implementation="eager", bos_token_id=440, eos_token_id=441, **config)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter)) if parameter.dim() == 1 else parameter.normal_(0, 0.2)
    return model


def parameters(model):
    return {name: p.detach().clone().contiguous() for name, p in model.named_parameters()}


def save_base(model, directory):
    model.save_pretrained(directory, safe_serialization=True)
    (directory / "generation_config.json").unlink(missing_ok=True)


def message(role, content):
    return {"role": role, "content": content}


def write_records(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_expected(path, **values):
    versions = dict(trl=trl.__version__, torch=torch.__version__, transformers=transformers.__version__)
    path.write_text(json.dumps(dict(versions=versions, **values), indent=1) + "\n")


def recorder(trainer):
    """That trainer, which keeps every loss, every row it logs, and the first gradient before it is clipped."""

    class Recorder(trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.losses, self.rows, self.gradient = [], [], None

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            result = super().compute_loss(model, inputs, return_outputs=return_outputs,
                                          num_items_in_batch=num_items_in_batch)
            self.losses.append(float((result[0] if return_outputs else result).detach()))
            return result

        def training_step(self, *args, **kwargs):
            result = super().training_step(*args, **kwargs)
            if self.gradient is None:
                self.gradient = {"gradient." + name: p.grad.detach().clone().contiguous()
                                 for name, p in self.model.named_parameters()}
            return result

        def log(self, logs, start_time=None):
            if "grad_norm" in logs:
                row = {key: sum(values) / len(values) for key, values in self._metrics["train"].items()}
                self.rows.append(dict(row, grad_norm=float(logs["grad_norm"])))
            super().log(logs, start_time)

        def steps(self, parts=1):
            """Rows with the exact loss, a step's the mean of its micro-batches'."""
            losses = [sum(self.losses[i:i + parts]) / parts for i in range(0, len(self.losses), parts)]
            return [dict(row, loss=loss) for row, loss in zip(self.rows, losses, strict=True)]

    return Recorder
