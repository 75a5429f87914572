"""A server that keeps prompts on disk: damaged records are counted where an operator looks, never served."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
from conftest import MODEL, serving

from pronghorn.serve.pool import Pool, Spec
from pronghorn.serve.settings import Settings

ASK = {"prompt": "Once upon a time there was a fox. " * 20, "max_tokens": 12, "temperature": 0}


@contextmanager
def client(*use: str):
    """Of a server of its own; all that it wants to write is written afterwards."""
    pool = Pool({MODEL: Spec(MODEL, use=use, defaults=("match", "fcfs"))})
    pool.load(MODEL)
    for running in serving(pool, Settings()):
        with httpx.Client(base_url=running.url, timeout=60) as made:
            yield made
    asyncio.run(pool.close())


def seen(client: httpx.Client) -> dict[str, int]:
    """What happened to records, as both views tell it once nothing happens between the two looks."""
    for _ in range(100):
        found = re.findall(r"^pronghorn_disk_records_total{(.*)} (\S+)$", client.get("/metrics").text, re.M)
        counts = {re.search(r'what="(\w+)"', labels)[1]: int(float(n)) for labels, n in found}
        if (told := client.get("/pronghorn/state").json()["cache"]["disk"]) == counts:
            return counts
        time.sleep(0.05)  # records are written behind the answer's back
    raise AssertionError(f"the state says {told}, the metrics {counts}")


def test_damaged_records_are_counted(tmp_path: Path):
    use = f'prefix:disk="{tmp_path}"'
    with client() as plain:
        want = plain.post("/v1/completions", json=ASK).json()["choices"]
        assert seen(plain) == {}
    with client(use) as first:
        assert first.post("/v1/completions", json=ASK).json()["choices"] == want
        assert seen(first)["damaged"] == 0
    files = sorted(tmp_path.iterdir())
    assert files
    for path in files:
        raw = bytearray(path.read_bytes())
        raw[100] ^= 1  # in the head, which is looked at when the folder is opened
        path.write_bytes(raw)
    with client(use) as second:
        assert seen(second)["damaged"] == len(files)
        assert not any(path.exists() for path in files)
        assert second.post("/v1/completions", json=ASK).json()["choices"] == want
