"""Qwen3 with experts (Yang et al., 2025, arXiv 2505.09388); some layers may keep a plain feed-forward."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import MOE_NAMES, Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    m = Blocks(c, c.number("rms_norm_eps", 1e-6))
    rope, fn, bias = c.rope(), c.activation(), c.flag("attention_bias", False)
    window = c.window(4096) if c.flag("use_sliding_window", False) else 0
    n_experts, top_k = c.experts()
    renorm, sparse = c.flag("norm_topk_prob", False), sparse_layers(c)
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"), bias)
        q, k = m.norm(q, "self_attn.q_norm", m.dim), m.norm(k, "self_attn.k_norm", m.dim)
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, window, bias))
        h = m.norm(x, "post_attention_layernorm")
        if sparse[i]:
            hidden = c.count("moe_intermediate_size")
            h = m.moe(h, MOE_NAMES, n_experts, hidden, top_k, renorm, fn)
        else:
            h = m.mlp(h, fn, c.count("intermediate_size"))
        x = m.end(m.add(x, h))
    return m.head(x)


def sparse_layers(c: Config) -> list[bool]:
    """Every `decoder_sparse_step`-th layer has experts, except those in `mlp_only_layers`."""
    step, plain = c.count("decoder_sparse_step", 1), c.values.get("mlp_only_layers") or []
    if not isinstance(plain, list) or any(type(i) is not int for i in plain):
        raise c.wrong("mlp_only_layers", "a list of layer numbers")
    return [(i + 1) % step == 0 and i not in plain for i in range(c.n_layers)]
