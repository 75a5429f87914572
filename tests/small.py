"""Options that make each method act within a short text on a tiny model, by method name.

A method that is not listed runs with its defaults. Required options must be listed.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pronghorn.compose import names
from pronghorn.datastore.build import build
from pronghorn.model.tokenizer import Tokenizer
from tests.engines import byte_tokenizer

OPTIONS = {
    "minicache": "start=0",
    "streaming-llm": "sinks=4,window=40,every=16,prompt_every=64",
    "snapkv": "budget=24,window=8,kernel=3",
    "h2o": "budget=24,every=16,prompt_every=32",
    "tova": "budget=24,every=16,prompt_every=32",
    "d2o": "budget=24,every=16,prompt_every=32",
    "knorm": "budget=24,every=16,prompt_every=32",
    "random": "budget=24,every=16,prompt_every=32",
    "scissorhands": "budget=24,history=40,every=16,prompt_every=32",
    "keyformer": "budget=24,every=16,prompt_every=32",
    "critic": "budget=24,every=16,prompt_every=32",
    "expected-attention": "budget=24,every=16,prompt_every=32",
    "kvzip": "budget=24,chunk=40",
    "adakv": "policy='h2o:budget=24,every=16,prompt_every=32'",
    "pyramidkv": "policy='snapkv:budget=24,window=8,kernel=3'",
    "razor-attention": "heads=1,window=24,every=16,prompt_every=32",
    "duo-attention": "heads=1,sinks=4,window=24,every=16,prompt_every=32",
    "prefixkv": "budget=24,window=8,every=16,prompt_every=32",
    "kvmerger": "budget=24,threshold=0.2,every=16,prompt_every=32",
    "ems": "budget=24,window=8,threshold=0.2,every=16,prompt_every=32",
    "elastic": "budget=24,window=8,every=16,prompt_every=32",
    "quest": "tokens=48,dense_layers=0",
    "a2ats": "tokens=48,codes=4,dense_layers=0",
    "double-sparsity": "tokens=48,channels=3,dense_layers=0",
    "tidal": "tokens=32,choosing=0",
    "sentence-kv": "tokens=48,start=16,recent=16,dense_layers=0",
    "squeezed": "tokens=32,dense_layers=0",
    "tokenselect": "tokens=16,start=16,recent=16,reuse_from=0.3",
    "recycled": "tokens=32,full_below=0.2",
    "lserve": "tokens=32,parts=2",
    "actqkv": "tokens=48,keys=3,density=0.9",
    "draft-model": "model=self",
    "self-skip": "layers=1a",
    "rapid": "least=0,budget=40,chunk=8,query=12,first=4",
    "fcfs": "chunk=33",
    "skip-layers": "layers=1",
    "lark": "grammar='start: (WORD /, /)+ /end/\nWORD: /[a-m]{2,5} [n-z]+/'",
    "regex": 'pattern="([a-m]{2,5} [n-z]+, )+end"',
    "json": 'schema=\'{"type":"array","minItems":8,"items":{"type":"string","minLength":3,"maxLength":9}}\'',
    "best-of-n": "n=3",
    "logit-bias": 'bias="65:3,66:-2"',
    "temperature": "value=0.7",
    "pages": "ram_gb=0.00005",
}

STORES = ("rest",)  # methods that look up in a datastore


@cache
def datastore(tokenizer: Tokenizer) -> str:
    """A datastore's file: some sentences, and characters by lot, so that every pair of those occurs."""
    r = random.Random(5)
    folder = Path(tempfile.mkdtemp(prefix="pronghorn-datastore-"))
    atexit.register(shutil.rmtree, folder, True)
    lines = ["".join(chr(r.randrange(32, 127)) for _ in range(60)) for _ in range(600)]
    words = ["river", "gate", "amber", "stone", "lamp", "fox", "cedar", "violet", "north", "bell"]
    for a in words:
        for b in words:
            lines.append(f"The code of the {a} {b} is {r.randrange(99999)}.")
            lines.append(f"Once upon a time there was a {a} {b} who lived in a small house near the {a}.")
    text, out = folder / "texts.txt", folder / "small.store"
    text.write_text("\n".join(lines), encoding="utf-8")
    build(out, [text], tokenizer, "small")
    return str(out)


def spec(name: str, slot: str = "", tokenizer: Tokenizer | None = None) -> str:
    """A method's spec with small options; with its slot where the name alone is ambiguous. tokenizer: of the
    model that it is for, that of `tests.engines` without it."""
    homes = [s for s, group in names().items() if name in group]
    full = f"{slot or homes[0]}.{name}"
    if name in STORES:
        return f"{full}:store={datastore(tokenizer or byte_tokenizer())}"
    return full + (":" + OPTIONS[name] if name in OPTIONS else "")


def specs(slot: str, tokenizer: Tokenizer | None = None) -> list[str]:
    """Every method of a slot."""
    return [spec(name, slot, tokenizer) for name in names()[slot]]
