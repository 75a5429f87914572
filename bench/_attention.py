"""A model that is attention and nothing else to speak of."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from pronghorn.model.bind import Bound, bind
from pronghorn.model.tape import Param, Tape


def attention(shape: tuple[int, int, int], layers: int) -> Bound:
    """shape: heads, KV heads, head size. 16 wide, with 16 tokens; weights are random bfloat16."""
    heads, n_kv, dim = shape
    rng, tensors = np.random.default_rng(0), {}
    tape = Tape(layers, heads, n_kv, dim, 16, 1 << 20)

    def matrix(name: str, *size: int) -> Param:
        tensors[name] = (rng.normal(size=size) / 4).astype(ml_dtypes.bfloat16)
        return Param(name, size)

    x = tape.embed(matrix("embed", 16, 16), 1.0)
    for i in range(layers):
        tape.begin(i, x)
        parts = [tape.linear(x, matrix(f"{i}.{j}", m * dim, 16)) for j, m in enumerate((heads, n_kv, n_kv))]
        y = tape.attend(*parts, scale=dim**-0.5, softcap=0.0, window=0)
        x = tape.end(tape.add(x, tape.linear(y, matrix(f"{i}.o", 16, heads * dim))))
    tape.head(x, matrix("head", 16, 16), scale=1.0, softcap=0.0)
    return bind(tape, tensors, ())
