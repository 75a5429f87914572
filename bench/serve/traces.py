"""Arrivals to replay: recorded traces scaled to a model's context, with prompts of real text.

Azure (2023, code and conversation) says when requests came and how long prompts and answers were. Mooncake
also names each block of 512 prompt tokens, so that a shared beginning can be told.

Scaling: a trace is a run of so many requests from a place that the seed chooses. All lengths in it, prompts,
answers and blocks alike, are multiplied by one factor, at most 1, and rounded up, so that the longest
request of the whole trace just fits into the context. Arrival times are compressed by one factor so that the
mean rate is the one asked for; bursts keep their form.

Prompts are ids of consecutive text (WikiText-2, ASCII only) as the model's own tokenizer cuts it. Each
prompt, or each block that a trace names, has a place in the text of its own, by lot: equal blocks are equal
tokens, and others share no beginning but by chance.

The data are not part of the checkout: AzurePublicDataset has the AzureLLMInferenceTrace files of 2023,
kvcache-ai/Mooncake those in FAST25-release/traces.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BLOCK = 512  # tokens of a block in the Mooncake trace
AZURE, MOONCAKE = "trace_azure_llm_2023/AzureLLMInferenceTrace_", "trace_mooncake/"
FILES = {
    "azure-code": AZURE + "code.csv",
    "azure-conv": AZURE + "conv.csv",
    "mooncake": MOONCAKE + "conversation_trace.jsonl",
    "mooncake-synthetic": MOONCAKE + "synthetic_trace.jsonl",
}
TEXT = "wikitext2/valid.txt"
TEXT_BYTES = 600_000  # of the text that are cut into tokens


@dataclass(frozen=True)
class Item:
    """A request of a trace: seconds since it began, tokens of prompt and answer, names of the prompt's
    blocks of so many tokens each (none: the prompt is its own)."""

    at: float
    prompt: int
    new: int
    blocks: tuple[int, ...] = ()
    block: int = BLOCK


@dataclass(frozen=True)
class Arrival:
    at: float
    ids: tuple[int, ...]
    new: int


@dataclass(frozen=True)
class Trace:
    """factor: of all lengths; compressed: how many times as fast as recorded."""

    name: str
    arrivals: tuple[Arrival, ...]
    factor: float
    compressed: float


def load(name: str, data: Path = DATA) -> list[Item]:
    """A recorded trace in full. Raises `FileNotFoundError` where the data are not."""
    path = data / FILES[name]
    with open(path, encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in file]
            return [
                Item(r["timestamp"] / 1000, r["input_length"], r["output_length"], tuple(r["hash_ids"]))
                for r in rows
            ]
        said = list(csv.DictReader(file))
    times = [datetime.fromisoformat(r["TIMESTAMP"][:26]) for r in said]
    return [
        Item((t - times[0]).total_seconds(), int(r["ContextTokens"]), int(r["GeneratedTokens"]))
        for t, r in zip(times, said, strict=True)
    ]


def factor(items: Sequence[Item], context: int) -> float:
    """By which lengths are multiplied so that the longest request fits, each part rounded up."""
    return min(1.0, (context - 2) / max(i.prompt + i.new for i in items))


def scaled(item: Item, by: float) -> Item:
    def up(n: int) -> int:
        return max(1, math.ceil(n * by - 1e-9))

    return replace(item, prompt=up(item.prompt), new=up(item.new), block=up(item.block))


def timed(items: Sequence[Item], rate: float) -> tuple[list[Item], float]:
    """Arrivals from 0 on, `rate` a second on average, and by what time was compressed."""
    begin, span = items[0].at, items[-1].at - items[0].at
    by = span * rate / (len(items) - 1) if span else 1.0
    return [replace(i, at=(i.at - begin) / by) for i in items], by


def replay(
    name: str, n: int, rate: float, context: int, text: Sequence[int], seed: int = 0, salt: str = "",
    data: Path = DATA,
) -> Trace:  # fmt: skip
    """n requests of a trace; see the scaling rule above. salt: prompts of another text for each, so that
    a server that is measured again has not stored them."""
    items = load(name, data)
    by = factor(items, context)
    start = random.Random(seed).randrange(max(1, len(items) - n))
    chosen, compressed = timed([scaled(i, by) for i in items[start : start + n]], rate)
    arrivals = [Arrival(i.at, prompt(i, k, salt, text), i.new) for k, i in enumerate(chosen)]
    return Trace(name, tuple(arrivals), by, compressed)


def prompt(item: Item, number: int, salt: str, text: Sequence[int]) -> tuple[int, ...]:
    """The tokens of a trace's request."""
    if not item.blocks:
        return passage(text, item.prompt, f"{salt} request {number}")
    ids = [t for b in item.blocks for t in passage(text, item.block, f"{salt} block {b}")]
    return tuple(ids[: item.prompt])


def passage(text: Sequence[int], n: int, key: str) -> tuple[int, ...]:
    """n consecutive tokens of the text, at a place that the key names; the text goes round."""
    at = random.Random(key).randrange(len(text))
    out = list(text[at : at + n])
    while len(out) < n:
        out += text[: n - len(out)]
    return tuple(out)


def text_ids(model: Path, data: Path = DATA) -> list[int]:
    """The text in tokens of a model's tokenizer (a Hugging Face folder)."""
    from pronghorn.model.tokenizer import load_tokenizer

    raw = (data / TEXT).read_bytes()[:TEXT_BYTES]
    tokenizer = load_tokenizer(model, {})
    return [int(t) for t in tokenizer.encode(raw.decode("ascii", "ignore")) if t != tokenizer.bos]
