"""Every pair of methods from different slots finishes within its guarantee or is refused with reasons.

The table of what happened is docs/compatibility.md; the last test fails when that page is out of date.
Write it anew with `PRONGHORN_WRITE_DOCS=1 python -m pytest tests/test_pairs.py`.
"""

from __future__ import annotations

import itertools
import os
from functools import cache
from pathlib import Path

import pytest

from pronghorn import memory as core
from pronghorn.compose import Facts, check, compose, names, parse
from pronghorn.errors import PronghornError
from pronghorn.seq import Request
from pronghorn.types import Guarantee, Traits
from tests.engines import engine, prompt
from tests.small import spec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
BACKEND = "native"
# these say what text is asked for; the rest says how it is computed
ASKING = ("constrain", "shape", "search")
METHODS = [(slot, name) for slot, group in names().items() for name in group]
PAIRS = [(a, b) for a, b in itertools.combinations(METHODS, 2) if a[0] != b[0]]


def run(use: list[str], temperature: float) -> list[list[int]]:
    """Two requests, the second of which shares a prefix with the first; then nothing may be held."""
    e = engine(use, BACKEND)
    p = prompt(80, 5)
    out = []
    for ids in (p, p[:60] + prompt(25, 6)):
        ((best, *_),) = e.run([Request(ids, 40, temperature, 3)])
        assert best.finish in ("stop", "length")
        assert best.error == ""
        out.append(list(best.new))
    e.close()
    assert e.store.held == 0
    return out


@cache
def plain(asked: tuple[str, ...], temperature: float) -> list[list[int]]:
    return run([*asked, *(() if any(a.startswith("verify.") for a in asked) else ("match",))], temperature)


def traits(slot: str, name: str) -> Traits:
    found: Traits = parse(spec(name, slot))[1].traits
    return found


@cache
def outcome(a: tuple[str, str], b: tuple[str, str]) -> str:
    """ "exact", "distribution", "approximate" or "refused: reasons"."""
    chosen = [a, b]
    use = [spec(name, slot) for slot, name in chosen]
    if not any(slot == "verify" for slot, _ in chosen):
        use.append("match")
    c = compose(use)
    reasons = check(c, Facts(2, 4096, False, False))
    if reasons:
        return "refused: " + "; ".join(reasons)
    greedy = any(t.greedy for t in c.traits)
    temperature = 0.0 if greedy else 0.8
    try:
        got = run(use, temperature)
    except PronghornError as e:
        assert len(str(e)) > 20
        return f"refused: {e}"
    # an exact method changes nothing, beside an approximate one neither; but drafts decide what those
    # verifiers let stand that do not keep the target's own draws
    free = any(s == "verify" and traits(s, n).guarantee is not Guarantee.EXACT for s, n in chosen)
    asking = (*ASKING, "draft") if free else ASKING
    exact = {(s, n) for s, n in chosen if s not in asking and traits(s, n).guarantee is Guarantee.EXACT}
    if exact:
        rest = tuple(spec(name, slot) for slot, name in chosen if (slot, name) not in exact)
        assert got == plain(rest, temperature)
    return c.guarantee.value


@pytest.fixture(autouse=True, scope="module")
def fine_grids():
    """Barriers close enough together that short texts cross many."""
    held = core.PROMPT_GRID, core.DECODE_GRID
    core.PROMPT_GRID, core.DECODE_GRID = 32, 16
    yield
    core.PROMPT_GRID, core.DECODE_GRID = held


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0][0]}.{p[0][1]}+{p[1][0]}.{p[1][1]}")
def test_pair(pair: tuple[tuple[str, str], tuple[str, str]]):
    assert outcome(*pair)


def table() -> str:
    mark = {"exact": "E", "distribution": "D", "approximate": "A"}
    heads = [f"{slot}.{name}" for slot, name in METHODS]
    lines = [
        "# What combines with what",
        "",
        "Made by `tests/test_pairs.py`, which runs every pair on a tiny random model: two requests, the "
        "second sharing a prefix with the first. **E**: ran, and its tokens equal those of the plain path. "
        "**D**: ran, and promises the distribution. **A**: ran, approximate by declaration; where one of the "
        "two is exact, the tokens equal those of the other alone. **–**: same slot. **r**: refused, for the "
        "reason below the table.",
        "",
        "| | " + " | ".join(str(i + 1) for i in range(len(heads))) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    reasons: list[str] = []
    for i, a in enumerate(METHODS):
        cells = []
        for j, b in enumerate(METHODS):
            if a[0] == b[0]:
                cells.append("–")
                continue
            result = outcome(*((a, b) if i < j else (b, a)))
            if result in mark:
                cells.append(mark[result])
            else:
                if result not in reasons:
                    reasons.append(result)
                cells.append(f"r{reasons.index(result) + 1}")
        lines.append(f"| {i + 1} {heads[i]} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- r{i + 1}: {r}" for i, r in enumerate(reasons))]
    lines += ["", REFUSALS]
    return "\n".join(lines).rstrip() + "\n"


REFUSALS = """## Refusals that depend on the model or the request

- A policy that moves rows to new positions is refused on a model with learned position embeddings, and on one
  whose rotary frequencies change with the context length.
- A verifier that works at temperature 0 only refuses requests with another temperature.
- Skipping a layer that the model does not have, or all of them, is refused.
- Two methods for the same slot are refused, except shapers and weight formats.
"""


def test_the_page_is_up_to_date():
    made = table()
    if os.environ.get("PRONGHORN_WRITE_DOCS"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.exists(), "write it: PRONGHORN_WRITE_DOCS=1 python -m pytest tests/test_pairs.py"
    assert PAGE.read_text(encoding="utf-8") == made


@pytest.mark.parametrize(
    ("use", "facts", "word"),
    [
        (["streaming-llm"], Facts(2, 64, True, False), "learned position"),
        (["streaming-llm"], Facts(2, 64, False, True), "frequencies change"),
        (["skip-layers:layers=7"], Facts(2, 64, False, False), "not 7"),
        (["skip-layers:layers=0+1"], Facts(2, 64, False, False), "all 2"),
    ],
)
def test_refused_with_reasons(use: list[str], facts: Facts, word: str):
    assert word in "; ".join(check(compose(use), facts))
