"""The pieces that Llama-like decoders share, in Hugging Face's tensor names.

A `Blocks` joins a config to the tape under construction and knows where in the checkpoint it stands:
after `begin(i, x)` names are those of layer i. Each piece emits the ops of one sentence of a model's
definition; the architecture files put them in order.
"""

from __future__ import annotations

from pronghorn.model.arch import MAX_VOCAB, Config
from pronghorn.model.rope import Rope
from pronghorn.model.tape import Param, Tape


class Blocks:
    """eps: of every norm; plus_one: norms multiply by 1 + weight."""

    def __init__(self, c: Config, eps: float, plus_one: bool = False) -> None:
        self.c, self.eps, self.plus_one = c, eps, plus_one
        self.width, self.dim = c.width, c.head_dim
        self.n_heads, self.n_kv = c.n_heads, c.n_kv
        n_vocab = c.count("vocab_size", most=MAX_VOCAB)
        self.tape = Tape(c.n_layers, self.n_heads, self.n_kv, self.dim, n_vocab, c.context)
        self.at = "model."

    def begin(self, layer: int, x: int) -> None:
        self.at = f"model.layers.{layer}."
        self.tape.begin(layer, x)

    def end(self, x: int) -> int:
        self.at = "model."
        return self.tape.end(x)

    def embed(self, scale: float = 1.0) -> int:
        return self.tape.embed(self._tokens("model.embed_tokens.weight"), scale)

    def head(self, x: int, softcap: float = 0.0, tied: bool = False) -> Tape:
        """The final norm and the logits, which close the tape. tied: the config's default."""
        x = self.norm(x, "norm")
        same = self.c.flag("tie_word_embeddings", tied)
        name = "model.embed_tokens.weight" if same else "lm_head.weight"
        self.tape.head(x, self._tokens(name), softcap=softcap)
        return self.tape

    def _tokens(self, name: str) -> Param:
        return Param(name, (self.tape.n_vocab, self.width))

    def norm(self, x: int, name: str, group: int = 0) -> int:
        """RMS norm; group: size of the runs that are normalised on their own (0: the whole width)."""
        size = group or self.tape.widths[x]
        w = Param(f"{self.at}{name}.weight", (size,), add=1.0 if self.plus_one else 0.0)
        return self.tape.norm(x, w, self.eps, group=group)

    def linear(self, x: int, name: str, n_out: int, bias: bool = False) -> int:
        w = Param(f"{self.at}{name}.weight", (n_out, self.tape.widths[x]))
        b = [Param(f"{self.at}{name}.bias", (n_out,))] if bias else []
        return self.tape.linear(x, w, *b)

    def part(self, x: int, name: str, start: int, stop: int, n_out: int) -> int:
        """Rows start..stop of a matrix with `n_out` rows that holds several projections."""
        w = Param(f"{self.at}{name}.weight", (n_out, self.tape.widths[x]), (start, stop))
        return self.tape.linear(x, w)

    def qkv(self, x: int, bias: bool = False) -> tuple[int, int, int]:
        q = self.linear(x, "self_attn.q_proj", self.n_heads * self.dim, bias)
        k = self.linear(x, "self_attn.k_proj", self.n_kv * self.dim, bias)
        v = self.linear(x, "self_attn.v_proj", self.n_kv * self.dim, bias)
        return q, k, v

    def rotate(self, q: int, k: int, rope: Rope) -> tuple[int, int]:
        table = self.tape.rope_table(rope)
        return self.tape.rope(q, table, self.n_heads), self.tape.rope(k, table, self.n_kv)

    def attend(
        self, q: int, k: int, v: int, window: int = 0, bias: bool = False, softcap: float = 0.0,
        scale: float = 0.0,
    ) -> int:  # fmt: skip
        """Attention and its output projection. scale 0: one over the root of the head size."""
        x = self.tape.attend(q, k, v, scale or self.dim**-0.5, softcap, window)
        return self.linear(x, "self_attn.o_proj", self.width, bias)

    def add(self, a: int, b: int) -> int:
        return self.tape.add(a, b)

    def mlp(self, x: int, fn: str, hidden: int, bias: bool = False) -> int:
        gate = self.linear(x, "mlp.gate_proj", hidden, bias)
        up = self.linear(x, "mlp.up_proj", hidden, bias)
        return self.linear(self.tape.glu(gate, up, fn), "mlp.down_proj", self.width, bias)

    def moe(
        self, x: int, names: tuple[str, str, str, str], n_experts: int, hidden: int, top_k: int,
        renorm: bool, fn: str,
    ) -> int:  # fmt: skip
        """names: of the router, and of one expert's gate, up and down with {} for its number."""
        router, *parts = (f"{self.at}{name}.weight" for name in names)
        shapes = [(hidden, self.width), (hidden, self.width), (self.width, hidden)]
        experts = []
        for e in range(n_experts):
            gate, up, down = (Param(n.format(e), s) for n, s in zip(parts, shapes, strict=True))
            experts.append((gate, up, down))
        return self.tape.moe(x, Param(router, (n_experts, self.width)), experts, top_k, renorm, fn)


MOE_NAMES = (
    "mlp.gate", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj",
)  # fmt: skip
