"""What weight formats and quantizers cost in quality: perplexity and divergence against the model as it is.

    python bench/quality_weights.py --model pronghorn-tiny --text books.jsonl [--tokens 16384] [--quick]

The text is cut in two: the first half calibrates, the second is predicted, in sequences of 256 tokens each on
its own. Products run in the native runner, inputs rounded as the format says. *Closed* is the share of the
divergence that rounding to nearest leaves in the same format which the quantizer takes away.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _report import machine, said, table

from pronghorn.compose import compose
from pronghorn.llm import find_model, make_engine
from pronghorn.model.arch import build_tape
from pronghorn.model.checkpoint import Entry, Tensors, load_checkpoint
from pronghorn.model.tokenizer import load_tokenizer
from pronghorn.quantize import evaluate, text
from pronghorn.quantize.job import Job
from pronghorn.quantize.methods import QUANTIZERS
from pronghorn.types import Packed

CASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("weight.int8", ()),
    ("weight.int8:activations=16", ()),
    ("weight.int8:group=32", ()),
    ("int4", ("gptq", "awq", "finequant")),
    ("int4:activations=16", ()),
    ("int4 weight.int8:only=*embed*+lm_head*+*wte*", ("gptq", "awq")),
    ("int4:symmetric=false", ("hqq", "gptq")),
    ("int3", ("gptq", "awq", "awq-gptq")),
    ("int3:symmetric=false", ("hqq", "gptq")),
    ("int2:symmetric=false", ("hqq", "gptq")),
    ("nf4", ("gptq",)),
    ("int4:group=64", ()),
    ("int4:group=128", ("gptq",)),
    ("fp8", ()),
    ("fp16", ()),
)
QUICK = {"weight.int8", "int4", "int4:symmetric=false", "int3"}


def read(path: Path, n_chars: int) -> list[str]:
    """Texts of a file as `pronghorn quantize` reads them, packed by xz or not; the first `n_chars`."""
    if path.suffix != ".xz":
        texts = text.read(path)
    else:
        texts, size = [], 0
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                texts.append(json.loads(line)["text"][2000:32000])
                size += len(texts[-1])
                if size > n_chars:
                    break
    return texts


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.checkpoint = load_checkpoint(find_model(args.model))
        self.tape = build_tape(self.checkpoint.config)
        self.tokenizer = load_tokenizer(self.checkpoint.path, self.checkpoint.gguf_metadata)
        texts = read(args.text, 24 * args.tokens)
        whole = "\n\n".join(texts)
        length = min(evaluate.LENGTH, self.tape.context)
        first, second = [whole[: len(whole) // 2]], [whole[len(whole) // 2 :]]
        self.ids = text.sequences(first, self.tokenizer, args.tokens // 2, min(512, self.tape.context))
        self.judged = text.sequences(second, self.tokenizer, args.tokens, length)
        plain = self.engine({})
        self.plain = [evaluate.logp(plain, seq).astype(np.float32) for seq in self.judged]

    def engine(self, made: dict[str, Any]) -> Any:
        source = self.checkpoint.tensors

        def entry(name: str) -> Entry:
            if name not in made:
                return Entry(source.info(name), lambda: source[name])
            value = made[name]
            small = not isinstance(value, np.ndarray)
            return Entry(replace(source.info(name), small=small), lambda: value)

        checkpoint = replace(self.checkpoint, tensors=Tensors({name: entry(name) for name in source}))
        return make_engine(checkpoint, self.tape, compose([], ("match", "fcfs")), self.tokenizer)

    def loss(self, spec: str, method: str) -> tuple[evaluate.Loss, float, float]:
        """Loss, stored bits for each weight of a matrix, seconds."""
        by = QUANTIZERS[method]
        start = time.perf_counter()
        ids = self.ids if by.text else text.NONE
        formats = compose(spec.split()).weight
        job = Job(self.tape, self.checkpoint.tensors, formats, by, ids)
        made: dict[str, Any] = {}
        for number in range(len(job.stages)):
            made |= job.run(number).made
        took = time.perf_counter() - start
        packed = [m for m in made.values() if isinstance(m, Packed)]
        bits = 8 * sum(m.nbytes for m in packed) / sum(m.shape[0] * m.shape[1] for m in packed)
        flat = {
            n: m.fields["w"] if isinstance(m, Packed) and m.kind == "float16" else m for n, m in made.items()
        }
        return evaluate.against(self.plain, self.engine(flat), self.judged), bits, took


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="pronghorn-tiny")
    ask.add_argument("--text", type=Path, required=True, help=".txt, .jsonl or .jsonl.xz")
    ask.add_argument("--tokens", type=int, default=16384, help="predicted; half as many calibrate")
    ask.add_argument("--quick", action="store_true", help="a few formats only")
    ask.add_argument("--json", action="store_true")
    args = ask.parse_args()
    bench = Bench(args)
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    for spec, methods in CASES:
        if args.quick and spec not in QUICK:
            continue
        base = 0.0
        for method in ("rtn", *methods):
            loss, bits, took = bench.loss(spec, method)
            base = base or loss.kl
            closed = "" if method == "rtn" else f"{1 - loss.kl / base:.0%}"
            name = spec.replace("weight.", "")
            rows.append([
                name, method, f"{bits:.2f}", f"{loss.ratio - 1:+.3%}", f"{loss.spread:.3%}",
                f"{loss.kl:.5f}", closed, f"{loss.top1:.1%}", f"{took:.1f}",
            ])  # fmt: skip
            data.append(
                {"format": spec, "quantizer": method, "bits": bits, "kl": loss.kl, "ratio": loss.ratio}
            )
            if not args.json:
                print(" ".join(rows[-1]), flush=True)
    if args.json:
        print(json.dumps({"machine": machine(), "plain": loss.plain, "cases": data}))
        return
    print(f"\n{said(machine())}")
    print(f"{args.model}, perplexity {loss.plain:.3f} over {loss.n} tokens of {args.text.name}\n")
    heads = ["format", "quantizer", "bits", "perplexity", "±", "divergence", "closed", "same top", "seconds"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
