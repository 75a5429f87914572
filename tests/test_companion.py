"""Companions: what they store equals a prefill from scratch, and nothing of it outlives its sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pronghorn.beside import Beside
from pronghorn.companion import Borrowed, Companion
from pronghorn.compose import Facts, check, compose
from pronghorn.engine import Engine
from pronghorn.errors import MethodError
from pronghorn.kv.store import SeqKV
from pronghorn.llm import LLM
from pronghorn.methods.reuse.prefix import Prefix
from pronghorn.model.checkpoint import Checkpoint, Tensors
from pronghorn.model.sublayers import sublayers, without
from pronghorn.model.tokenizer import Tokenizer
from pronghorn.model.vocab_map import VocabMap, mapped
from pronghorn.model.write_hf import write_folder
from pronghorn.opening import parse
from pronghorn.seq import Request, Seq
from pronghorn.types import Draft
from tests.engines import byte_tokenizer, engine, generate, prompt
from tests.tiny import config, tape_model

BACKENDS = ["ref64", "native"]
DEEP = {"num_hidden_layers": 4}


@pytest.fixture(scope="module")
def small(tmp_path_factory: Any) -> Path:
    """A second checkpoint, with a tokenizer of bytes."""
    _, tensors = tape_model(5)
    folder = Path(tmp_path_factory.mktemp("draft")) / "model"
    checkpoint = Checkpoint(Path("random"), "hf", config(), Tensors.of(tensors), (0,), -1)
    write_folder(checkpoint, folder, "f32", lambda done, all_: None)
    return folder


@pytest.fixture(autouse=True)
def _bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of random weights has the vocabulary of `tests.engines`."""
    from pronghorn.model import tokenizer

    real = tokenizer.load_tokenizer

    def load(path: Path, metadata: Any) -> Tokenizer:
        bare = path.is_dir() and not (path / "tokenizer.json").exists()
        return byte_tokenizer() if bare else real(path, metadata)

    monkeypatch.setattr(tokenizer, "load_tokenizer", load)


def rows(model: Beside, seq: Seq) -> tuple[Any, ...]:
    """Stored keys and values of a sequence, all layers and heads."""
    (h,) = (h for key, h in model._held.items() if key[0] == seq.id)
    store, out = model.store, []
    for layer in range(store.n_layers):
        for head in range(store.n_kv):
            k, v = store.read_open(h.kv, layer, head, len(h.kv.open))
            out += [np.asarray(k)[: h.rows], np.asarray(v)[: h.rows]]
    return tuple(out)


def only(e: Engine) -> Any:
    (model,) = e.drafting.models.values()
    return model


def start(e: Engine, *requests: Request) -> list[Seq]:
    return [s for r in requests for s in e.submit(r)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["self", "small", "small:block=2", "small:exit=1"])
def test_rows_equal_a_prefill_after_every_round(backend: str, name: str, small: Path) -> None:
    """T-KV: rounds of drafts of which some stand; rows of what is accepted are those of a prefill."""
    name = name.replace("small", str(small))
    e = engine([f"draft-model:model={name},stop=1", "match"], backend)
    (seq,) = start(e, Request(prompt(40), max_tokens=1000, ignore_eos=True))
    fresh = engine([f"draft-model:model={name}", "match"], backend)
    again = only(fresh)
    rounds = 100 if backend == "native" else 25
    for n in range(rounds):
        while seq.n_new < 2 or (n == 0 and not seq.counts.drafted):
            e.step()
        e.step()
        if n % 9 and n < rounds - 2:
            continue
        only(e).sync([seq])
        copy: Any = SimpleNamespace(id=seq.id, tokens=[*seq.tokens], n_prompt=seq.n_prompt, request=0)
        while not any(again.sync([copy])):
            assert again._held[seq.id, 0].n < len(copy.tokens)
        mine, whole = rows(only(e), seq), rows(again, copy)
        for a, b in zip(mine, whole, strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max() < (1e-12 if backend == "ref64" else 1e-6)
        again.drop(seq.id)
    assert seq.counts.drafted > 2 * rounds


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_drafts_for_itself_is_always_right(backend: str) -> None:
    for temperature in (0.0, 0.8):
        e = engine(["draft-model:model=self,stop=1", "match"], backend)
        (seq,) = start(e, Request(prompt(40), max_tokens=61, ignore_eos=True, temperature=temperature))
        while not seq.finish:
            e.step()
        assert seq.counts.accepted == seq.counts.drafted > 40
        assert seq.counts.steps <= 12  # 5 drafted and one of its own


@pytest.mark.parametrize(
    "use", ["draft-model:model=self", "self-skip:layers=1+2a", "rapid:least=0,budget=40,query=8"]
)
def test_nothing_is_left(use: str) -> None:
    e = engine([use, "match", "batch"], "native", **DEEP)
    model: Companion = only(e)
    seqs = start(
        e, *(Request(prompt(30 + n, n), max_tokens=40, ignore_eos=True, n=1 + n % 3) for n in range(5))
    )
    for _ in range(6):
        e.step()
    e.cancel(seqs[0])
    while e.busy:
        e.step()
    if isinstance(model, Beside):
        assert model.store.held == model.reserved == 0
        assert not model._held
        assert not model._current
    else:
        assert isinstance(model, Borrowed)
        assert model.reserved == 0
        assert not model._guess


def test_preempted_sequences_give_up_and_come_back() -> None:
    plain = [generate(engine(["match"]), prompt(40, n), 40) for n in range(3)]
    e = engine(["draft-model:model=self", "match", "batch"])
    seqs = start(e, *(Request(prompt(40, n), max_tokens=40, ignore_eos=True) for n in range(3)))
    for _ in range(4):
        e.step()
    model = only(e)
    held = model.store.held
    assert held > 0
    victim = e.running[0]
    e.drafting.forget(victim)
    e.memory.give_up(victim, e.cost)
    e.running.remove(victim)
    e.waiting.insert(0, victim)
    assert 0 < model.store.held < held
    while e.busy:
        e.step()
    assert [list(s.new) for s in seqs] == plain
    assert model.store.held == 0


def test_branches_share_the_rows_of_their_prompt() -> None:
    e = engine(["draft-model:model=self", "match"])
    seqs = start(e, Request(prompt(160), max_tokens=8, ignore_eos=True, n=4, temperature=1.0))
    while not all(s.counts.drafted for s in seqs):
        e.step()
    model = only(e)
    assert len(model._held) == 4
    pages = model.store.held / model.store.open_layout.block
    assert pages <= 10 + 4 * 2, "160 rows once, and two pages for each branch"


# ------------------------------------------------------------------------------------ stored prefixes


def fed(model: Any) -> list[int]:
    """Rows of each step that the companion runs from now on."""
    out: list[int] = []
    real = model.runner.run
    model.runner.run = lambda rows, kvs, taps: out.append(rows.n) or real(rows, kvs, taps)
    return out


def alike(n: int, shared: int, each: int) -> list[tuple[int, ...]]:
    """Prompts that begin with the same tokens, and go on with their own."""
    return [(*prompt(shared), *prompt(each, 7 + i)) for i in range(n)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["self", "small", "small:block=2", "pronghorn-tiny-draft"])
def test_rows_behind_a_stored_prefix_equal_a_prefill(backend: str, name: str, small: Path) -> None:
    """T-KV: the second text starts from rows of the first, the third from rows of both."""
    draft = f"draft-model:model={name.replace('small', str(small))},stop=1"
    e, fresh = (engine([draft, "match", *more], backend) for more in (["prefix"], []))
    model, again = only(e), only(fresh)
    prompts = alike(2, 100, 20)
    for i, ids in enumerate([*prompts, (*prompts[1], *prompt(9, 3))]):
        (seq,) = start(e, Request(ids, max_tokens=30, ignore_eos=True))
        ran = fed(model)
        while seq.n_new < 25:
            e.step()
        if i:
            assert max(ran) < 60, "the prefix was run again"
        model.sync([seq])
        copy: Any = SimpleNamespace(id=seq.id, tokens=[*seq.tokens], n_prompt=seq.n_prompt, request=0)
        again.sync([copy])
        for a, b in zip(rows(model, seq), rows(again, copy), strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max() < (1e-12 if backend == "ref64" else 1e-6)
        again.drop(seq.id)
        while e.busy:
            e.step()
        assert list(seq.new) == generate(engine(["match"], backend), ids, 30)


def test_those_who_begin_alike_wait_for_the_first() -> None:
    """Also where a prompt comes in parts: its rows are run once, whoever asks for them meanwhile."""
    e = engine(["draft-model:model=self", "match", "batch", "prefix"], "native")
    model = only(e)
    ran = fed(model)
    seqs = start(e, *(Request(p, max_tokens=12, ignore_eos=True) for p in alike(5, 1200, 20)))
    while e.busy:
        e.step()
    assert all(s.counts.drafted for s in seqs)
    drafts = sum(s.counts.drafted + s.n_new for s in seqs)
    assert 1200 + 5 * 20 <= sum(ran) < 1200 + 5 * 20 + 3 * drafts
    assert [list(s.new) for s in seqs] == [
        generate(engine(["match"], "native"), s.request.ids, 12) for s in seqs
    ]


class Forgetful(Prefix):
    slot = "reuse"

    def store(self, ids: Sequence[int], kv: SeqKV, grid: int) -> None:
        kv.free()


def test_nobody_waits_for_rows_that_are_not_to_be_had() -> None:
    e = engine(["draft-model:model=self", "match", "batch", Forgetful()])
    seqs = start(e, *(Request(p, max_tokens=30, ignore_eos=True) for p in alike(3, 600, 20)))
    while e.busy:
        e.step()
    assert all(s.counts.drafted > 10 for s in seqs)


def test_stored_rows_give_way_and_are_freed() -> None:
    e = engine(["draft-model:model=self", "match", "prefix"])
    model = only(e)
    for n in range(6):
        (seq,) = start(e, Request(prompt(80, n), max_tokens=8, ignore_eos=True))
        while e.busy:
            e.step()
    held = model.store.held
    assert held > 6 * 80 * model.row_bytes
    model.limit(200)  # room for one text and a little more
    (seq,) = start(e, Request(prompt(90, 9), max_tokens=30, ignore_eos=True))
    while e.busy:
        e.step()
        assert model.store.held <= max(held, 200 * model.row_bytes)
        held = min(held, model.store.held)
    assert seq.counts.drafted
    assert model.held == model.store.held <= 200 * model.row_bytes
    e.close()
    assert model.held == model.reserved == 0


def test_a_call_cut_short_stores_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C where rows are booked and not written."""
    e = engine(["draft-model:model=self", "match", "prefix"])
    model, ids = only(e), prompt(80)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(model.runner, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            generate(e, ids, 30)
    assert model.store.held == 0
    (seq,) = start(e, Request(ids, max_tokens=30, ignore_eos=True))
    while e.busy:
        e.step()
    assert seq.counts.accepted == seq.counts.drafted > 10


def test_without_a_reuse_method_nothing_is_stored() -> None:
    e = engine(["draft-model:model=self", "match"])
    generate(e, prompt(80), 8)
    ran = fed(only(e))
    generate(e, prompt(80), 8)
    assert max(ran) >= 80


def test_rows_that_depend_on_the_prompt_s_length_serve_no_other() -> None:
    class Scaling(dict[str, Any]):
        __hash__ = object.__hash__  # type: ignore[assignment]  # the engine's model is kept by its config

    rope = Scaling({"rope_type": "dynamic", "factor": 2.0})
    e = engine(["draft-model:model=self", "match", "prefix"], rope_scaling=rope)
    assert e.facts.rope_varies
    generate(e, prompt(80), 8)
    assert only(e).store.held == 0


def test_a_batch_is_one_step_of_the_companion() -> None:
    e = engine(["draft-model:model=self,length=4,stop=1", "match", "batch"])
    start(e, *(Request(prompt(20, n), max_tokens=30, ignore_eos=True) for n in range(6)))
    model, calls = only(e), []
    real = model.runner.run
    model.runner.run = lambda rows, kvs, taps: calls.append(len(kvs)) or real(rows, kvs, taps)
    e.step()
    e.step()
    calls.clear()
    e.step()
    assert calls == [6] * 4  # the known tokens, then three drafted ones; the fourth is not run


def test_long_prompts_are_fed_in_parts() -> None:
    e = engine(["draft-model:model=self", "match"], "native")
    (seq,) = start(e, Request(prompt(1300), max_tokens=20, ignore_eos=True))
    drafted = []
    while not seq.finish:
        e.step()
        drafted.append(seq.counts.drafted)
    assert drafted[:2] == [0, 0]  # 1300 rows come in three parts, one a round
    assert drafted[2] > 0
    assert list(seq.new) == generate(engine(["match"], "native"), prompt(1300), 20)


def test_without_room_there_are_no_drafts() -> None:
    e = engine(["draft-model:model=self", "match"])
    model = only(e)
    model.limit(64)
    out = generate(e, prompt(100), 20)
    assert out == generate(engine(["match"]), prompt(100), 20)
    assert model.reserved == 0


def test_one_limit_for_all_rows() -> None:
    alone = engine(["match"], kv_bytes=1 << 22).kv_rows
    assert engine(["draft-model:model=self", "match"], kv_bytes=1 << 22).kv_rows == alone // 2
    assert engine(["self-skip:layers=1a", "match"], kv_bytes=1 << 22).kv_rows == alone


def test_requests_choose_among_the_companions_at_hand() -> None:
    e = engine(["draft-model:model=self", "match"])
    got = generate(e, prompt(30), 20, use=("draft-model:model=self,length=2",))
    assert got == generate(engine(["match"]), prompt(30), 20)
    with pytest.raises(MethodError, match="start with --use draft-model"):
        generate(e, prompt(30), 20, use=("draft-model:model=./elsewhere",))


def test_a_composition_says_what_it_lacks() -> None:
    c = compose(["draft-model:model=self"])
    facts = Facts(2, 100, False, False)
    assert any("companion model: self" in r for r in check(c, facts))
    assert not check(c, Facts(2, 100, False, False, c.models))


@pytest.mark.parametrize("backend", ["native", "ref"])
def test_weights_are_shared(backend: str) -> None:
    e = engine(["self-skip:layers=1", "match"], backend, **DEEP)
    own, cut = e.runner, only(e).runner
    if backend == "ref":
        assert all(cut.mats[key] is own.mats[key] for key in cut.mats)
        assert len(cut.mats) < len(own.mats)
    else:
        assert cut.exe.n_threads == own.exe.n_threads
        assert not any(key in cut.bound.mats._forms for key in cut._mats), "a matrix was packed again"


# ------------------------------------------------------------------------------------ sublayers


def numbers(tape: Any, tensors: Any, ids: Sequence[int]) -> Any:
    """Logits of every row, in float64."""
    from pronghorn.kv.store import Store
    from pronghorn.model.bind import bind
    from pronghorn.nulls import Dense, ExactKV
    from pronghorn.ops.ref import Ops
    from pronghorn.run.ref import RefRunner
    from pronghorn.types import Rows

    bound, ops = bind(tape, tensors), Ops("float64")
    store = Store(
        ops, bound.n_layers, bound.n_kv, bound.head_dim, "float64", ExactKV(), Dense(), "seq",
        list(bound.kv_ropes), bound.attention,
    )  # fmt: skip
    n = len(ids)
    order, ones = np.arange(n, dtype=np.int32), np.ones(n, np.int32)
    step = Rows(np.array(ids, np.int32), order, order + 1, 0 * ones, order - 1, ones)
    return RefRunner(bound, store).run(step, [store.new()], False).logits


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "olmo2", "mixtral"])
def test_a_sublayer_left_out_adds_nothing(model_type: str) -> None:
    """The same as with zeros where the sublayer ends."""
    more: dict[str, Any] = {"num_hidden_layers": 3}
    if model_type == "mixtral":
        more |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    if model_type == "gpt2":
        more = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 64, "n_positions": 64}
    tape, tensors = tape_model(3, model_type, **more)
    ids = list(range(40, 60))
    assert [(s.layer, s.part) for s in sublayers(tape)] == [(i, p) for i in range(3) for p in "am"]
    for name, ends in (("1a", ("o_proj", "c_proj")), ("1m", ("down_proj", "c_proj", "w2", "down"))):
        cut = without(tape, [name])
        gone = set(tape.params()) - set(cut.params())
        assert gone
        zeros = {
            k: np.zeros_like(v) if any(k == g.split("#")[0].split("[")[0] for g in gone) and v.ndim > 1 else v
            for k, v in tensors.items()
        }
        for k in gone:  # biases of the last product, and norms behind it
            base = k.split("#")[0].split("[")[0]
            if base in zeros and (".bias" in base or "post_" in base):
                zeros[base] = np.zeros_like(zeros[base])
        assert ends
        if model_type in ("llama", "mixtral", "gpt2"):
            np.testing.assert_allclose(numbers(cut, tensors, ids), numbers(tape, zeros, ids), atol=1e-10)
        assert np.abs(numbers(cut, tensors, ids) - numbers(tape, tensors, ids)).max() > 1e-3


def test_whole_layers_left_out_are_those_of_a_shorter_model() -> None:
    long, tensors = tape_model(3, num_hidden_layers=4)
    short, _ = tape_model(3, num_hidden_layers=2)
    ids = list(range(40, 60))
    np.testing.assert_array_equal(
        numbers(without(long, ["2", "3"]), tensors, ids), numbers(short, tensors, ids)
    )


@pytest.mark.parametrize("bad", ["9", "x", "1b", "0a+1a"])
def test_sublayers_that_cannot_go(bad: str) -> None:
    with pytest.raises(MethodError):
        without(tape_model()[0], bad.split("+"))


@pytest.mark.parametrize("bad", ["", "self:exit=0", "self:block=x"])
def test_names_that_say_nothing(bad: str) -> None:
    with pytest.raises(MethodError):
        parse(bad)


def test_names_are_taken_apart() -> None:
    name = parse("org/name:weight=int4:skip=1+2a:exit=3")
    assert (name.model, name.weight, name.skip, name.exit) == ("org/name", "int4", ("1", "2a"), 3)
    assert parse("C:/models/x").model == "C:/models/x"
    assert parse("self:exit=2").borrows
    assert not parse("self").borrows


# ------------------------------------------------------------------------------------ vocabularies


class _Letters:
    def encode(self, text: str, special: bool) -> list[int]:
        return [1 + ord(c) - 97 for c in text if "a" <= c <= "z"]


def letters() -> Tokenizer:
    """26 letters, in another order than bytes; 0 ends a text, 27 begins one."""
    pieces = [b"", *(bytes([97 + i]) for i in range(26)), b""]
    return Tokenizer(_Letters(), pieces, {0: "<end>", 27: "<begin>"}, 27, (0,), "", (), (), False)


def test_equal_vocabularies_need_no_map() -> None:
    assert mapped(byte_tokenizer(), byte_tokenizer(), 256) is None


def test_a_vocabulary_map() -> None:
    m = mapped(byte_tokenizer(), letters(), 256)
    assert isinstance(m, VocabMap)
    assert m.feed(ord("c")) == (3,)
    assert m.feed(ord("!")) == ()
    assert m.feed(0) == (0,)  # "<end>" ends a text in both
    assert m.begin == (27,)
    rows = np.arange(28, dtype=np.float32)[None]
    out = m.logits(rows)
    assert out.shape == (1, 256)
    assert out[0, ord("c")] == 3
    assert np.isneginf(out[0, ord("!")])
    back = mapped(letters(), byte_tokenizer(), 28)
    assert back is not None
    assert back.feed(3) == (ord("c"),)


def test_drafts_through_another_vocabulary(tmp_path: Path) -> None:
    """The bundled draft model beside a model of bytes: right now and then, and never in the way."""
    with_it = engine(["draft-model:model=pronghorn-tiny-draft,stop=1", "match"], "native")
    assert only(with_it).vocab is not None
    for temperature in (0.0, 0.8):
        got = generate(with_it, prompt(40), 40, temperature=temperature)
        assert got == generate(engine(["match"], "native"), prompt(40), 40, temperature=temperature)
    assert only(with_it).store.held == 0


def test_bundled_model_beside_its_draft_model() -> None:
    text = "Copy this exactly: river gate amber stone lamp fox cedar violet north"
    plain = LLM(use=["match"], defaults=("match",), threads=1).generate(text, max_tokens=48)
    llm = LLM(use=["draft-model:model=pronghorn-tiny-draft"], threads=1)
    answer = llm.generate(text, max_tokens=48)
    assert answer.tokens == plain.tokens
    assert answer.stats.accepted > 0
    assert only(llm.engine).vocab is None
    llm.close()


def test_trees_leave_nothing() -> None:
    e = engine(["draft-model:model=self", "match"])
    (seq,) = start(e, Request(prompt(30), max_tokens=10, ignore_eos=True))
    e.step()
    model = only(e)
    model.sync([seq])
    held = model._held[seq.id, 0].rows
    tree = Draft(np.array([50, 60, 51, 61], np.int32), np.array([-1, -1, 0, 1], np.int32))
    (logits,) = model.tree([seq], [tree])
    assert logits.shape == (5, 256)
    assert model._held[seq.id, 0].kv.length == held
    for path in ([50, 51], [60, 61]):
        model.sync([seq])
        for token in path:
            (row,) = model.follow([seq], [token])
        node = 3 if path[0] == 50 else 4
        np.testing.assert_allclose(logits[node], row, atol=1e-9)
