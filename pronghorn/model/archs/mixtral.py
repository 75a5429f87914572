"""Mixtral (Jiang et al., 2024, arXiv 2401.04088): Mistral with experts for its feed-forward."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape

NAMES = (
    "block_sparse_moe.gate", "block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3",
    "block_sparse_moe.experts.{}.w2",
)  # fmt: skip


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    m = Blocks(c, c.number("rms_norm_eps", 1e-5))
    rope, fn, hidden = c.rope(1e6), c.activation(), c.count("intermediate_size")
    window = c.window()
    n_experts, top_k = c.experts()
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"))
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, window))
        h = m.norm(x, "post_attention_layernorm")
        x = m.end(m.add(x, m.moe(h, NAMES, n_experts, hidden, top_k, True, fn)))
    return m.head(x)
