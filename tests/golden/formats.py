"""Writes formats.safetensors, formats.h5 and formats_config.json for tests/test_formats.c.

Made with safetensors 0.8.0, torch 2.13, h5py 3.16.0 (HDF5 2.0.0) and transformers 4.57.6:
    python tests/golden/formats.py
Element i of every array is (i - 5) * 0.375 (whole numbers: i - 5; unsigned: i), exact in every dtype.
"""
import json
import os

import h5py
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

here = os.path.dirname(os.path.abspath(__file__))
ramp = (torch.arange(24, dtype=torch.float64) - 5).reshape(2, 3, 4)

tensors = {
    "layer.f32": (ramp * 0.375).float(),
    "layer.bf16": (ramp * 0.375).bfloat16(),
    "layer.f16": (ramp * 0.375).half(),
    "layer.f64": ramp * 0.375,
    "layer.i32": ramp.int(),
    "layer.i64": ramp.long(),
    "layer.u8": (ramp + 5).to(torch.uint8),
    "layer.bool": ramp > 0,
    "layer.f8": (ramp * 0.375).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(0.375),
    "empty": torch.zeros(0, 3),
    "größe": torch.tensor([0.375]),
}
save_file(tensors, os.path.join(here, "formats.safetensors"), metadata={"format": "pt", "note": "é"})

with h5py.File(os.path.join(here, "formats.h5"), "w") as f:
    x = (ramp * 0.375).numpy()
    f["layer.f32"] = x.astype("<f4")
    f["layer.f16"] = x.astype("<f2")
    f["layer.f64"] = x
    f["layer.big_endian"] = x.astype(">f4")
    f["layer.i32"] = ramp.int().numpy()
    f["layer.i64"] = ramp.long().numpy()
    f["layer.u8"] = (ramp + 5).numpy().astype("u1")
    f["layer.i8"] = ramp.numpy().astype("i1")
    f.create_dataset("layer.gzip", data=x.astype("<f4"), chunks=(1, 2, 3), compression="gzip")
    f["group/inside"] = x.astype("<f4")
    f["scalar"] = np.float32(0.375)
    f["empty"] = np.zeros((0, 3), "<f4")
    f["text"] = "a string dataset"
    f["link"] = h5py.ExternalLink("/etc/passwd", "/")
    f.attrs["note"] = "é"
    f.attrs["fixed"] = np.bytes_("abc")
    f.attrs["number"] = 3

LlamaConfig(
    hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    vocab_size=128256, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0, bos_token_id=128000,
    eos_token_id=[128001, 128008, 128009], tie_word_embeddings=True, torch_dtype="bfloat16", head_dim=32,
    rope_scaling={"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 8192},
).to_json_file(os.path.join(here, "formats_config.json"), use_diff=False)
