"""OLMoE (Muennighoff et al., 2024, arXiv 2409.02060): experts in every layer; q and k normalised over
their full width."""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import MOE_NAMES, Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    c.refuse("clip_qkv", "sliding_window")
    m = Blocks(c, c.number("rms_norm_eps", 1e-5))
    rope, fn, hidden = c.rope(), c.activation(), c.count("intermediate_size")
    bias, renorm = c.flag("attention_bias", False), c.flag("norm_topk_prob", False)
    n_experts, top_k = c.experts()
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        q, k, v = m.qkv(m.norm(x, "input_layernorm"), bias)
        q, k = m.norm(q, "self_attn.q_norm"), m.norm(k, "self_attn.k_norm")
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, bias=bias))
        h = m.norm(x, "post_attention_layernorm")
        x = m.end(m.add(x, m.moe(h, MOE_NAMES, n_experts, hidden, top_k, renorm, fn)))
    return m.head(x)
