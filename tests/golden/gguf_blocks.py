"""Makes tests/golden/gguf_blocks.h: blocks of 32 numbers and the bytes that gguf-py's quantisers make of them.

    python tests/golden/gguf_blocks.py > tests/golden/gguf_blocks.h
"""
import importlib.metadata
import struct

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

ROWS = 24


def rows():
    """Integers over powers of two, so that they are exact; then rows with halves, zeros, equal and tiny numbers."""
    x = np.empty((ROWS, 32), np.float32)
    for r in range(ROWS):
        for i in range(32):
            x[r, i] = ((r * 7919 + i * 104729) % 4093 - 2046) / 1024 * 2.0 ** (r % 13 - 6)
    x[0] = 0
    x[1] = -0.0
    x[2] = np.arange(32) - 15.5  # halves
    x[3] = [127 if i == 0 else i - 16 + 0.5 for i in range(32)]  # scale 1: ties away from zero
    x[4] = [(-8 if i == 0 else (i - 16) / 2) for i in range(32)]
    x[5] = [1 if i % 2 else -1 for i in range(32)]  # equal magnitudes: the first counts
    x[6] = x[6] * 2.0**-30  # the scale underflows in fp16
    x[7] = x[7] * 2.0**-18  # … is subnormal
    return x


x = rows()
print("/* Made by tests/golden/gguf_blocks.py with gguf-py %s, numpy %s: do not edit. */"
      % (importlib.metadata.version("gguf"), np.__version__))
print("enum { GOLDEN_ROWS = %d };" % ROWS)
print("static const uint32_t golden_numbers[GOLDEN_ROWS][32] = {")
for row in x:
    print("    {%s}," % ", ".join("0x%08x" % struct.unpack("<I", struct.pack("<f", v))[0] for v in row))
print("};")
for name, kind in (("q8_0", Type.Q8_0), ("q4_0", Type.Q4_0), ("f16", Type.F16), ("bf16", Type.BF16)):
    data = quants.quantize(x, kind).view(np.uint8).reshape(ROWS, -1)
    print("static const unsigned char golden_%s[GOLDEN_ROWS][%d] = {" % (name, data.shape[1]))
    for row in data:
        print("    {%s}," % ", ".join(str(v) for v in row))
    print("};")
