"""Which library quantized a Hugging Face checkpoint, and its layers as the tensors that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.checkpoint import ArrayEntry, Entry
from pronghorn.model.names import shown
from pronghorn.model.quantized import awq, compressed, float8, gptq
from pronghorn.model.quantized.module import Module, Scheme
from pronghorn.model.quantized.stored import Tensor, Turned

_METHODS: dict[str, Callable[[Mapping[str, Any], str], Scheme]] = {
    "gptq": gptq.scheme,
    "awq": awq.scheme,
    "compressed-tensors": compressed.scheme,
    "fp8": float8.scheme,
    "fbgemm_fp8": float8.scheme,
}


def take_settings(config: dict[str, Any]) -> Mapping[str, Any] | None:
    """Remove what a config.json says about quantized weights and return it, None for nothing.

    Raises CheckpointError where it is no object.
    """
    found: object = None
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in ("compression_config", "quantization_config"):
            found = holder.pop(key, None) or found
    if found is None:
        return None
    if not isinstance(found, dict):
        raise CheckpointError(f"quantization_config must be an object, not {shown(found)}")
    return found


def gather(
    stored: Mapping[str, ArrayEntry], settings: Mapping[str, Any], model_type: str, where: str
) -> dict[str, Entry]:
    """Tensors out of the arrays of a checkpoint, both by canonical name; layers that are not quantized stay.

    `settings` is the quantization_config, `where` names the file in errors. Raises CheckpointError for
    layers whose arrays do not fit together, UnsupportedError for methods that are not read. Reads nothing
    but shapes that are stored as arrays, and groups of inputs where they may be out of order.
    """
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        raise UnsupportedError(
            f"{where} says that the weights are quantized with {shown(method)}; Pronghorn reads "
            f"{', '.join(_METHODS)}: use one of those, the unquantized checkpoint, or a GGUF file"
        )
    scheme = _METHODS[method](settings, where)
    quantized = {layer for layer, _, last in (name.rpartition(".") for name in stored) if last in scheme.keys}
    out: dict[str, Entry] = {}
    for name, entry in stored.items():
        layer, _, last = name.rpartition(".")
        if layer in quantized and (last in scheme.parts or last == "weight"):
            if last == "weight" and last not in scheme.parts:
                raise CheckpointError(f"{where}: {name} is stored twice, quantized and not")
            if f"{layer}.weight" not in out:
                out[f"{layer}.weight"] = _matrix(scheme, layer, stored, model_type)
        elif last not in scheme.unused:
            out[name] = entry
    return out


def _matrix(scheme: Scheme, layer: str, stored: Mapping[str, ArrayEntry], model_type: str) -> Entry:
    parts = {part: stored[name] for part in scheme.parts if (name := f"{layer}.{part}") in stored}
    entry = scheme.read(Module(f"{layer}.weight", parts))
    if model_type != "gpt2" or ".h." not in layer:
        return entry
    info = entry.info  # GPT-2 names its matrices as (n_in, n_out); their codes are as everywhere
    return Entry(replace(info, shape=info.shape[::-1]), lambda: _turned(entry.read()))


def _turned(tensor: Tensor) -> Tensor:
    if isinstance(tensor, (np.ndarray, Turned)):
        return tensor.T
    return Turned(tensor)
