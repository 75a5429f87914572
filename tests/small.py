"""Options that make each method act within a short text on a tiny model, by method name.

A method that is not listed runs with its defaults. Required options must be listed.
"""

from __future__ import annotations

from pronghorn.compose import names

OPTIONS = {
    "streaming-llm": "sinks=4,window=40,every=16,prompt_every=64",
    "snapkv": "budget=24,window=8,kernel=3",
    "quest": "tokens=48,dense_layers=0",
    "fcfs": "chunk=33",
    "skip-layers": "layers=1",
    "lark": "grammar='start: (WORD /, /)+ /end/\nWORD: /[a-m]{2,5} [n-z]+/'",
    "regex": 'pattern="([a-m]{2,5} [n-z]+, )+end"',
    "json": 'schema=\'{"type":"array","minItems":8,"items":{"type":"string","minLength":3,"maxLength":9}}\'',
    "best-of-n": "n=3",
    "logit-bias": 'bias="65:3,66:-2"',
    "temperature": "value=0.7",
}


def spec(name: str, slot: str = "") -> str:
    """A method's spec with small options; with its slot where the name alone is ambiguous."""
    homes = [s for s, group in names().items() if name in group]
    full = f"{slot or homes[0]}.{name}"
    return full + (":" + OPTIONS[name] if name in OPTIONS else "")


def specs(slot: str) -> list[str]:
    """Every method of a slot."""
    return [spec(name, slot) for name in names()[slot]]
