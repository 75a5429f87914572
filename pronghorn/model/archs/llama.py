"""Llama 2 and 3 (Touvron et al., 2023, arXiv 2307.09288; Llama 3, arXiv 2407.21783)."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    c.refuse("sliding_window")
    m = Blocks(c, c.number("rms_norm_eps", 1e-6))
    rope, fn, hidden = c.rope(), c.activation(), c.count("intermediate_size")
    attention_bias, mlp_bias = c.flag("attention_bias", False), c.flag("mlp_bias", False)
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"), attention_bias)
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, bias=attention_bias))
        h = m.norm(x, "post_attention_layernorm")
        x = m.end(m.add(x, m.mlp(h, fn, hidden, mlp_bias)))
    return m.head(x)
