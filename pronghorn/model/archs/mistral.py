"""Mistral (Jiang et al., 2023, arXiv 2310.06825): Llama with a sliding window on every layer."""

from __future__ import annotations

from typing import Any

from pronghorn.errors import UnsupportedError
from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    if len(set(config.get("layer_types") or [])) > 1:
        # The reference gives every layer the window: such a checkpoint is a Ministral.
        raise UnsupportedError(
            "config: a mistral model has one kind of layer, but layer_types has several; set "
            'model_type to "ministral"'
        )
    m = Blocks(c, c.number("rms_norm_eps", 1e-6))
    rope, fn, hidden = c.rope(), c.activation(), c.count("intermediate_size")
    window = c.window(4096)
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"))
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, window))
        h = m.norm(x, "post_attention_layernorm")
        x = m.end(m.add(x, m.mlp(h, fn, hidden)))
    return m.head(x)
