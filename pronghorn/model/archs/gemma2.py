"""Gemma 2 (Gemma Team, 2024, arXiv 2408.00118): norms before and after each block, soft caps, and a
sliding window on every other layer."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    c.refuse("use_bidirectional_attention")
    m = Blocks(c, c.number("rms_norm_eps", 1e-6), plus_one=True)
    rope, hidden = c.rope(), c.count("intermediate_size")
    fn = c.activation("hidden_activation", "gelu_pytorch_tanh")
    bias = c.flag("attention_bias", False)
    scale = c.number("query_pre_attn_scalar", 256.0) ** -0.5
    cap = c.cap("attn_logit_softcapping", 50.0)
    windows = c.layer_windows(c.window(4096), [i % 2 == 0 for i in range(c.n_layers)])
    x = m.embed(scale=m.width**0.5)
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"), bias)
        q, k = m.rotate(q, k, rope)
        h = m.attend(q, k, v, windows[i], bias, cap, scale)
        x = m.add(x, m.norm(h, "post_attention_layernorm"))
        h = m.mlp(m.norm(x, "pre_feedforward_layernorm"), fn, hidden)
        x = m.end(m.add(x, m.norm(h, "post_feedforward_layernorm")))
    return m.head(x, c.cap("final_logit_softcapping", 30.0), tied=True)
