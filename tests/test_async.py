"""`AsyncLLM`: the tokens of `LLM` whoever joins and leaves, nothing held after an end of any kind."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest

from pronghorn import LLM, Answer, AsyncLLM, AsyncStream, Delta
from pronghorn.errors import (
    EngineError,
    MethodError,
    PronghornError,
    QueueFullError,
    RequestError,
    UnavailableError,
)
from pronghorn.nulls import EXACT
from pronghorn.seq import Request
from pronghorn.serve.delta import Mailbox
from pronghorn.serve.wake import PACE, Bell
from pronghorn.types import Origin

T = TypeVar("T")

PROMPTS = ["Once upon a time", "The king said", "It was a dark night", "In the garden"]
LONG = " ".join(["The old man walked along the road and looked at the sea."] * 40)


def run(main: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(main, 30)

    return asyncio.run(bounded())


@pytest.fixture(scope="module")
def plain() -> LLM:
    return LLM()


def closed(llm: AsyncLLM) -> int:
    """Bytes held once it is closed."""
    return llm.llm.engine.store.held


async def read(stream: AsyncStream) -> list[Delta]:
    return [d async for d in stream]


async def until(what: Any) -> None:
    while not what():
        await asyncio.sleep(0.001)


# ---------------------------------------------------------------------- the same tokens


def test_a_stream_gives_what_generate_gives(plain: LLM):
    want = plain.generate(PROMPTS[0], max_tokens=50, stop="king")

    async def main():
        async with AsyncLLM() as llm:
            async with llm.stream(PROMPTS[0], max_tokens=50, stop="king") as stream:
                deltas = await read(stream)
            assert isinstance(want, Answer)
            (answer,) = stream.answers
            assert (answer.tokens, answer.text, answer.finish) == (want.tokens, want.text, want.finish)
            assert "".join(d.text for d in deltas) == want.text
            assert tuple(t for d in deltas for t in d.tokens) == want.tokens
            assert [d.finish for d in deltas] == [""] * (len(deltas) - 1) + [want.finish]
            assert all(len(d.origins) == len(d.tokens) for d in deltas)
            assert {o for d in deltas for o in d.origins} <= set(Origin)
            assert answer.stats.prompt_tokens == want.stats.prompt_tokens == stream.prompt_tokens
            assert await llm.generate(PROMPTS[0], max_tokens=50, stop="king") == answer_like(want, stream)

    def answer_like(want: Answer, stream: AsyncStream) -> Any:
        class Same:
            def __eq__(self, other: object) -> bool:
                return isinstance(other, Answer) and other.tokens == want.tokens and other.text == want.text

        return Same()

    run(main())


def test_thirty_two_that_join_and_leave_change_no_token(plain: LLM):
    options = [
        {"max_tokens": 20 + i, "ignore_eos": True, "seed": i, "temperature": 0.8 * (i % 2)} for i in range(32)
    ]
    want = [plain.generate(PROMPTS[i % 4], **o) for i, o in enumerate(options)]

    async def one(llm: AsyncLLM, i: int) -> None:
        await asyncio.sleep(random.Random(i).random() * 0.05)
        async with llm.stream(PROMPTS[i % 4], **options[i]) as stream:
            deltas = await read(stream)
        (answer,), expected = stream.answers, want[i]
        assert isinstance(expected, Answer)
        assert answer.tokens == expected.tokens == tuple(t for d in deltas for t in d.tokens)
        assert answer.text == expected.text == "".join(d.text for d in deltas)

    async def leaver(llm: AsyncLLM, i: int) -> None:
        await asyncio.sleep(random.Random(i).random() * 0.05)
        async with llm.stream(LONG[: 200 * i], max_tokens=100) as stream:
            await anext(stream)

    async def main() -> AsyncLLM:
        async with AsyncLLM() as llm:
            leavers = [asyncio.ensure_future(leaver(llm, i)) for i in range(1, 9)]
            await asyncio.gather(*(one(llm, i) for i in range(32)), *leavers)
            assert llm.idle or await asyncio.wait_for(until(lambda: llm.idle), 5) is None
        return llm

    assert closed(run(main())) == 0


def test_several_answers_to_one_prompt(plain: LLM):
    options = {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 24}
    want = plain.generate(PROMPTS[1], **options)
    assert isinstance(want, Answer)
    expected = [want.tokens, *(a.tokens for a in want.more)]

    async def main():
        async with AsyncLLM() as llm:
            async with llm.stream(PROMPTS[1], **options) as stream:
                deltas = await read(stream)
            got = [tuple(t for d in deltas if d.index == i for t in d.tokens) for i in range(3)]
            assert got == expected == [a.tokens for a in stream.answers]
            assert sorted(d.index for d in deltas if d.finish) == [0, 1, 2]
            assert stream.receipt["n"] == 3 and len(stream.receipt["branches"]) == 3
            answer = await llm.generate(PROMPTS[1], **options)
            assert isinstance(answer, Answer)
            assert [answer.tokens, *(a.tokens for a in answer.more)] == expected

    run(main())


def test_a_search_shows_what_it_chose_at_the_end(plain: LLM):
    options = {"use": "best-of-n:n=3", "temperature": 1.0, "max_tokens": 12}
    want = plain.generate(PROMPTS[2], **options)
    assert isinstance(want, Answer)

    async def main():
        async with AsyncLLM() as llm:
            async with llm.stream(PROMPTS[2], **options) as stream:
                deltas = await read(stream)
            assert [(d.index, d.text, d.tokens) for d in deltas] == [(0, want.text, want.tokens)]
            assert deltas[0].logprobs == ()

    run(main())


def test_log_probabilities_come_with_their_tokens(plain: LLM):
    want = plain.generate(PROMPTS[0], max_tokens=16, logprobs=True, top_logprobs=3)
    assert isinstance(want, Answer)

    async def main():
        async with AsyncLLM() as llm:
            async with llm.stream(PROMPTS[0], max_tokens=16, logprobs=True, top_logprobs=3) as stream:
                deltas = await read(stream)
            assert all(len(d.logprobs) == len(d.tokens) == len(d.tops) for d in deltas)
            assert tuple(p for d in deltas for p in d.logprobs) == want.logprobs
            assert tuple(t for d in deltas for t in d.tops) == want.tops
            assert all(len(t) == 3 for t in want.tops)

    run(main())


def test_scores_embeddings_and_chats_are_those_of_the_plain_face(plain: LLM):
    messages = [{"role": "user", "content": "hello"}]

    async def main():
        async with AsyncLLM() as llm:
            scores, vectors, one = await asyncio.gather(
                llm.score(LONG), llm.embed(PROMPTS), llm.embed(PROMPTS[0])
            )
            assert scores == plain.score(LONG)
            assert np.array_equal(vectors, plain.embed(PROMPTS))
            assert np.array_equal(one, plain.embed(PROMPTS[0]))
            ids = plain.tokenizer.encode(PROMPTS[0])
            assert np.array_equal(await llm.embed([ids]), one)
            if plain.tokenizer.chat_template:
                answer = await llm.chat(messages, max_tokens=8)
                assert answer.tokens == plain.chat(messages, max_tokens=8).tokens
            else:
                with pytest.raises(RequestError, match="chat template"):
                    await llm.chat(messages)

    run(main())


# ---------------------------------------------------------------------- leaving


@pytest.mark.parametrize("how", ["break", "cancel", "task", "lost", "error"])
def test_leaving_frees_the_pages(how: str):
    async def leave(llm: AsyncLLM) -> None:
        if how == "lost":
            stream = llm.stream(LONG, max_tokens=200, ignore_eos=True)
            await anext(stream)
            return
        async with llm.stream(LONG, max_tokens=200, ignore_eos=True) as stream:
            await anext(stream)
            if how == "cancel":
                await stream.cancel()
                assert llm.llm.engine.running == []
                assert await read(stream) == []
            elif how == "error":
                raise KeyError
            elif how == "task":
                await asyncio.sleep(60)

    async def main() -> AsyncLLM:
        async with AsyncLLM(use=["prompt-lookup", "fcfs", "match"], defaults=()) as llm:
            task = asyncio.ensure_future(leave(llm))
            if how == "task":
                await until(lambda: llm.llm.engine.running)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: llm.idle)
            assert llm.llm.engine.store.held == 0  # nothing is stored for reuse here
            assert llm.stats.finished["cancelled"] == 1
            assert (await llm.generate("And then", max_tokens=4)).tokens
        return llm

    assert closed(run(main())) == 0


def test_a_request_dropped_before_it_is_prepared_never_runs():
    async def main():
        async with AsyncLLM() as llm:
            slow = threading.Event()

            def make() -> Request:
                assert slow.wait(10)
                return Request((5, 6, 7), max_tokens=4)

            stream = llm.submit(make)
            stream.close()
            slow.set()
            await until(lambda: llm.idle)
            assert llm.stats.prompt_tokens == 0
            assert await read(stream) == []

    run(main())


def test_two_hundred_at_once_half_of_which_leave_at_random():
    async def client(llm: AsyncLLM, i: int) -> int:
        rng = random.Random(i)
        stream = llm.stream(PROMPTS[i % 4] + LONG[: rng.randrange(400)], max_tokens=20, ignore_eos=True)
        if i % 2:
            async with stream:
                return sum(len(d.tokens) for d in await read(stream))
        task = asyncio.ensure_future(read(stream))
        await asyncio.sleep(rng.random() * 0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return 20

    async def main() -> AsyncLLM:
        async with AsyncLLM() as llm:
            got = await asyncio.gather(*(client(llm, i) for i in range(200)))
            assert got == [20] * 200
            await until(lambda: llm.idle)
            engine = llm.llm.engine
            assert not engine.running and not engine.waiting and not engine.texts and not engine.siblings
            assert sum(llm.stats.finished.values()) == 200
        return llm

    assert closed(run(main())) == 0


def test_a_slow_reader_gets_one_delta_for_all_it_missed():
    async def main():
        async with AsyncLLM() as llm, llm.stream(PROMPTS[0], max_tokens=100, ignore_eos=True) as slow:
            first = await anext(slow)
            await until(lambda: llm.idle)
            rest = await read(slow)
            assert len(rest) == (0 if first.finish else 1)
            tokens = [t for d in [first, *rest] for t in d.tokens]
            assert len(tokens) == 100 and tuple(tokens) == slow.answers[0].tokens

    run(main())


def test_nobody_wakes_a_loop_for_every_token():
    calls = 0

    async def main():
        nonlocal calls
        loop = asyncio.get_running_loop()
        plain_call = loop.call_soon_threadsafe

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += threading.current_thread().name.startswith("pronghorn-")
            return plain_call(*args, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        async with AsyncLLM(use=["fcfs", "match"], defaults=()) as llm:
            await asyncio.gather(
                *(read(llm.stream(p, max_tokens=100, ignore_eos=True)) for p in PROMPTS for _ in range(4))
            )
            assert calls <= llm.stats.steps + 2 * 16 + 8  # a step's, and for the accepted and the ends

    run(main())


def test_a_loop_that_reads_is_called_once():
    async def main():
        loop, box = asyncio.get_running_loop(), Mailbox()
        bell, calls = Bell(loop), 0
        plain_call = loop.call_soon_threadsafe

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            return plain_call(*args, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]

        async def told(urgent: bool = False) -> None:
            box.waiter = loop.create_future()
            bell.mark(box, urgent)
            assert bell.ring() and bell.ring()
            await box.waiter

        for _ in range(5):  # the second and later ones find a round under way
            await told()
        assert calls == 1
        await told(urgent=True)  # does not wait for it
        assert calls == 2
        await told()
        assert calls == 2
        await asyncio.sleep(3 * PACE)  # nobody wrote: the rounds end
        assert calls == 2
        await told()
        assert calls == 3

    run(main())


# ---------------------------------------------------------------------- what is wrong


def test_mistakes_come_out_of_the_call_and_harm_nobody():
    async def main():
        async with AsyncLLM() as llm:
            other = asyncio.ensure_future(llm.generate(PROMPTS[0], max_tokens=100, ignore_eos=True))
            with pytest.raises(RequestError, match="no option called 'max_token'"):
                llm.stream("x", max_token=3)
            with pytest.raises(RequestError, match="empty"):
                await llm.generate("")
            with pytest.raises(RequestError, match="outside the vocabulary"):
                async with llm.stream([10**7]):
                    pass
            with pytest.raises(MethodError, match="no method called"):
                async with llm.stream("x", use="nonsense"):
                    pass
            with pytest.raises(RequestError, match="schema"):
                await read(llm.stream("x", use="json:schema='{\"type\": 3}'"))
            with pytest.raises(RequestError, match="empty"):
                await llm.generate(["fine", "", "fine"], max_tokens=100)
            with pytest.raises(PronghornError):
                await llm.embed([[1, -5]])
            answer = await other
            assert isinstance(answer, Answer) and len(answer.tokens) == 100
            await until(lambda: llm.idle)
            assert llm.healthy and llm.stats.finished["refused"] == 6

    run(main())


@dataclass(frozen=True)
class Bad:
    """A verifier that fails."""

    error: Exception
    slot = "verify"
    traits = EXACT

    def verify(self, target: Any, draft: Any) -> Any:
        raise self.error


def break_(llm: AsyncLLM, error: Exception) -> None:
    """From now on requests are prepared with a verifier that raises."""
    engine = llm.llm.engine
    engine.methods = replace(engine.methods, verify=Bad(error))


def test_one_sequence_s_error_ends_its_stream_alone():
    async def main() -> AsyncLLM:
        async with AsyncLLM() as llm:
            good = llm.stream(PROMPTS[0], max_tokens=200, ignore_eos=True)
            await good.accepted()
            whole = llm.llm.engine.methods
            break_(llm, RequestError("the grammar grew too complex"))
            bad = llm.stream(PROMPTS[1], max_tokens=200, n=2)
            await asyncio.wait([asyncio.ensure_future(bad.accepted())])
            llm.llm.engine.methods = whole
            with pytest.raises(RequestError, match="too complex"):
                await read(bad)
            assert sum(len(d.tokens) for d in await read(good)) == 200
            assert llm.receipt(bad.id)["finish"] == "error"
        return llm

    assert closed(run(main())) == 0


def test_a_failed_step_ends_what_was_in_it_and_the_engine_goes_on():
    async def main() -> AsyncLLM:
        async with AsyncLLM() as llm:
            whole = llm.llm.engine.methods
            break_(llm, ZeroDivisionError("oh"))
            bad = llm.stream(PROMPTS[1], max_tokens=5)
            with pytest.raises(EngineError, match="ask again"):
                await read(bad)
            llm.llm.engine.methods = whole
            assert llm.healthy and llm.stats.failed_steps == 1
            assert (await llm.generate(PROMPTS[0], max_tokens=5)).tokens
        return llm

    assert closed(run(main())) == 0


def test_an_engine_that_fails_again_and_again_is_given_up():
    async def main() -> AsyncLLM:
        async with AsyncLLM() as llm:
            break_(llm, ZeroDivisionError("oh"))
            for _ in range(3):
                with pytest.raises(EngineError):
                    await read(llm.stream(PROMPTS[1], max_tokens=5))
            assert not llm.healthy and "ZeroDivisionError: oh" in llm.reason
            with pytest.raises(UnavailableError, match="oh"):
                llm.stream(PROMPTS[0])
        return llm

    assert closed(run(main())) == 0


def test_a_mistake_in_serving_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch):
    async def main() -> AsyncLLM:
        async with AsyncLLM() as llm:
            monkeypatch.setattr(llm._worker, "_settle", lambda *_: 1 // 0)
            streams = [llm.stream(p, max_tokens=200 - i) for i, p in enumerate(PROMPTS)]
            for stream in streams:
                with pytest.raises((EngineError, UnavailableError), match="ZeroDivisionError"):
                    await read(stream)
            assert not llm.healthy
            monkeypatch.undo()
        return llm

    assert closed(run(main())) == 0


def test_more_than_may_wait_are_refused():
    async def main():
        async with AsyncLLM(max_waiting=4) as llm:
            slow = threading.Event()

            def make() -> Request:
                assert slow.wait(10)
                return Request((5, 6, 7), max_tokens=3, ignore_eos=True)

            streams = [llm.submit(make) for _ in range(4)]
            with pytest.raises(QueueFullError, match="4 requests"):
                llm.stream(PROMPTS[0])
            slow.set()
            for stream in streams:
                assert sum(len(d.tokens) for d in await read(stream)) == 3

    run(main())


# ---------------------------------------------------------------------- ends, loops, threads


def test_draining_finishes_what_runs_and_takes_nothing_new():
    async def main() -> AsyncLLM:
        llm = AsyncLLM()
        streams = [llm.stream(p, max_tokens=60, ignore_eos=True) for p in PROMPTS]
        closing = asyncio.ensure_future(llm.close(drain=30))
        await asyncio.sleep(0)
        await until(lambda: llm._closing)
        with pytest.raises(UnavailableError, match="closed"):
            llm.stream("late")
        for stream in streams:
            assert sum(len(d.tokens) for d in await read(stream)) == 60
        await closing
        return llm

    assert closed(run(main())) == 0


def test_closing_at_once_ends_streams_with_an_error():
    async def main() -> AsyncLLM:
        llm = AsyncLLM()
        streams = [llm.stream(LONG, max_tokens=200, ignore_eos=True) for _ in range(12)]
        await streams[0].accepted()
        reading = [asyncio.ensure_future(read(s)) for s in streams]
        await llm.close()
        ends = await asyncio.gather(*reading, return_exceptions=True)
        assert all(isinstance(e, UnavailableError) for e in ends)
        await llm.close()  # twice is once
        return llm

    assert closed(run(main())) == 0


def test_several_loops_use_one_model(plain: LLM):
    want = plain.generate(PROMPTS[0], max_tokens=40)
    assert isinstance(want, Answer)
    llm = AsyncLLM()

    async def few() -> list[tuple[int, ...]]:
        streams = [llm.stream(PROMPTS[0], max_tokens=40) for _ in range(4)]
        return [tuple(t for d in await read(s) for t in d.tokens) for s in streams]

    with ThreadPoolExecutor(4) as threads:
        for got in threads.map(lambda _: run(few()), range(8)):
            assert got == [want.tokens] * 4
    llm.shut()
    assert closed(llm) == 0


def test_a_loop_that_is_closed_over_a_stream_is_forgotten():
    llm = AsyncLLM()
    kept: list[AsyncStream] = []

    async def start() -> None:
        kept.append(llm.stream(PROMPTS[0], max_tokens=900, ignore_eos=True))
        await anext(kept[0])

    run(start())  # the loop is closed, the stream is not

    async def after():
        await until(lambda: llm.idle)
        assert (await llm.generate(PROMPTS[1], max_tokens=3)).tokens
        await llm.close()

    run(after())
    assert llm.stats.finished["cancelled"] == 1
    assert closed(llm) == 0


# ---------------------------------------------------------------------- what can be seen


def test_receipts_say_what_happened_and_give_way():
    async def main():
        async with AsyncLLM(use=["prompt-lookup"], receipts=2) as llm:
            ids = []
            for i in range(3):
                async with llm.stream(LONG, max_tokens=30, ignore_eos=True) as stream:
                    await read(stream)
                ids.append(stream.id)
                receipt = stream.receipt
                assert llm.receipt(stream.id) == receipt
                assert receipt["new_tokens"] == 30 and receipt["finish"] == "length"
                assert receipt["prompt_tokens"] == receipt["prompt_rows"] + receipt["reused_tokens"]
                assert (receipt["reused_tokens"] > 0) == (i > 0)
                counts = receipt["drafters"]["prompt-lookup"]
                assert 0 < counts["accepted"] <= counts["drafted"]
                assert receipt["seconds"] >= receipt["first_token_seconds"] >= receipt["queue_seconds"] > 0
                assert receipt["guarantee"] == "exact" and "prefix" in receipt["methods"]
            with pytest.raises(KeyError):
                llm.receipt(ids[0])
            assert llm.receipt(ids[1])["id"] == ids[1]
            m = llm.stats
            assert m.new_tokens == 90 and m.finished["length"] == 3
            assert m.first_token.sum > 0 and sum(m.first_token.counts) == 3
            assert m.prompt_tokens + m.reused_tokens == 3 * receipt["prompt_tokens"]
            assert sum(m.step_rows.counts) == m.steps

    run(main())


def test_the_live_view_shows_what_runs():
    import json

    async def main():
        async with AsyncLLM() as llm:
            llm.state()
            streams = [llm.stream(LONG, max_tokens=600, ignore_eos=True, user="ann") for _ in range(3)]
            for stream in streams:
                await anext(stream)

            def seen() -> bool:
                return len(llm.state()["running"]) == 3

            await until(seen)
            state = json.loads(json.dumps(llm.state()))
            assert {r["id"] for r in state["running"]} == {s.id for s in streams}
            for r in state["running"]:
                assert r["user"] == "ann" and r["max_new"] > 300 and r["age"] >= 0
                assert r["phase"] == "answer" and r["done"] == r["prompt"]
            assert 0 < state["kv"]["held"] <= state["kv"]["limit"]
            assert state["kv"]["shared_saved"] > 0  # one prompt
            for stream in streams:
                await stream.cancel()
            await until(lambda: not llm.state()["running"])
            assert llm.state()["totals"]["requests"] == 3

    run(main())


def test_what_companions_hold_is_told_by_model():
    from pronghorn.serve.exposition import Engines

    draft, cut = "pronghorn-tiny-draft", "self:skip=1a"

    async def main():
        async with AsyncLLM(use=[f"auto:drafters=draft-model:model={draft}+self-skip:layers=1a"]) as llm:
            await llm.stream("hi", max_tokens=1).result()  # it has begun, and now rests
            text: Any = SimpleNamespace(id=1, tokens=[*range(1, 200)], n_prompt=199, request=None)
            llm.llm.engine.drafting.models[draft].sync([text])
            least = 199 * llm.llm.engine.drafting.models[draft].row_bytes
            await until(lambda: llm.state()["kv"]["companions"][draft] > least)
            told = llm.state()["kv"]["companions"]
            assert told[cut] == 0
            counted = {
                (s.labels["model"], s.labels["companion"]): s.value
                for family in Engines(lambda: {"a": llm}).collect()
                for s in family.samples
                if s.name == "pronghorn_companion_kv_held_bytes"
            }
            assert counted == {("a", name): n for name, n in told.items()}

    run(main())
