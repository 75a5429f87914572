"""Writes a checkpoint that answers exactly as a small one does, at the cost of a larger one.

    python bench/widen.py pronghorn/bundled/pronghorn-tiny wide [--hidden 3] [--layers 30]

What speculation gains depends on two things: how often drafts stand, which wants a model that writes real
text, and what a row costs beside a step, which wants a model whose weights come from memory. Where the only
trained model fits the processor's cache, this gives both. The hidden state is repeated `--hidden` times
(root mean squares stay as they are), each matrix reads the first copy and writes all, heads and the inner
size are as many times as wide, with weights of zero in what is new, and layers that write zeros are added up
to `--layers`. In exact arithmetic the logits are the small model's. Zeros are read and multiplied like other
numbers; `pronghorn bench speed --shape` has the speed of random ones to compare with.

Llama checkpoints in bfloat16, one file. The tokenizer and everything else are copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.model.hf import read_safetensors
from pronghorn.quantize.write import write_tensors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the small checkpoint")
    parser.add_argument("to", type=Path, help="folder to write")
    parser.add_argument("--hidden", type=int, default=3, help="how many times as wide (3)")
    parser.add_argument("--layers", type=int, default=30, help="layers in the end (30)")
    args = parser.parse_args()
    widen(args.model, args.to, args.hidden, args.layers)
    print(f"{args.to}: {(args.to / 'model.safetensors').stat().st_size / 1e6:.0f} MB")


def widen(model: Path, to: Path, times: int, layers: int) -> None:
    """Raises `SystemExit` where the checkpoint is not a bfloat16 Llama, or cannot become so large."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tensors = {name: entry.read() for name, entry in read_safetensors(model / "model.safetensors").items()}
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise SystemExit(f"{model} is a {config['model_type']}, or has biases: only plain Llamas are widened")
    if others := [f"{name} is {x.dtype}" for name, x in tensors.items() if x.dtype.name != "bfloat16"]:
        raise SystemExit(f"{others[0]}: only bfloat16 is widened")
    if times < 1 or layers < config["num_hidden_layers"]:
        raise SystemExit(f"--hidden is at least 1, --layers at least {config['num_hidden_layers']}")
    wide = {name: _wider(name, x, times) for name, x in tensors.items()}
    first = {name: x for name, x in wide.items() if name.startswith("model.layers.0.")}
    for layer in range(config["num_hidden_layers"], layers):
        for name, x in first.items():
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            wide[name.replace(".0.", f".{layer}.", 1)] = np.zeros_like(x) if writes else x
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        config[key] *= times
    to.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            shutil.copyfile(file, to / file.name)
    (to / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}), encoding="utf-8")
    write_tensors(to / "model.safetensors", wide, lambda done, of: None)


def _wider(name: str, x: NDArray[Any], times: int) -> NDArray[Any]:
    if name == "model.norm.weight":  # a tied head would add up the copies
        return np.pad(x, (0, (times - 1) * len(x)))
    if x.ndim == 1:
        return np.tile(x, times)
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return np.tile(x, (1, times))
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return np.pad(np.tile(x, (times, 1)), ((0, 0), (0, (times - 1) * x.shape[1])))
    return np.pad(x, [(0, (times - 1) * n) for n in x.shape])


if __name__ == "__main__":
    main()
