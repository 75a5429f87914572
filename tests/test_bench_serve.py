"""bench/serve: figures counted right, traces scaled as said, a client that reads whatever a server sends."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path[:0] = [str(BENCH / "serve"), str(BENCH)]

import report  # noqa: E402
import traces  # noqa: E402
from _report import into  # noqa: E402
from figures import (  # noqa: E402
    LOOSE,
    TIGHT,
    Outcome,
    Solo,
    Target,
    goodput,
    percentile,
    share,
    slope,
    summary,
)  # fmt: skip
from load import Chunks, call, replay, tokens_in  # noqa: E402
from traces import Item, factor, passage, prompt, scaled, timed  # noqa: E402

# ------------------------------------------------------------------------------- figures


def outcome(due: float, times: Sequence[tuple[float, int]], new: int = 0) -> Outcome:
    n = sum(k for _, k in times)
    return Outcome(
        due, 10, new or n, sent=due, first=times[0][0], last=times[-1][0], tokens=n, chunks=list(times)
    )


def test_percentiles_are_values_that_occurred():
    values = [float(x) for x in range(1, 101)]
    assert [percentile(values, q) for q in (0, 1, 50, 99, 99.5, 100)] == [1, 1, 50, 99, 100, 100]
    assert percentile([3.0], 50) == 3.0
    assert math.isnan(percentile([], 50))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_so_many_values_do_not_exceed_a_percentile(values: list[float], q: float):
    x = percentile(values, q)
    assert sum(v <= x for v in values) >= q / 100 * len(values) - 1e-9
    assert sum(v < x for v in values) <= q / 100 * len(values)


def test_latencies_count_from_when_a_request_was_due():
    o = outcome(1.0, [(1.5, 1), (1.6, 1), (1.9, 3)])
    o.sent = 1.4
    assert (o.ttft, o.seconds) == (0.5, pytest.approx(0.9))
    assert o.pace == pytest.approx(0.1)
    assert o.gaps() == pytest.approx([0.1, 0.3, 0.0, 0.0])  # of tokens in one chunk only the first waited
    assert o.gaps(1.65) == pytest.approx([0.3, 0.0, 0.0])
    assert o.gaps(1.0, 1.55) == pytest.approx([0.1])


def test_goodput_counts_whole_answers_within_both_targets_over_the_whole_run():
    good = outcome(0.0, [(0.1, 1), (0.3, 1)])
    slow_start = outcome(1.0, [(2.0, 1), (2.1, 1)])
    slow_pace = outcome(1.0, [(1.1, 1), (5.0, 1)])
    failed = Outcome(2.0, 10, 2, error="cut off")
    left = outcome(2.0, [(2.1, 1)])
    left.left = True
    run = summary([good, slow_start, slow_pace, failed, left])
    assert (run["sent"], run["whole"], run["left"], run["errors"]) == (5, 3, 1, {"cut off": 1})
    assert run["seconds"] == 5.0
    assert run["tokens_per_second"] == 6 / 5
    target = Target("", 0.5, 0.5)
    assert goodput(run, target) == 1 / 5
    assert share(run, target) == 1 / 5
    assert goodput(run, Target("", 10.0, 10.0)) == 3 / 5
    assert goodput(run, Target("", 0.01, 0.01)) == 0.0


def test_targets_follow_from_the_latency_alone():
    tight, loose = Solo(0.5, 0.01).targets()
    assert (tight.ttft, tight.pace) == (TIGHT * 0.5, TIGHT * 0.01)
    assert (loose.ttft, loose.pace) == (LOOSE * 0.5, LOOSE * 0.01)
    assert tight.met(tight.ttft, tight.pace)
    assert not tight.met(tight.ttft, tight.pace * 1.01)


def test_answers_that_are_too_short_are_seen():
    assert summary([outcome(0.0, [(1.0, 1)], new=2), outcome(0.0, [(1.0, 2)])])["short"] == 1


def test_slope():
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == 2
    assert slope([1.0], [1.0]) == 0


# ------------------------------------------------------------------------------- traces

TEXT = list(range(1000, 5000))


@given(st.lists(st.tuples(st.integers(1, 200_000), st.integers(1, 2000)), min_size=1), st.integers(64, 16384))
def test_every_request_of_a_scaled_trace_fits(lengths: list[tuple[int, int]], context: int):
    items = [Item(0.0, p, n) for p, n in lengths]
    by = factor(items, context)
    assert by <= 1
    small = [scaled(i, by) for i in items]
    assert all(i.prompt >= 1 and i.new >= 1 and i.prompt + i.new <= context for i in small)
    if by == 1:
        assert [(i.prompt, i.new) for i in small] == lengths


@given(st.integers(1, 5000), st.floats(0.001, 1))
def test_scaled_blocks_fill_the_scaled_prompt(n: int, by: float):
    item = Item(0.0, n, 1, tuple(range(-(-n // traces.BLOCK))))
    small = scaled(item, by)
    assert len(prompt(small, 0, "", TEXT)) == small.prompt


def test_equal_blocks_are_equal_tokens_and_nothing_else_is():
    a = scaled(Item(0.0, 1500, 1, (0, 1, 2)), 0.125)
    b = scaled(Item(0.0, 1100, 1, (0, 1, 7)), 0.125)
    x, y = prompt(a, 0, "", TEXT), prompt(b, 1, "", TEXT)
    assert a.block == 64
    assert x[:128] == y[:128]
    assert x[128] != y[128]
    assert prompt(a, 5, "", TEXT) == x
    assert prompt(a, 0, "again", TEXT)[:64] != x[:64]
    alone = Item(0.0, 100, 1)
    assert prompt(alone, 0, "", TEXT) != prompt(alone, 1, "", TEXT)


def test_a_passage_is_consecutive_text_that_goes_round():
    ids = passage(TEXT, 10_000, "key")
    assert len(ids) == 10_000
    assert ids[4000:8000] == ids[:4000]
    assert all((b - a) % 4000 == 1 for a, b in pairwise(ids))


def test_time_is_compressed_to_the_rate_and_bursts_stay():
    items = [Item(t, 1, 1) for t in (100.0, 101.0, 101.0, 140.0, 200.0)]
    sent, by = timed(items, 2.0)
    assert [i.at for i in sent] == pytest.approx([0.0, 0.02, 0.02, 0.8, 2.0])
    assert by == 50


@pytest.mark.parametrize("name", sorted(traces.FILES))
def test_recorded_traces(name: str):
    if not (traces.DATA / traces.FILES[name]).exists():
        pytest.skip("the recorded traces are not there")
    items = traces.load(name)
    assert len(items) > 3000
    assert all(b.at >= a.at for a, b in pairwise(items))
    assert all(i.prompt > 0 and i.new > 0 for i in items)
    assert all(not i.blocks or len(i.blocks) == -(-i.prompt // traces.BLOCK) for i in items)
    trace = traces.replay(name, 20, 4.0, 2048, TEXT)
    assert trace == traces.replay(name, 20, 4.0, 2048, TEXT)
    assert trace.arrivals[-1].at == pytest.approx(19 / 4)
    assert max(len(a.ids) + a.new for a in trace.arrivals) <= 2048
    other = traces.replay(name, 20, 4.0, 2048, TEXT, salt="again")
    assert [a.at for a in other.arrivals] == [a.at for a in trace.arrivals]
    assert [a.ids for a in other.arrivals] != [a.ids for a in trace.arrivals]


# ------------------------------------------------------------------------------- the client

EVENTS = [
    {"choices": [{"text": "a"}]},
    {"choices": [{"text": "bc", "token_ids": [5, 6]}]},
    {"choices": [{"text": ""}]},
    {"choices": [], "usage": {"completion_tokens": 4}},
]
BODY = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in EVENTS) + b"data: [DONE]\n\n"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x;x=y\r\n%b\r\n" % (len(BODY[i : i + 7]), BODY[i : i + 7]) for i in range(0, len(BODY), 7))
    + b"0\r\n\r\n"
)
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + BODY


@pytest.mark.parametrize("answer", [CHUNKED, PLAIN], ids=["chunked", "to the end"])
@pytest.mark.parametrize("piece", [1, 2, 13, 100_000])
def test_events_come_out_whole_whatever_they_come_in(answer: bytes, piece: int):
    chunks, said = Chunks(), []
    for i in range(0, len(answer), piece):
        said += chunks.feed(answer[i : i + piece])
    assert [json.loads(s) for s in said] == EVENTS
    assert (chunks.status, chunks.done) == (200, True)


def test_tokens_are_counted_where_they_are_named():
    assert [tokens_in(e) for e in EVENTS] == [1, 2, 0, 0]
    assert tokens_in({"choices": [{"text": "x", "tokens": [1, 2, 3]}]}) == 3


@contextmanager
def server(answer: bytes, cut: int, pause: float) -> Iterator[tuple[int, list[bytes]]]:
    """Answers every request with these bytes, so many at first and the others after a pause. Gives its port
    and what it was asked."""
    asked: list[bytes] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    port: list[int] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        asked.append(await reader.readexactly(length))
        try:
            writer.write(answer[:cut])
            await writer.drain()
            await asyncio.sleep(pause)
            writer.write(answer[cut:])
            await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def serve() -> None:
        listening = await asyncio.start_server(one, "127.0.0.1", 0)
        port.append(listening.sockets[0].getsockname()[1])
        ready.set()

    def work() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield port[0], asked
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def test_a_replay_times_what_comes():
    with server(CHUNKED, 180, 0.05) as (port, asked):
        run = replay(port, [call(0.02 * i, [1, 2, 3], 4, user=f"u{i}") for i in range(5)])
    assert sorted(json.loads(a)["user"] for a in asked) == [f"u{i}" for i in range(5)]
    body = json.loads(asked[0])
    assert (body["prompt"], body["max_tokens"], body["stream"]) == ([1, 2, 3], 4, True)
    for i, o in enumerate(run.outcomes):
        assert (o.whole, o.tokens, o.error, o.user) == (True, 4, "", f"u{i}")
        assert o.due <= o.sent <= o.first
        assert o.last - o.first >= 0.04
        assert sum(n for _, n in o.chunks) == 3  # what the server counts goes before what was seen
    assert 0 < run.cpu < run.wall


def test_a_client_that_leaves_has_no_whole_answer():
    with server(CHUNKED, 100, 0.3) as (port, _):
        (o,) = replay(port, [call(0.0, [1], 4, leave=0.1)]).outcomes
    assert (o.left, o.whole, o.error) == (True, False, "")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nslow", "HTTP 429: slow"),
        (CHUNKED[:200], "cut off"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"message": "broken"}}\n\ndata: [DONE]\n\n', "broken"),
    ],
    ids=["refused", "cut off", "an error in the stream"],
)
def test_failures_are_told(answer: bytes, error: str):
    with server(answer, len(answer), 0.0) as (port, _):
        (o,) = replay(port, [call(0.0, [1], 4)]).outcomes
    assert error in o.error
    assert not o.whole


def test_a_server_that_is_not_there():
    with server(PLAIN, 10, 0.0) as (port, _):
        pass
    (o,) = replay(port + 1 if port < 65535 else port - 1, [call(0.0, [1], 4)]).outcomes
    assert o.error


# ------------------------------------------------------------------------------- tables


def record() -> report.Record:
    def run(engine: str, rate: float, ttft: float) -> report.Record:
        made = summary([outcome(float(i), [(i + ttft, 1), (i + ttft + 0.01, 1)]) for i in range(4)])
        return {**made, "engine": engine, "rate": rate, "client_cpu": 0.1, "limits": [{"memory": 2e10}]}

    return {
        "kind": "sweep", "trace": "azure-code", "model": "m", "precision": "int8", "threads": 2,
        "date": "2000-01-01", "machine": {"processor": "p"}, "versions": {}, "use": [], "requests": 4,
        "factor": 0.5, "long": 100, "rates": [1.0, 2.0], "solo": {"ttft": 0.1, "pace": 0.01},
        "alone": {"pronghorn": {}, "peer": {}},
        "runs": [run("pronghorn", 1.0, 0.2), run("peer", 1.0, 0.2), run("pronghorn", 2.0, 0.3),
                 run("peer", 2.0, 5.0)],
    }  # fmt: skip


def test_a_sweep_in_tables():
    (name,), (text,) = zip(*report.tables([record()]).items(), strict=True)
    assert name == "sweep azure-code m int8"
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert len({len(r) for r in rows[:5]}) == 1
    assert rows[4][:2] == ["2.00", "peer"]
    assert rows[4][-2:] == ["0.00 (0 %)", "0"]
    assert rows[6][0] == "pronghorn"
    assert rows[7][-1] == "1.00 times"


def test_tables_go_where_the_page_wants_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "serving.md"
    page.write_text("# Serving\n\n<!-- table: sweep azure-code m int8 -->\nold\n<!-- end -->\n\nprose\n")
    into(page, report.tables([record()]))
    once = page.read_text()
    assert "old" not in once
    assert "| 2.00" in once
    assert once.endswith("<!-- end -->\n\nprose\n")
    into(page, report.tables([record()]))
    assert page.read_text() == once
    into(page, {})
    assert page.read_text() == once
    assert "'sweep azure-code m int8' stays" in capsys.readouterr().err
