"""Qwen2 and Qwen2.5 (Yang et al., 2024, arXiv 2407.10671): biases on q, k and v; the upper layers may
have a sliding window."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    m = Blocks(c, c.number("rms_norm_eps", 1e-6))
    rope, fn, hidden = c.rope(), c.activation(), c.count("intermediate_size")
    windows = layer_windows(c)
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"), bias=True)
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, windows[i]))
        h = m.norm(x, "post_attention_layernorm")
        x = m.end(m.add(x, m.mlp(h, fn, hidden)))
    return m.head(x)


def layer_windows(c: Config) -> list[int]:
    """Layers from `max_window_layers` on have the window, when `use_sliding_window` says so."""
    window = c.window(4096) if c.flag("use_sliding_window", False) else 0
    first = c.first_layer("max_window_layers", 28)
    return c.layer_windows(window, [bool(window) and i >= first for i in range(c.n_layers)])
