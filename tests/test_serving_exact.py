"""The bundled model serves everybody the tokens that they would get alone, to the last one.

Alone, in a batch of 32 that others join and leave, from stored rows, in small chunks, after giving up rows to
others, after a restart from disk: in float32, and in bfloat16, where on this engine no near-tie turns either.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pronghorn.llm import LLM, find_model
from pronghorn.seq import Request, Seq

FP32 = ("weight.fp32", "kvfmt.fp32")
PRECISIONS = {"bf16": (), "fp32": FP32}
PLAIN = ("match", "fcfs")
STORY = (
    "Once upon a time there was a little fox who lived at the edge of a great wood. Every morning it went "
    "down to the river, looked at the water and wondered where all of it came from. "
)
LIST = "Registry:\n" + "".join(f"item {i}: {7919 * i % 10_000}\n" for i in range(12))


def asked(llm: LLM) -> list[Request]:
    """Prompts that share beginnings and prompts that do not, greedy and sampled."""
    texts = [
        STORY * 3, STORY * 3 + "One day", STORY, LIST + "What is the value of item 7?",
        LIST + "What is the value of item 3?", "Repeat exactly:\nThe quick brown fox counts 4821 boats.",
        "def add(a, b):\n    return", "x",
    ]  # fmt: skip
    return [
        Request(
            tuple(llm.tokenizer.encode(text)), 48, 0.8 * (i % 2), seed=i, ignore_eos=True,
            logprobs=i % 3 == 0, use=("token-recycling",) if i % 4 == 3 else (),
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip


@cache
def alone(precision: str) -> tuple[list[list[int]], list[list[float]]]:
    llm = LLM(use=PRECISIONS[precision], defaults=PLAIN)
    seqs = [llm.engine.run([r])[0][0] for r in asked(llm)]
    return [list(s.new) for s in seqs], [list(s.logprobs) for s in seqs]


def same(seqs: list[Seq], precision: str) -> None:
    tokens, logprobs = alone(precision)
    assert [list(s.new) for s in seqs] == tokens
    assert [list(s.logprobs) for s in seqs] == logprobs


def served(llm: LLM, crowd: int = 24, leave: bool = True) -> list[Seq]:
    """The requests among others that join them step by step, of which every third leaves half-way."""
    engine = llm.engine
    mine: list[Seq] = []
    others: list[Seq] = []
    wanted = asked(llm)
    words = llm.tokenizer.encode(STORY)
    step = 0
    while engine.busy or len(mine) < len(wanted) or len(others) < crowd:
        if step % 2 == 0 and len(others) < crowd:
            n = len(others)
            ids = tuple((words[: 5 + n] + words[n:]) * (1 + n % 3))
            others += engine.submit(Request(ids, 20 + n, 0.5, seed=n, ignore_eos=True))
        if step % 3 == 0 and len(mine) < len(wanted):
            mine += engine.submit(wanted[len(mine)])
        if leave and step % 5 == 4:
            for seq in others[2::3]:
                if seq.n_new > 3:
                    engine.cancel(seq)
        engine.step()
        step += 1
    assert max(s.counts.steps for s in mine) > 1
    return mine


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "use",
    [
        ("fcfs:max_running=32",),
        ("fcfs:chunk=7,rows=40", "prefix"),
        ("sarathi:tbt=0.002", "prefix", "prompt-lookup"),
        ("vtc", "prefix", "prompt-lookup"),
        ("splitfuse", "prefix", "token-recycling"),
    ],
    ids=lambda use: use[0].partition(":")[0] + ("+prefix" if "prefix" in use else ""),
)
def test_in_company(use: tuple[str, ...], precision: str):
    llm = LLM(use=(*PRECISIONS[precision], *use), defaults=PLAIN)
    same(served(llm), precision)
    same(served(llm, crowd=0), precision)  # now from stored rows, where rows are stored
    llm.close()
    assert llm.engine.store.held == 0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("swap", [False, True])
def test_where_memory_is_short(swap: bool, precision: str, tmp_path: Path):
    """Rows are given up and come back, by running them again or from a disk."""
    own = (f'swap:folder="{tmp_path}"',) if swap else ()
    llm = LLM(
        use=(*PRECISIONS[precision], "sarathi", "prefix", *own), defaults=PLAIN,
        kv_bytes=1100 * (4096 if precision == "fp32" else 2048),
    )  # fmt: skip
    if swap:
        llm.engine.cost.prefill = lambda *_: 1e9  # type: ignore[method-assign]  (running them again is dear)
    mine = served(llm, leave=False)
    same(mine, precision)
    llm.close()
    assert llm.engine.store.held == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_after_a_restart(precision: str, tmp_path: Path):
    use = (*PRECISIONS[precision], f'prefix:disk="{tmp_path}"')
    first = LLM(use=use, defaults=PLAIN)
    same([first.engine.run([r])[0][0] for r in asked(first)], precision)
    first.close()
    assert any(p.is_file() and p.stat().st_size > 1000 for p in tmp_path.rglob("*"))
    second = LLM(use=use, defaults=PLAIN)
    seqs = [second.engine.run([r])[0][0] for r in asked(second)]
    same(seqs, precision)
    assert seqs[0].counts.reused > 64
    second.close()


def test_the_bundled_model_is_there():
    assert Path(find_model("pronghorn-tiny")).is_dir()
