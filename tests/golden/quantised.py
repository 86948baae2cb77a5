"""Golden values of NF4 with double quantisation: tests/golden/quantised.safetensors, made by bitsandbytes on a CPU.

For each case, a matrix as Linear4bit quantises it (blocks of 64, compress_statistics=True):

  CASE.values        [rows, cols]  what was quantised
  CASE.codes         [n/2] uint8   two to a byte
  CASE.absmax        [blocks] fp32 of every block, as it is without double quantisation
  CASE.scale_codes   [blocks] uint8, CASE.scales [groups] fp32, CASE.offset [1] fp32
  CASE.dequantised   [rows, cols] fp32, and in bf16 as CASE.dequantised_bf16

Cases: `heavy` has more than one group of 256 blocks, elements of a heavy-tailed distribution and blocks of very
different sizes; `odd` ends in the middle of a block and of a byte; `zeros` has blocks of zeros, one of them not whole,
and a group whose scales are all alike. (Widths that are a multiple of 16 but not of 64 are left out: bitsandbytes' AVX-512
path takes the wrong block's scale there.)

Made with torch 2.13.0, bitsandbytes 0.50.2. Run: python tests/golden/quantised.py
"""

from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

torch.manual_seed(1)
torch.set_num_threads(1)
heavy = torch.distributions.StudentT(3.0).sample((160, 128)) * 0.02
heavy = heavy * torch.exp(torch.randn(160, 2)).repeat_interleave(64, 1)
zeros = torch.randn(3, 77) * 0.1
zeros.view(-1)[64:128] = 0
zeros.view(-1)[192:] = 0
CASES = {"heavy": heavy.bfloat16(), "odd": torch.randn(5, 77) * 0.02, "zeros": zeros, "alike": torch.ones(2, 64)}

arrays = {}
for name, values in CASES.items():
    wide = values.float()
    _, plain = F.quantize_4bit(wide, blocksize=64, quant_type="nf4", compress_statistics=False)
    codes, state = F.quantize_4bit(wide, blocksize=64, quant_type="nf4", compress_statistics=True)
    dequantised = F.dequantize_4bit(codes, state)
    state.dtype = torch.bfloat16
    parts = dict(values=values, codes=codes.flatten(), absmax=plain.absmax, scale_codes=state.absmax,
                 scales=state.state2.absmax, offset=state.offset.reshape(1), dequantised=dequantised,
                 dequantised_bf16=F.dequantize_4bit(codes, state))
    arrays.update({f"{name}.{key}": value.contiguous() for key, value in parts.items()})
made_by = f"tests/golden/quantised.py, torch {torch.__version__.split('+')[0]}, bitsandbytes {bitsandbytes.__version__}"
save_file(arrays, Path(__file__).parent / "quantised.safetensors", metadata={"made_by": made_by})
