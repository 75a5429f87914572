"""Gemma 3, text (Gemma Team, 2025, arXiv 2503.19786): Gemma 2 with q and k normalised per head instead
of soft caps, and a rotary base of its own for the layers with a window."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.rope import Rope
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    c.refuse("use_bidirectional_attention", "attn_logit_softcapping")
    m = Blocks(c, c.number("rms_norm_eps", 1e-6), plus_one=True)
    hidden, bias = c.count("intermediate_size"), c.flag("attention_bias", False)
    fn = c.activation("hidden_activation", "gelu_pytorch_tanh")
    scale = c.number("query_pre_attn_scalar", 256.0) ** -0.5
    every = c.count("sliding_window_pattern", 6)
    windows = c.layer_windows(c.window(4096), [(i + 1) % every != 0 for i in range(c.n_layers)])
    wide, near = c.rope(1e6), local_rope(c)
    x = m.embed(scale=m.width**0.5)
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"), bias)
        q, k = m.norm(q, "self_attn.q_norm", m.dim), m.norm(k, "self_attn.k_norm", m.dim)
        q, k = m.rotate(q, k, near if windows[i] else wide)
        h = m.attend(q, k, v, windows[i], bias, scale=scale)
        x = m.add(x, m.norm(h, "post_attention_layernorm"))
        h = m.mlp(m.norm(x, "pre_feedforward_layernorm"), fn, hidden)
        x = m.end(m.add(x, m.norm(h, "post_feedforward_layernorm")))
    return m.head(x, c.cap("final_logit_softcapping", 0.0), tied=True)


def local_rope(c: Config) -> Rope:
    """Rotary table of the layers with a window. Older configs write only its base, unscaled."""
    settings = c.values.get("rope_parameters")
    if isinstance(settings, dict) and settings.get("sliding_attention"):
        return c.rope(1e4, "sliding_attention")
    theta = c.number("rope_local_base_freq", 1e4, low=1.001, high=1e15)
    return Rope(c.head_dim, theta)
