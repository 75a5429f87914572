"""Ministral (Mistral AI, 2024): Mistral whose `layer_types` says which layers have the window."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    m = Blocks(c, c.number("rms_norm_eps", 1e-6))
    rope, fn, hidden = c.rope(), c.activation(), c.count("intermediate_size")
    windows = c.layer_windows(c.window(4096), [True] * c.n_layers)
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"))
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, windows[i]))
        h = m.norm(x, "post_attention_layernorm")
        x = m.end(m.add(x, m.mlp(h, fn, hidden)))
    return m.head(x)
