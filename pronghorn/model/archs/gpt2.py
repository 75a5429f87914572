"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, one plain feed-forward, biases throughout.

Its matrices are stored (n_in, n_out), and q, k, v are columns of one matrix.
"""

from __future__ import annotations

from typing import Any

from pronghorn.model.arch import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, Config
from pronghorn.model.tape import Param, Tape


def build(config: dict[str, Any]) -> Tape:
    c = Config(config)
    c.refuse("add_cross_attention")
    width, n_heads = c.count("n_embd"), c.count("n_head")
    if width % n_heads:
        raise c.wrong("n_embd", f"a multiple of n_head {n_heads}")
    hidden, dim = c.count("n_inner", 4 * width), width // n_heads
    n_layers, n_vocab = c.count("n_layer", most=MAX_LAYERS), c.count("vocab_size", most=MAX_VOCAB)
    context = c.count("n_positions", most=MAX_CONTEXT)
    eps, fn = c.number("layer_norm_epsilon", 1e-5), c.activation("activation_function", "gelu_new")
    t = Tape(n_layers, n_heads, n_heads, dim, n_vocab, context, hard_context=True)

    def norm(x: int, name: str) -> int:
        w, b = Param(f"{name}.weight", (width,)), Param(f"{name}.bias", (width,))
        return t.norm(x, w, eps, b, mode="layer")

    def linear(x: int, name: str, n_out: int, rows: tuple[int, int] = (0, 0)) -> int:
        w = Param(f"{name}.weight", (t.widths[x], n_out), rows, transpose=True)
        return t.linear(x, w, Param(f"{name}.bias", (n_out,), rows))

    tokens = Param("transformer.wte.weight", (n_vocab, width))
    x = t.wpe(t.embed(tokens), Param("transformer.wpe.weight", (context, width)))
    for i in range(n_layers):
        at = f"transformer.h.{i}."
        t.begin(i, x)
        h = norm(x, at + "ln_1")
        qkv = ((p * width, (p + 1) * width) for p in range(3))
        q, k, v = (linear(h, at + "attn.c_attn", 3 * width, rows) for rows in qkv)
        scale = dim**-0.5 if c.flag("scale_attn_weights", True) else 1.0
        if c.flag("scale_attn_by_inverse_layer_idx", False):
            scale /= i + 1
        x = t.add(x, linear(t.attend(q, k, v, scale), at + "attn.c_proj", width))
        h = t.act(linear(norm(x, at + "ln_2"), at + "mlp.c_fc", hidden), fn)
        x = t.end(t.add(x, linear(h, at + "mlp.c_proj", width)))
    x = norm(x, "transformer.ln_f")
    tied = c.flag("tie_word_embeddings", True)
    t.head(x, tokens if tied else Param("lm_head.weight", (n_vocab, width)))
    return t
