"""OLMo 2 (OLMo Team, 2025, arXiv 2501.00656): norms after each block instead of before it; q and k
normalised over their full width."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    c.refuse("sliding_window", "clip_qkv")
    m = Blocks(c, c.number("rms_norm_eps", 1e-5))
    rope, fn, hidden = c.rope(), c.activation(), c.count("intermediate_size")
    bias = c.flag("attention_bias", False)
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(x, bias)
        q, k = m.norm(q, "self_attn.q_norm"), m.norm(k, "self_attn.k_norm")
        q, k = m.rotate(q, k, rope)
        h = m.attend(q, k, v, bias=bias)
        x = m.add(x, m.norm(h, "post_attention_layernorm"))
        h = m.mlp(x, fn, hidden)
        x = m.end(m.add(x, m.norm(h, "post_feedforward_layernorm")))
    return m.head(x)
