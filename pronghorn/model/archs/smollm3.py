"""SmolLM3 (Hugging Face, 2025): Llama where every fourth layer has no rotary embedding."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    m = Blocks(c, c.number("rms_norm_eps", 1e-6))
    rope, fn, hidden = c.rope(2e6), c.activation(), c.count("intermediate_size")
    attention_bias, mlp_bias = c.flag("attention_bias", False), c.flag("mlp_bias", False)
    rotated = rotated_layers(c)
    window = c.window() if c.flag("use_sliding_window", False) else 0
    windows = c.layer_windows(window, [bool(window) and not r for r in rotated])
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"), attention_bias)
        if rotated[i]:
            q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, windows[i], attention_bias))
        h = m.norm(x, "post_attention_layernorm")
        x = m.end(m.add(x, m.mlp(h, fn, hidden, mlp_bias)))
    return m.head(x, tied=True)


def rotated_layers(c: Config) -> list[bool]:
    """`no_rope_layers` holds 1 where a layer IS rotated, whatever its name says."""
    if not c.has("no_rope_layers"):
        every = c.count("no_rope_layer_interval", 4)
        return [(i + 1) % every != 0 for i in range(c.n_layers)]
    given = c.values["no_rope_layers"]
    if not isinstance(given, list) or len(given) != c.n_layers or any(g not in (0, 1) for g in given):
        raise c.wrong("no_rope_layers", f"a list of {c.n_layers} zeros and ones")
    return [bool(g) for g in given]
