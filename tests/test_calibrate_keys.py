"""`pronghorn calibrate channels` and `codebooks`: what selectors find by their tables, on the look-up
model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cli
import numpy as np
import pytest

from pronghorn.calibrate import channels, codebooks
from pronghorn.calibrate.codebooks import Codebooks, fitted
from pronghorn.calibrate.keys import ChannelSums, Samples, Watch, find_channels, find_codebooks, watched
from pronghorn.errors import MethodError, RequestError
from pronghorn.kv.layout import PAGE
from pronghorn.llm import LLM
from pronghorn.methods.select import _pages
from pronghorn.methods.select.a2ats import A2ATS
from pronghorn.methods.select.double_sparsity import DoubleSparsity
from pronghorn.ops.ref import Ops
from pronghorn.types import Array, Choice, Field, Guarantee, Traits
from tests.lookups import MODEL, answered, tasks

OPS = Ops("float32")
TOP = 16  # rows of the largest scores
DIM = 32


@dataclass(frozen=True)
class Lots(_pages.Pages):
    """The control: pages by lot."""

    tokens: int
    dense_layers: int = 0
    slot = "select"
    traits = Traits(Guarantee.APPROXIMATE)

    @property
    def choice(self) -> Choice:
        return Choice("dots", _pages.whole(self.tokens))

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (Field("mean", "bfloat16", (1, dim), rows=-1),)

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        r = np.random.default_rng(int(np.abs(k).sum() * 1000))
        return {"mean": r.standard_normal((len(k), 1, k.shape[2])).astype(np.float32)}


class Seen:
    """All queries and keys of one text."""

    q: Any
    k: Any

    def __call__(self, q: Any, k: Any) -> None:
        old = getattr(self, "q", None)
        self.q, self.k = q if old is None else np.concatenate([old, q], axis=3), k.astype(np.float32)


@pytest.fixture(scope="module")
def looker() -> Iterator[LLM]:
    pytest.importorskip("pronghorn.ops.cpu._native")
    llm = LLM(MODEL, use=[Watch()], threads=1, defaults=("match", "fcfs"))
    yield llm
    llm.close()


def texts(llm: LLM, first: int, n: int, length: int = 900) -> list[list[int]]:
    asked = [t for i, t in enumerate(tasks("kv", first + n, length)) if i >= first]
    return [llm.tokenizer.encode(f"{t.text} {t.questions[0][0]} {t.questions[0][1]} ;") for t in asked]


@pytest.fixture(scope="module")
def files(looker: LLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, some = tmp_path_factory.mktemp("tables"), texts(looker, 40, 16)
    out = {name: str(folder / f"{name}.json") for name in ("channels", "codebooks")}
    find_channels(looker, "lookup", some).write(Path(out["channels"]))
    find_codebooks(looker, "lookup", some).write(Path(out["codebooks"]))
    return out


@pytest.fixture(scope="module")
def seen(looker: LLM) -> Seen:
    """Of a text that no table was made with."""
    out = Seen()
    watched(looker, texts(looker, 0, 1), out)
    return out


def found_rows(selector: Any, tables: dict[str, Any], seen: Seen, rows: int = 64) -> tuple[float, float]:
    """Of the TOP rows of each of the last queries: the share in pages that are read, and the share that is
    among as many rows by the index's own scores."""
    n = seen.k.shape[2] // PAGE * PAGE
    valid = np.ones((n // PAGE, PAGE), bool)
    in_pages, in_rows = [], []
    for layer, head in np.ndindex(seen.k.shape[:2]):
        own = selector.of(tables, layer, head)
        k = seen.k[layer, head, :n].reshape(-1, PAGE, DIM)
        q = np.ascontiguousarray(np.swapaxes(seen.q[layer, head, :, -rows:], 0, 1), np.float32)
        index = own.index(k, valid, OPS)
        index = {f.name: OPS.cast(OPS.to(index[f.name], f.dtype)) for f in own.fields(PAGE, DIM)}
        pages = own.select(q, index, OPS).pages
        logits = q @ k.reshape(-1, DIM).T  # (rows, g, n)
        best = np.argsort(-logits, axis=-1)[..., :TOP]
        hit = np.take_along_axis(pages[:, None].repeat(q.shape[1], 1), best // PAGE, axis=-1)
        in_pages.append(hit.mean())
        told = k_of_codes(own, index) if "code" in index else k_of_labels(index)
        guess = np.argsort(-(q @ told.T), axis=-1)[..., :TOP]
        in_rows.append(np.mean([[len(np.intersect1d(a, b)) / TOP for a, b in zip(x, y, strict=True)]
                                for x, y in zip(best, guess, strict=True)]))  # fmt: skip
    return float(np.mean(in_pages)), float(np.mean(in_rows))


def k_of_labels(index: dict[str, Any]) -> Any:
    """(n, DIM): keys as labels have them."""
    rows = np.swapaxes(index["label"] * index["unit"][..., None], 1, 2)
    out = np.zeros((*rows.shape[:2], DIM), np.float32)
    np.put_along_axis(out, index["channel"].astype(int)[:, None].repeat(PAGE, 1), rows, axis=2)
    return out.reshape(-1, DIM)


def k_of_codes(own: Any, index: dict[str, Any]) -> Any:
    books = own.books(DIM)
    code = np.swapaxes(index["code"].astype(int), 1, 2).reshape(-1, len(books.book))
    turned = np.concatenate([book[code[:, g]] for g, book in enumerate(books.book)], axis=1)
    return turned @ books.unturn.T


# -------------------------------------------------------------------------------- channels


def test_sums_of_channels_are_means_over_pairs() -> None:
    r = np.random.default_rng(0)
    q, k = r.standard_normal((1, 1, 2, 5, 3)), r.standard_normal((1, 1, 7, 3))
    sums = ChannelSums()
    sums(q, k)
    want = np.zeros(3)
    for i in range(5):
        for h in range(2):
            want += np.mean([np.abs(q[0, 0, h, i] * k[0, 0, j]) for j in range(3 + i)], axis=0)
    assert np.asarray(sums.total)[0, 0] == pytest.approx(want)


def test_channels_of_a_table_find_the_best_rows(files: dict[str, str], seen: Seen) -> None:
    """The card's check, at a quarter of the channels (r = 4) and of the rows."""
    table = {"x": channels.read(files["channels"])}
    own = found_rows(DoubleSparsity(224, 8, 0), {}, seen)
    listed = found_rows(DoubleSparsity(224, 8, 0, "x"), table, seen)
    print("own", own, "listed", listed)
    assert listed[0] >= 0.9


# ------------------------------------------------------------------------------- codebooks


def test_codes_find_the_best_rows(files: dict[str, str], seen: Seen) -> None:
    """The card's check: recall of the best rows by codes; by lot they find fewer."""
    table = {"x": codebooks.read(files["codebooks"])}
    listed = found_rows(A2ATS(224, 8, 0, "x"), table, seen)
    lot = found_rows(A2ATS(224, 8, 0), {}, seen)
    print("codes", listed, "lot", lot)
    assert min(listed) >= 0.85 > lot[1]


def errors(looker: LLM, seen: Seen, groups: int, plain: bool) -> tuple[float, float]:
    """Mean squared errors of logits over their variance, and of keys, over all heads of a text that was not
    calibrated on."""
    samples = Samples(8000, 16 * 2)
    watched(looker, texts(looker, 40, 16), samples)
    keys, metric = np.concatenate(samples.keys, axis=2), np.asarray(samples.metric)
    of_logits, of_keys = [], []
    for at in np.ndindex(keys.shape[:2]):
        turn, book = fitted(keys[at], np.eye(DIM) if plain else metric[at], groups)
        one = Codebooks("", "", 1, turn[None, None], book[None, None]).of(0, 0)
        z = seen.k[at] @ one.turn
        part = one.book.shape[2]
        near = [np.argmax(z[:, g * part : (g + 1) * part] @ c.T - 0.5 * (c * c).sum(1), axis=1)
                for g, c in enumerate(one.book)]  # fmt: skip
        coded = np.concatenate([c[i] for c, i in zip(one.book, near, strict=True)], axis=1)
        away = seen.k[at] - coded @ one.unturn.T
        q = seen.q[at].reshape(-1, DIM)[::7]
        of_logits.append(np.mean((q @ away.T) ** 2) / np.var(q @ seen.k[at].T))
        of_keys.append(np.mean(away**2))
    return float(np.mean(of_logits)), float(np.mean(of_keys))


def test_the_metric_of_queries_beats_that_of_keys(looker: LLM, seen: Seen) -> None:
    """In logits, for one book and for several; it loses in keys, as it should."""
    for groups in (1, 8):
        ours, plain = (errors(looker, seen, groups, which) for which in (False, True))
        print(groups, ours, plain)
        assert ours[0] < 0.95 * plain[0]
        assert ours[1] > plain[1]


def test_turns_are_undone(files: dict[str, str], seen: Seen) -> None:
    table = codebooks.read(files["codebooks"])
    for at in np.ndindex(table.shape[:2]):
        one = table.of(*at)
        q, k = seen.q[at].reshape(-1, DIM)[:50], seen.k[at][:50]
        wanted = q @ k.T
        assert np.abs((q @ one.unturn) @ (k @ one.turn).T - wanted).max() < 1e-3 * np.abs(wanted).max()


# ----------------------------------------------------------------------------- on the model


@pytest.mark.parametrize(("name", "kind"), [("double-sparsity", "channels"), ("a2ats", "codebooks")])
def test_it_answers_where_pages_by_lot_do_not(files: dict[str, str], name: str, kind: str) -> None:
    options = "tokens=64,dense_layers=0" + (",channels=8" if kind == "channels" else "")
    right = {}
    for use in ((), (f"{name}:table={files[kind]},{options}",), (Lots(64),)):
        llm = LLM(MODEL, use=list(use), threads=1, defaults=("match", "fcfs"))
        right[str(use)] = answered(llm, tasks("kv", 50))
        llm.close()
    dense, ours, lots = right.values()
    print(name, dense, ours, lots)
    assert ours >= dense - 1  # of 50: two points
    assert lots < 0.5 * dense


# ---------------------------------------------------------------------------------- command


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> cli.Caller:
    pytest.importorskip("pronghorn.ops.cpu._native")
    return cli.Caller(capsys, monkeypatch)


def test_commands_write_tables_for_methods(call: cli.Caller, tmp_path: Path, files: dict[str, str]) -> None:
    text = tmp_path / "t.txt"
    text.write_text(" ".join(t.text for t in tasks("kv", 3)))
    reads: dict[str, Any] = {"channels": channels.read, "codebooks": codebooks.read}
    for kind, read in reads.items():
        path = str(tmp_path / f"{kind}.json")
        more = ("--codes", "5") if kind == "codebooks" else ()
        told = call("calibrate", kind, str(MODEL), "-o", path, "--text", str(text), "--json", *more)
        table = read(path)
        assert told.data["table"] == path
        assert table.shape == (4, 2, DIM)
        assert table.fingerprint == read(files[kind]).fingerprint
        assert "-o" in call.refused("calibrate", kind, str(MODEL))
    assert told.data["use"] == f"a2ats:table={path},codes=5"
    with pytest.raises(MethodError, match="codes=5"):
        LLM(MODEL, use=[f"a2ats:table={path}"], threads=1)
    llm = LLM(MODEL, use=[told.data["use"]], threads=1)
    assert llm.generate("a", max_tokens=2).tokens
    llm.close()
    with pytest.raises(MethodError, match="calibrate heads"):
        LLM(MODEL, use=[f"duo-attention:table={files['channels']}"], threads=1)
    with pytest.raises(MethodError, match="another model"):
        LLM(use=[f"double-sparsity:table={files['channels']}"], threads=1)


def test_few_keys_are_refused(looker: LLM) -> None:
    with pytest.raises(RequestError, match="give more"):
        find_codebooks(looker, "lookup", [looker.tokenizer.encode(tasks("kv", 1)[0].text)[:100]])
    with pytest.raises(RequestError, match="two tokens"):
        find_channels(looker, "lookup", [[0]])


# ------------------------------------------------------------------------------------ files

HEAD = {"version": 1, "model": "m", "fingerprint": "0" * 64, "tokens": 9}


def b64(a: Any) -> str:
    return base64.b64encode(a.tobytes()).decode()


BOOKS = HEAD | {"kind": "pronghorn codebooks", "shape": [1, 1, 2, 2], "turn": b64(np.eye(2, dtype="<f4")),
                "book": b64(np.ones((2, 256, 1), "<f2"))}  # fmt: skip
SIZES = HEAD | {"kind": "pronghorn channels", "size": [[[0.5, 1.0]]]}


@pytest.mark.parametrize(
    ("good", "change"),
    [
        *((BOOKS, c) for c in (
            {"kind": "pronghorn heads"}, {"shape": [1, 1, 2]}, {"shape": [1, 1, 2, 3]},
            {"shape": [1, 1, 2, True]}, {"shape": [10**9, 1, 2, 2]}, {"shape": [4096, 4096, 1024, 1024]},
            {"shape": "1122"}, {"turn": 7}, {"turn": BOOKS["turn"][:-4]}, {"turn": "!" * len(BOOKS["turn"])},
            {"turn": b64(np.ones((2, 2), "<f4"))}, {"turn": b64(np.zeros((2, 2), "<f4"))},
            {"turn": b64(np.array([[np.nan, 0], [0, 1]], "<f4"))},
            {"book": b64(np.full((2, 256, 1), np.inf, "<f2"))}, {"book": BOOKS["book"] + "AAAA"},
            {"tokens": 0},
        )),
        *((SIZES, c) for c in (
            {"kind": "pronghorn codebooks"}, {"size": []}, {"size": [[]]}, {"size": [[[]]]},
            {"size": [[[2]]]}, {"size": [[[True]]]}, {"size": [[[0], [0, 1]]]},
            {"size": [[[0]], [[0], [0]]]}, {"size": "x"}, {"size": [[[0] * 2000]]},
        )),
    ],
)  # fmt: skip
def test_nothing_in_a_file_is_believed(tmp_path: Path, good: dict[str, Any], change: dict[str, Any]) -> None:
    path = tmp_path / "t.json"
    read: Any = codebooks.read if good is BOOKS else channels.read
    path.write_text(json.dumps(good))
    assert read(str(path)).tokens == 9
    path.write_text(json.dumps(good | change))
    with pytest.raises(MethodError, match="is no calibration table.*calibrate"):
        read(str(path))
