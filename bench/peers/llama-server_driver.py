"""llama.cpp's server, whose speculation is its own; the Python bindings have none in C++.

The program is $LLAMA_SERVER, or llama-server in PATH (bench/serve/servers.py says how to build it). bf16:
GGUF as `pronghorn convert` writes it; int8: Q8_0, in the same way. It speculates from the n-grams of the
text ("lookup": ngram-simple, set as prompt lookup is elsewhere; "cache": ngram-cache, its lookup decoding)
and with a draft model in the same precision ("draft": draft-simple). All else as it comes.

Times are the server's own: of prompts that run together, the longest from a first token to its last.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))
from _texts import made

TYPES = {"int8": "q8_0", "bf16": "bf16"}
SIMPLE = "--spec-ngram-simple-size"
LOOKUP = ["--spec-type", "ngram-simple", f"{SIMPLE}-n", "3", f"{SIMPLE}-m", "10"]
WAYS = {"": [], "lookup": LOOKUP, "cache": ["--spec-type", "ngram-cache"]}
SLOTS, CONTEXT = 16, 2048  # prompts at once, and tokens of each
PATIENCE = 300.0  # seconds until it must be ready


class Driver:
    def prepare(self, model: str, precision: str, cache: str) -> str:
        if precision not in TYPES:
            raise NotImplementedError(f"no form for {precision}")
        kind = TYPES[precision]
        return str(made(Path(cache) / f"{kind}.gguf", lambda to: _convert(model, to, kind)))

    def load(self, model: str, use: list[str], precision: str, threads: int, cache: str) -> dict[str, Any]:
        program = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
        if not program or not Path(program).exists():
            raise NotImplementedError("llama-server is not there: name it by $LLAMA_SERVER")
        way = use[0] if use else ""
        if way == "draft":
            more = ["--spec-type", "draft-simple", "-md", self.prepare(use[1], precision, use[2])]
        else:
            more = WAYS[way]
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = int(s.getsockname()[1])
        command = [
            program, "-m", self.prepare(model, precision, cache), "--host", "127.0.0.1", "--port",
            str(self.port), "-c", str(SLOTS * CONTEXT), "-np", str(SLOTS), "-t", str(threads), "-tb",
            str(threads), "--no-ui", *more,
        ]  # fmt: skip
        self.server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr
        )
        atexit.register(self.server.kill)  # whoever kills this process's group kills the server too
        self._wait()
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        return {"version": (said.stderr + said.stdout).strip().partition("\n")[0]}

    def prefill(self, n: int) -> float:
        start = time.perf_counter()
        self._ask({"prompt": list(range(100, 100 + n)), "n_predict": 1, "cache_prompt": False})
        return time.perf_counter() - start

    def answer(
        self, prompts: list[list[int]], tokens: int, temperature: float, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        bodies = [
            {
                "prompt": ids, "n_predict": tokens, "temperature": temperature, "seed": seed + i,
                "samplers": ["temperature"], "cache_prompt": False, "ignore_eos": not stop,
                "return_tokens": True,
            }
            for i, ids in enumerate(prompts)
        ]  # fmt: skip
        start = time.perf_counter()
        with ThreadPoolExecutor(len(bodies)) as pool:
            said = list(pool.map(self._ask, bodies))
        whole = time.perf_counter() - start
        times = [s["timings"] for s in said]
        return {
            "answers": [s["tokens"] for s in said], "tokens": sum(t["predicted_n"] - 1 for t in times),
            "seconds": max(t["predicted_ms"] for t in times) / 1e3, "whole": whole,
        }  # fmt: skip

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.server.poll() is not None:
                raise ValueError(f"llama-server ended ({self.server.returncode})")
            with contextlib.suppress(OSError):
                connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.05)
        raise ValueError(f"llama-server was not ready in {PATIENCE:.0f} s")

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"llama-server says {answer.status}: {said}")
        return said


def _convert(model: str, to: Path, kind: str) -> None:
    ours, path = os.environ["PRONGHORN_PYTHON"], {"PYTHONPATH": os.environ["PRONGHORN_PATH"]}
    command = [ours, "-m", "pronghorn.cli.main", "convert", model, str(to), "--dtype", kind, "--force"]
    done = subprocess.run(command, env={**os.environ, **path}, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"conversion to GGUF failed: {done.stderr.strip()[-300:]}")
