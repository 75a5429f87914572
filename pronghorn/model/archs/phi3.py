"""Phi-3 and Phi-4 (Abdin et al., 2024, arXiv 2404.14219): q, k, v in one matrix, gate and up in another.

With `longrope` a key is rotated by the table of the length it is written at (see `model.rope`). The
model's forward pass in Hugging Face's library does the same; its `generate` alone also runs the whole
text again, once, at the step that crosses `original_max_position_embeddings`.
"""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import Config
from pronghorn.model.archs._blocks import Blocks
from pronghorn.model.tape import Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    m = Blocks(c, c.number("rms_norm_eps", 1e-5))
    rope, fn, hidden = c.rope(partial=True), c.activation(), c.count("intermediate_size")
    window = c.window()
    n_q, n_k = m.n_heads * m.dim, m.n_kv * m.dim
    n_qkv = n_q + 2 * n_k
    x = m.embed()
    for i in range(c.n_layers):
        m.begin(i, x)
        h = m.norm(x, "input_layernorm")
        q = m.part(h, "self_attn.qkv_proj", 0, n_q, n_qkv)
        k = m.part(h, "self_attn.qkv_proj", n_q, n_q + n_k, n_qkv)
        v = m.part(h, "self_attn.qkv_proj", n_q + n_k, n_qkv, n_qkv)
        q, k = m.rotate(q, k, rope)
        x = m.add(x, m.attend(q, k, v, window))
        h = m.norm(x, "post_attention_layernorm")
        gate = m.part(h, "mlp.gate_up_proj", 0, hidden, 2 * hidden)
        up = m.part(h, "mlp.gate_up_proj", hidden, 2 * hidden, 2 * hidden)
        h = m.linear(m.tape.glu(gate, up, fn), "mlp.down_proj", m.width)
        x = m.end(m.add(x, h))
    return m.head(x)
