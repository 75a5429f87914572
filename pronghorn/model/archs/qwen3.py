"""Qwen3 (Yang et al., 2025, arXiv 2505.09388): q and k are normalised per head before rotation."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.archs.qwen2 import layer_windows
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    m = Blocks(c, c.number("rms_norm_eps", 1e-6))
    rope, fn, hidden = c.rope(), c.activation(), c.count("intermediate_size")
    windows, bias = layer_windows(c), c.flag("attention_bias", False)
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"), bias)
        q, k = m.norm(q, "self_attn.q_norm", m.dim), m.norm(k, "self_attn.k_norm", m.dim)
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, windows[i], bias))
        h = m.norm(x, "post_attention_layernorm")
        x = m.end(m.add(x, m.mlp(h, fn, hidden)))
    return m.head(x)
