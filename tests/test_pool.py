"""`Pool`: one load for all who wait, the budget kept, the idle one leaves, the one in use never."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from pronghorn import Answer
from pronghorn.errors import CheckpointError, MethodError, PronghornError, RequestError, UnavailableError
from pronghorn.serve import pool as module
from pronghorn.serve.pool import Pool, Spec

T = TypeVar("T")

MIB = 1 << 20
TINY = Spec(kv_bytes=8 * MIB)
ROOM = 40 * MIB  # for one of them, and not for two


def run(main: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(main, 30)

    return asyncio.run(bounded())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names in the order in which they were loaded. Each counts as 24 MiB of weights."""
    seen: list[str] = []

    class Counted(module.AsyncLLM):
        def __init__(self, *args: Any, name: str, **more: Any) -> None:
            seen.append(name)
            super().__init__(*args, name=name, **more)

    monkeypatch.setattr(module, "AsyncLLM", Counted)
    monkeypatch.setattr(module, "_stored", lambda spec: 24 * MIB)
    monkeypatch.setattr(Pool, "_resident", lambda self: 0)
    return seen


def test_a_model_is_loaded_when_asked_for_and_answers():
    async def main():
        pool = Pool({"tiny": "pronghorn-tiny", "other": TINY}, memory=512 * MIB)
        assert pool.names == ("tiny", "other") and pool.loaded() == {}
        async with await pool.get("tiny") as llm:
            answer = await llm.generate("Once upon a time", max_tokens=5)
            assert isinstance(answer, Answer) and len(answer.tokens) == 5
            told = pool.loaded()["tiny"]
            assert told["leases"] == 1 and told["seconds"] > 0 and told["kv"] == 128 * MIB
            assert told["weights"] >= module._stored(TINY) > MIB  # what its file holds, at least
            assert llm.name == "tiny"
        assert pool.loaded()["tiny"]["leases"] == 0
        await pool.close()
        assert pool.loaded() == {} and llm.llm.engine.store.held == 0
        with pytest.raises(UnavailableError, match="closed"):
            await pool.get("tiny")

    run(main())


def test_those_who_wait_share_one_load(loads: list[str]):
    async def main():
        pool = Pool({"a": TINY}, memory=ROOM)
        leases = await asyncio.gather(*(pool.get("a") for _ in range(20)))
        assert len({id(lease.llm) for lease in leases}) == 1 and loads == ["a"]
        assert pool.loaded()["a"]["leases"] == 20
        for lease in leases:
            lease.release()
            lease.release()
        assert pool.loaded()["a"]["leases"] == 0
        await pool.close()

    run(main())


def test_the_least_recently_used_leaves(loads: list[str]):
    async def main():
        pool = Pool({"a": TINY, "b": TINY, "c": TINY}, memory=2 * 32 * MIB)
        for name in "abac":
            async with await pool.get(name) as llm:
                assert llm.name == name
        assert set(pool.loaded()) == {"a", "c"} and loads == ["a", "b", "c"]
        await pool.close()

    run(main())


def test_one_in_use_never_leaves(loads: list[str]):
    async def main():
        pool = Pool({"a": TINY, "b": TINY}, memory=ROOM)
        async with await pool.get("a") as llm:
            with pytest.raises(UnavailableError, match=r"b needs 32 MiB .* a \(32 MiB\) in use: try again"):
                await pool.get("b")
            assert len((await llm.generate("x", max_tokens=3)).tokens) == 3
        async with await pool.get("b"):
            assert set(pool.loaded()) == {"b"}
        await pool.close()

    run(main())


def test_one_that_can_never_fit_is_refused_and_nobody_leaves_for_it(loads: list[str]):
    async def main():
        pool = Pool({"a": TINY, "big": Spec(kv_bytes=64 * MIB)}, memory=ROOM)
        async with await pool.get("a"):
            pass
        with pytest.raises(UnavailableError, match="raise the limit"):
            await pool.get("big")
        assert set(pool.loaded()) == {"a"} and loads == ["a"]
        await pool.close()

    run(main())


def test_what_was_measured_counts(loads: list[str], monkeypatch: pytest.MonkeyPatch):
    sizes = iter([0, 100 * MIB])
    monkeypatch.setattr(Pool, "_resident", lambda self: next(sizes))

    async def main():
        pool = Pool({"a": TINY}, memory=ROOM)
        with pytest.raises(UnavailableError, match="a needs 108 MiB"):
            await pool.get("a")
        with pytest.raises(UnavailableError, match="a needs 108 MiB"):  # known by now: not loaded again
            await pool.get("a")
        assert loads == ["a"] and pool.loaded() == {}
        await pool.close()

    run(main())


def test_a_failed_load_raises_for_all_and_can_be_tried_again(monkeypatch: pytest.MonkeyPatch):
    fail, plain = [True], module.AsyncLLM

    class Failing(plain):
        def __init__(self, *args: Any, **more: Any) -> None:
            if fail:
                raise CheckpointError("half a file")
            super().__init__(*args, **more)

    monkeypatch.setattr(module, "AsyncLLM", Failing)

    async def main():
        pool = Pool({"a": TINY}, memory=512 * MIB)
        ends = await asyncio.gather(*(pool.get("a") for _ in range(3)), return_exceptions=True)
        assert [str(e) for e in ends] == ["half a file"] * 3
        fail.clear()
        async with await pool.get("a") as llm:
            assert await llm.score("hello there")
        await pool.close()

    run(main())


def test_who_is_cancelled_while_a_model_loads_spoils_it_for_nobody(
    loads: list[str], monkeypatch: pytest.MonkeyPatch
):
    gate = threading.Event()
    plain = Pool._loaded

    def slow(self: Pool, place: Any) -> Any:
        assert gate.wait(10)
        return plain(self, place)

    monkeypatch.setattr(Pool, "_loaded", slow)

    async def main():
        pool = Pool({"a": TINY, "b": TINY}, memory=4 * ROOM)
        first, second, third = (asyncio.ensure_future(pool.get(n)) for n in "abb")
        await asyncio.sleep(0.01)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        gate.set()
        lease = await third
        assert lease.llm.name == "b" and pool.loaded()["b"]["leases"] == 1
        lease.release()
        assert {n: p["leases"] for n, p in pool.loaded().items()} == {"a": 0, "b": 0}
        await pool.close()

    run(main())


def test_one_that_failed_is_loaded_again(loads: list[str]):
    async def main():
        pool = Pool({"a": TINY}, memory=ROOM)
        async with await pool.get("a") as llm:
            llm._worker.reason = "broken"
            async with await pool.get("a") as same:
                assert same is llm  # somebody holds it: who shares it is refused by it
        async with await pool.get("a") as fresh:
            assert fresh.healthy and fresh is not llm and loads == ["a", "a"]
        await pool.close()

    run(main())


def test_names_and_methods_that_are_wrong():
    async def main():
        pool = Pool({"a": Spec(use=("nonsense",)), "b": Spec("no/such/folder/anywhere")}, memory=512 * MIB)
        with pytest.raises(RequestError, match="no model called 'c'; here: a, b"):
            await pool.get("c")
        with pytest.raises(MethodError, match="nonsense"):
            await pool.get("a")
        with pytest.raises(PronghornError):
            await pool.get("b")
        await pool.close()

    run(main())
    with pytest.raises(RequestError, match="at least one"):
        Pool({})


def test_models_can_be_loaded_ahead_and_closed_with_what_runs():
    pool = Pool({"a": TINY}, memory=512 * MIB)
    pool.load("a")
    assert pool.loaded()["a"]["leases"] == 0

    async def main():
        async with await pool.get("a") as llm:
            stream = llm.stream("Once upon a time", max_tokens=50, ignore_eos=True)
            await stream.accepted()
            closing = asyncio.ensure_future(pool.close(drain=20))
            assert sum([len(d.tokens) async for d in stream]) == 50
            await closing

    run(main())


def test_metrics_and_receipts_of_all_models():
    from prometheus_client.parser import text_string_to_metric_families

    from pronghorn.serve.meters import Meters

    async def main():
        pool = Pool({"a": TINY, "b": TINY}, memory=512 * MIB)
        async with await pool.get("a") as a, await pool.get("b") as b:
            stream = a.stream("Once upon a time", max_tokens=9, ignore_eos=True)
            await stream.result()
            await b.score("hello there")
            receipt = pool.receipt(stream.id)
            assert receipt is not None and receipt["model"] == "a" and receipt["new_tokens"] == 9
            assert pool.receipt("req-nonsense") is None
        families = {f.name: f for f in text_string_to_metric_families(Meters(pool).text().decode())}
        values = {(s.name, s.labels["model"]): s.value for f in families.values() for s in f.samples
                  if s.labels.keys() == {"model"}}  # fmt: skip
        assert values["pronghorn_new_tokens_total", "a"] == 9
        assert values["pronghorn_new_tokens_total", "b"] == 0
        assert values["pronghorn_first_token_seconds_count", "a"] == 1
        assert values["pronghorn_kv_limit_bytes", "a"] <= 8 * MIB
        assert values["pronghorn_running", "a"] == values["pronghorn_waiting", "a"] == 0
        buckets = [s for s in families["pronghorn_between_tokens_seconds"].samples if "le" in s.labels]
        assert buckets[-1].labels["le"] == "+Inf"
        ended = {
            (s.labels["model"], s.labels["how"]): s.value for s in families["pronghorn_finished"].samples
        }
        assert ended["a", "length"] == 1 and ended["b", "stop"] == 1
        await pool.close()

    run(main())
