"""Trains the look-up model on CPU; stops and resumes anywhere.

    python -m recipes.lookup.train RUN [--width 128] [--layers 4] [--ffn 256] [--stages 64x32x400,...]

RUN: a folder for `last.pt` (weights, optimizer, step: written every minute and at the end) and `log.jsonl`.
Started again on the same folder it goes on from `last.pt`; the texts of a step depend on its number alone.
A stage is CONTEXTxROWSxSTEPS; CONTEXT may be several, as 256+512+1024, taken in turn by the steps, ROWS then
being those of the first (the others get as many tokens).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pronghorn.bench.lookups import KINDS, VOCABULARY
from recipes.lookup.texts import row

STAGES = "64x32x400,128x16x400,256x16x400,256+512+1024x16x1200"
TEXT_WEIGHT = 0.05  # of a token that is no answer, in the loss


@dataclass(frozen=True)
class Shape:
    width: int = 128
    layers: int = 4
    ffn: int = 256
    heads: int = 8
    kv_heads: int = 2
    head: int = 32
    base: float = 500_000.0  # of RoPE: the slowest half of a head hardly turns within the context
    context: int = 1024


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-5)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Layer(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        q, kv = s.heads * s.head, s.kv_heads * s.head
        self.attention_norm, self.ffn_norm = Norm(s.width), Norm(s.width)
        self.qkv = nn.Linear(s.width, q + 2 * kv, bias=False)
        self.out = nn.Linear(q, s.width, bias=False)
        self.up = nn.Linear(s.width, 2 * s.ffn, bias=False)  # gate and up
        self.down = nn.Linear(s.ffn, s.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s, (n, t, _) = self.s, x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, t, -1, s.head).transpose(1, 2)
        qk, v = qkv.split([s.heads + s.kv_heads, s.kv_heads], 1)
        q, k = turned(qk, cos, sin).split([s.heads, s.kv_heads], 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, -1))
        gate, up = self.up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    """A Llama with tied embeddings; parameters are kept in float32 and computed with in bfloat16."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.embed = nn.Embedding(len(VOCABULARY), s.width)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = Norm(s.width)
        turns = s.base ** (-torch.arange(0, s.head, 2) / s.head)
        angles = torch.outer(torch.arange(s.context), turns).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:  # what layers add starts small beside the embeddings
                scale = 1.0 if "embed" in name else 0.5 if "qkv" in name or "up" in name else 0.2
                nn.init.normal_(p, std=scale * p.shape[-1] ** -0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        n = ids.shape[1]
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        x, cos, sin = x.to(dtype), self.cos[:n].to(dtype), self.sin[:n].to(dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed.weight)


@torch.no_grad()
def lay(m: Model) -> None:
    """Lays an induction circuit into a fresh model, which finds one by itself only after long.

    In the first layer one head reads the token before: keys and queries read a part that all embeddings
    share, into the fastest pairs of the rotation, the query turned back by one. In the second layer the
    heads of one group look for rows whose token before is like this one, in the slow pairs, and hand on
    what those rows hold.
    """
    s, first, second = m.s, m.layers[0], m.layers[1]
    group, half, slow = s.heads // s.kv_heads, s.head // 2, s.head // 4
    key, value = s.heads, s.heads + s.kv_heads  # of the first group, among the heads of qkv

    def heads(layer: Layer) -> tuple[Tensor, Tensor]:
        qkv = layer.qkv.weight.view(-1, s.head, s.width)
        return qkv, layer.out.weight.view(s.width, s.heads, s.head)

    def directions() -> Tensor:
        """(head, width) of length 1, at right angles."""
        return torch.linalg.qr(torch.randn(s.width, s.head))[0].T

    size = m.embed.weight.norm(dim=-1).mean()
    shared = F.normalize(torch.randn(s.width), dim=0)
    m.embed.weight += 0.5 * size * shared
    share = 0.45 * s.width**0.5  # of a normalised embedding in that direction
    turns = (s.base ** (-torch.arange(0, s.head, 2) / s.head)).repeat(2)
    k = torch.zeros(s.head)
    k[:4] = 10.0
    q = k * turns.cos() - torch.cat((-k[half:], k[:half])) * turns.sin()
    read, write, held = directions(), directions(), directions()
    qkv, out = heads(first)
    qkv[key] = 0.1 * qkv[key] + torch.outer(k, shared) / share
    qkv[0] = 0.1 * qkv[0] + torch.outer(q, shared) / share
    qkv[value] = read
    out[:, 0] = write.T * size / (0.6 * s.head**0.5)
    qkv, out = heads(second)
    dims = torch.cat((torch.arange(slow, half), torch.arange(half + slow, s.head)))
    qkv[:group, dims] += 2.2 * read[: len(dims)]
    qkv[key, dims] += 2.2 * write[: len(dims)]
    qkv[value] = held
    out[:, :group] += 0.2 * held.T[:, None]


@dataclass(frozen=True)
class Stage:
    contexts: tuple[int, ...]
    rows: int
    steps: int

    @classmethod
    def parse(cls, text: str) -> Stage:
        contexts, rows, steps = text.split("x")
        return cls(tuple(map(int, contexts.split("+"))), int(rows), int(steps))

    def shape(self, step: int) -> tuple[int, int]:
        """(rows, context) of a step."""
        context = self.contexts[step % len(self.contexts)]
        return max(1, self.rows * self.contexts[0] // context), context


def batch(step: int, rows: int, context: int) -> tuple[Tensor, Tensor]:
    """ids and what they are, (rows, context + 1)."""
    r = random.Random(f"train {step}")
    ids, what = zip(*(row(r, context) for _ in range(rows)), strict=True)
    return torch.tensor(ids), torch.tensor(what)


def planned(text: str) -> list[tuple[int, int]]:
    """(rows, context) of each step."""
    stages = [Stage.parse(s) for s in text.split(",")]
    return [stage.shape(i) for stage in stages for i in range(stage.steps)]


def rate_at(step: int, n: int) -> float:
    """Share of the highest learning rate: a rise over 100 steps or a tenth, then a cosine down to 3 %."""
    warm = min(100, n // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.03 + 0.97 * (1 + math.cos(math.pi * (step - warm) / max(1, n - warm))) / 2


class Tally:
    """What is logged of some steps."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.right, self.asked = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
        self.losses: list[float] = []
        self.tokens = 0

    def add(self, loss: Tensor, hit: Tensor, what: Tensor) -> None:
        self.losses.append(loss.item())
        self.tokens += hit.numel()
        for i in range(len(KINDS)):
            self.right[i] += hit[what == i + 1].sum()
            self.asked[i] += (what == i + 1).sum()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def said(self) -> dict[str, Any]:
        share = (self.right / self.asked.clamp(min=1)).tolist()
        return {
            "loss": round(sum(self.losses) / len(self.losses), 4),
            "right": {kind: round(x, 4) for kind, x in zip(KINDS, share, strict=True)},
            "tokens_per_second": round(self.tokens / self.seconds),
        }


class Run:
    """A model under training, as it lies in a folder."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        """A new one, or the one that is there. Raises `SystemExit` where that has another shape."""
        torch.manual_seed(0)
        self.file = folder / "last.pt"
        self.model = Model(shape)
        lay(self.model)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05},
                {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            if state["shape"] != asdict(shape):
                raise SystemExit(f"{self.file} is a model of another shape: {state['shape']}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        state = {
            "shape": asdict(self.model.s), "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        new = self.file.with_suffix(".new")
        torch.save(state, new)
        os.replace(new, self.file)

    def learn(self, ids: Tensor, what: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step. Gives its loss, and where the likeliest token was the true one."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = torch.where(what.flatten() != 0, 1.0, TEXT_WEIGHT)
        loss = (loss * weight).sum() / weight.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.detach(), logits.detach().argmax(-1) == ids[:, 1:]


def train(run: Run, steps: list[tuple[int, int]], rate: float, minutes: float, log: TextIO) -> None:
    """From the step where `run` is to the last, or until `minutes` have passed."""
    started = saved = time.monotonic()
    tally = Tally()
    while run.step < len(steps) and time.monotonic() - started < 60 * minutes:
        shape = steps[run.step]
        now = rate * rate_at(run.step, len(steps))
        ids, what = batch(run.step, *shape)
        what = what[:, 1:]
        tally.add(*run.learn(ids, what, now), what)
        if run.step % 25 == 0 or run.step == len(steps):
            run.seconds += tally.seconds
            at = {"step": run.step, "shape": shape, "rate": round(now, 6), "seconds": round(run.seconds, 1)}
            log.write(json.dumps(at | tally.said()) + "\n")
            tally = Tally()
        if time.monotonic() - saved > 60:
            run.save()
            saved = time.monotonic()
    run.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--width", type=int, default=Shape.width)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--ffn", type=int, default=Shape.ffn)
    parser.add_argument("--stages", default=STAGES)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args.run, Shape(width=args.width, layers=args.layers, ffn=args.ffn))
    with (args.run / "log.jsonl").open("a", buffering=1, encoding="utf-8") as log:
        train(run, planned(args.stages), args.rate, args.minutes, log)


if __name__ == "__main__":
    main()
