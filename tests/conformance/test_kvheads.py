"""Policies that treat heads apart by a calibration table, and the table itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronghorn.calibrate.heads import Watch
from pronghorn.calibrate.opened import opened
from pronghorn.calibrate.table import BYTES_MOST, Table, read
from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.methods.kv.duo_attention import DuoAttention
from pronghorn.methods.kv.razor_attention import RazorAttention
from pronghorn.model.bind import bind
from tests.conformance._rig import N_VOCAB, Small, small, weights

IDS = np.random.default_rng(5).integers(0, N_VOCAB, 110).tolist()
N_PROMPT = 75
MARK = "0" * 64


def table(induction: Any, echo: Any = None) -> Table:
    a = np.asarray(induction, float)
    b = 0 * a if echo is None else np.asarray(echo, float)
    both = (tuple(tuple(row) for row in x.tolist()) for x in (b, a))
    return Table("some/model", MARK, 100, *both)


# ------------------------------------------------------------------------------- duo-attention


@pytest.mark.parametrize("heads", [(), (1, 4)])
def test_duo_attention_streams_where_a_head_does_not_retrieve(heads: tuple[int, ...]) -> None:
    run = Small(small(), DuoAttention(heads, sinks=4, window=16, every=16, prompt_every=16))
    run.feed(IDS, N_PROMPT)
    view = run.store.view(run.kv, N_PROMPT)
    late = list(range(run.kv.length // 16 * 16 - 16, run.kv.length))
    for h in range(run.bound.n_layers * run.bound.n_kv):
        m = divmod(h, run.bound.n_kv)
        want = list(range(len(IDS))) if h in heads else [0, 1, 2, 3, *late]
        assert view.pos[m][view.valid[m]].tolist() == want


def test_duo_attention_holds_half_and_the_windows() -> None:
    """Half of the heads stream: their pages are those of sinks and window, whatever the prompt is."""
    ids = np.random.default_rng(0).integers(0, N_VOCAB, 960).tolist()
    for n in (320, 960):
        run = Small(small(), DuoAttention((0, 2, 4), sinks=4, window=60, prompt_every=160))
        run.feed(ids[:n], n)
        head = PAGE * run.bound.head_dim * 8 * 2
        assert run.store.held == 3 * head * (n // PAGE) + 3 * head * (64 // PAGE)


@pytest.mark.parametrize("policy", [DuoAttention, RazorAttention])
def test_heads_come_from_a_table(policy: Any) -> None:
    """3 layers of 2: the best three of six."""
    options: dict[str, Any] = {"sinks": 4, "window": 16, "every": 16, "prompt_every": 16}
    runs = []
    for p in (policy(table="x", share=0.5, **options), policy(heads=(1, 2, 5), **options)):
        run = Small(small(), p)
        run.store.tables = {"x": table([[0.1, 0.9], [0.8, 0.0], [0.2, 0.3]])}
        run.feed(IDS, N_PROMPT)
        runs.append([(n, plan and {g: x.tolist() for g, x in plan.keep.items()}) for n, plan in run.plans])
    assert runs[0] == runs[1]
    assert policy(table="x").traits.tables == ("x",)
    assert policy(heads=(1,)).traits.tables == ()


def test_one_in_fifteen_is_found_by_echo() -> None:
    induction, echo = np.linspace(1, 0, 30).reshape(3, 10), np.linspace(0, 1, 30).reshape(3, 10)
    found = np.flatnonzero(table(induction, echo).best(0.5))
    assert found.tolist() == [*range(14), 29]
    assert table(induction, echo).best(0).sum() == 0
    assert table(induction, echo).best(1).all()
    assert np.flatnonzero(table(0 * induction).best(0.2)).tolist() == list(range(6)), "ties: the earlier head"


@pytest.mark.parametrize("policy", [DuoAttention, RazorAttention])
@pytest.mark.parametrize(
    "bad", [{"heads": (1,), "table": "x"}, {"heads": (-1,)}, {"share": 1.5}, {"window": 0}, {"sinks": -1}]
)
def test_ranges(policy: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        policy(**bad)


# ------------------------------------------------------------------------------- scores


def test_scores_against_loops() -> None:
    unit, first = 18, 2
    ids = [*IDS[:first], *IDS[10 : 10 + unit] * 3]
    watch = Watch(first, unit)
    run, dense = Small(small(), watch), Small(small())
    run.feed(ids, len(ids), 7)
    dense.feed(ids, len(ids))
    dense.store.seal(dense.kv)
    view = dense.store.view(dense.kv, len(ids))
    q = np.concatenate([x for _, _, x in dense.queries], axis=1)
    for layer in range(view.n_layers):
        want = np.zeros((2, 4))
        for head in range(4):
            for i in range(first + unit, len(ids)):
                s = view.k[layer, head // 2, : i + 1] @ q[layer, i, head] * view.scale[layer]
                w = np.exp(s - s.max())
                w /= w.sum()
                for j in range(first, i):
                    if (i - j) % unit == 0:
                        want[0, head] += w[j] / (2 * unit)
                        want[1, head] += w[j + 1] / (2 * unit)
        for name, mean in zip(("echo", "induction"), want, strict=True):
            pairs = [max(mean[:2]), max(mean[2:])]
            assert np.abs(watch.scores(name, 2)[layer] - pairs).max() < 1e-5


def test_a_head_made_to_echo_is_found() -> None:
    """Head 1 of the first layer asks for the token's own kind: tokens are points of a circle, in the pair of
    channels that turns least."""
    tape, tensors = weights()
    angle = 2 * np.pi * np.arange(N_VOCAB) / 24
    tensors["embed"][:, :2] = 30 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    pick = np.zeros((8, 32), np.float32)
    pick[3, 0] = pick[7, 1] = 3.7
    tensors["0.k"][8:] = pick
    tensors["0.q"][16:24] = pick
    watch = Watch(0, 24)
    run = Small(bind(tape, tensors, (), (), ("q.last1",)), watch)
    run.feed(np.random.default_rng(1).permutation(24).tolist() * 4, 96)
    echo = watch.scores("echo", 2)
    assert echo[0, 1] > 0.5  # the token itself, which is not counted, has a half to a quarter
    assert echo[0, 1] > 2 * np.delete(echo.reshape(-1), 1).max()


# ------------------------------------------------------------------------------- files


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = table([[0.1, 1.0], [0, 0.5]])
    path = tmp_path / "t.json"
    made.write(path)
    assert read(str(path)) == made
    assert opened([(str(path), "heads")], MARK, (2, 2, 8)) == {str(path): made}
    with pytest.raises(MethodError, match="layers and heads"):
        opened([(str(path), "heads")], MARK, (2, 4, 8))


def test_a_table_of_another_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table([[0.1]]).write(path)
    with pytest.raises(MethodError, match=r"another model \('some/model'\).*calibrate heads"):
        opened([(str(path), "heads")], "1" * 64, (1, 1, 8))


GOOD = {"kind": "pronghorn heads", "version": 1, "model": "m", "fingerprint": MARK, "tokens": 9,
        "echo": [[0, 0.5]], "induction": [[1, 0]]}  # fmt: skip
BAD: dict[str, Any] = {
    "no JSON": b"{",
    "not text": b"\xff\xfe",
    "empty": b"",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "a number": b"7",
    "large": b" " * (BYTES_MOST + 1),
    "nan": json.dumps(GOOD | {"echo": [[float("nan"), 0]]}).encode(),
    "infinite": json.dumps(GOOD | {"echo": [[float("inf"), 0]]}).encode(),
    "many digits": json.dumps(GOOD).replace("[[1,", "[[" + "9" * 5000 + ",").encode(),
    "kind": {"kind": "pronghorn tails"},
    "version": {"version": 2},
    "version true": {"version": True},
    "model": {"model": 7},
    "long name": {"model": "m" * 5000},
    "fingerprint": {"fingerprint": "0" * 63},
    "fingerprint digits": {"fingerprint": "g" * 64},
    "fingerprint list": {"fingerprint": ["0"] * 64},
    "tokens": {"tokens": 0.5},
    "tokens true": {"tokens": True},
    "tokens none": {"tokens": 0},
    "no layers": {"echo": [], "induction": []},
    "no heads": {"echo": [[]], "induction": [[]]},
    "ragged": {"echo": [[0, 0], [0]], "induction": [[0, 0], [0]]},
    "other shape": {"echo": [[0, 0, 0]]},
    "more layers": {"echo": [[0, 0], [0, 0]]},
    "layers": {"echo": [[0, 0]] * 5000, "induction": [[0, 0]] * 5000},
    "heads": {"echo": [[0] * 5000], "induction": [[0] * 5000]},
    "above one": {"induction": [[1.01, 0]]},
    "below zero": {"induction": [[-0.01, 0]]},
    "a bool": {"induction": [[True, 0]]},
    "a text": {"induction": [["0.5", 0]]},
    "scores a text": {"induction": "00"},
    "a row a text": {"induction": ["00"]},
}


@pytest.mark.parametrize("name", BAD)
def test_nothing_in_a_file_is_believed(name: str, tmp_path: Path) -> None:
    path, bad = tmp_path / "t.json", BAD[name]
    path.write_bytes(bad if isinstance(bad, bytes) else json.dumps(GOOD | bad).encode())
    with pytest.raises(MethodError, match="no calibration table: .*calibrate heads"):
        read(str(path))


@pytest.mark.parametrize("field", GOOD)
def test_every_field_must_be_there(field: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({k: v for k, v in GOOD.items() if k != field}))
    with pytest.raises(MethodError, match=field):
        read(str(path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(GOOD))
    assert read(str(path)).shape == (1, 2)
    for other in (tmp_path, tmp_path / "absent", "/dev/zero", "a\0b"):
        with pytest.raises(MethodError, match="calibrate heads"):
            read(str(other))
