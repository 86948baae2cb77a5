"""Reads a cria checkpoint with h5py alone: every dataset and every attribute, as any other program would.

python check_checkpoint.py FILE.h5 [--against DIR_OR_SAFETENSORS] [--list]
  --against   every tensor of these safetensors must be in the checkpoint, equal after rounding to fp32
Prints one JSON line; exit status 1 where something is unreadable, not finite, or different.
"""

import argparse
import json
import pathlib
import sys

import h5py
import numpy as np
from safetensors import safe_open


def tensors_in(path):
    path = pathlib.Path(path)
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name).float().numpy()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--against")
    parser.add_argument("--list", action="store_true", help="a line for each dataset")
    options = parser.parse_args()
    problems, kinds, elements = [], {}, 0
    with h5py.File(options.file, "r") as file:
        datasets = {}
        file.visititems(lambda name, item: datasets.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        for name, dataset in datasets.items():
            values = dataset[()]
            kind = str(dataset.dtype) + (" (bf16)" if is_bf16(dataset) else "")
            kinds[kind] = kinds.get(kind, 0) + 1
            elements += dataset.size
            if np.issubdtype(dataset.dtype, np.floating):
                mean = float(np.mean(values, dtype=np.float64)) if dataset.size else 0.0
                if not np.all(np.isfinite(values)):
                    problems.append(f"{name} has values that are not finite")
            else:
                mean = None
            if options.list:
                print(f"{name:60} {kind:16} {str(dataset.shape):16} {'' if mean is None else f'mean {mean:.6g}'}")
        compared = 0
        for name, expected in tensors_in(options.against) if options.against else []:
            if name not in datasets:
                problems.append(f"{name} is missing")
            elif datasets[name].shape != expected.shape:
                problems.append(f"{name} is {datasets[name].shape}, not {expected.shape}")
            elif not np.array_equal(np.asarray(datasets[name][()], dtype=np.float32), expected):
                problems.append(f"{name} has other values")
            compared += 1
        attributes = {key: len(str(value)) for key, value in file.attrs.items()}
    if options.against and compared == 0:
        problems.append(f"{options.against} holds no tensors")
    print(json.dumps(dict(file=options.file, datasets=len(datasets), elements=elements, types=kinds,
                          attributes=attributes, compared=compared, problems=problems)))
    return 1 if problems else 0


def is_bf16(dataset):
    """A float of two bytes with 8 bits of exponent and 7 of mantissa."""
    stored = dataset.id.get_type()
    return (stored.get_class() == h5py.h5t.FLOAT and stored.get_size() == 2
            and stored.get_fields() == (15, 7, 8, 0, 7))


if __name__ == "__main__":
    sys.exit(main())
