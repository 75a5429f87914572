"""Engines as the bench sees them: a process each, asked in turns."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pronghorn.errors import PronghornError

SERVE = Path(__file__).with_name("serve.py")
OURS = Path(__file__).with_name("ours.py")
ROOT = str(Path(__file__).resolve().parents[2])
PATIENCE = 1800.0  # seconds that an answer may take; setting a peer up converts and quantizes


class EngineError(PronghornError):
    """An engine failed, ended or did not answer."""


class CannotError(PronghornError):
    """An engine has no way to do what was asked."""


@dataclass(frozen=True)
class Start:
    """Seconds from the start of the process: until it runs, until the model is loaded, and until the first
    token of a short prompt is there."""

    ready: float
    loaded: float
    first: float


@dataclass(frozen=True)
class Memory:
    """Of a process, in bytes. resident: now, of which `private` are its own and `file` are pages of mapped
    files, which the system can take back; peak: the most that was resident so far."""

    resident: int
    private: int
    file: int
    peak: int


@dataclass(frozen=True)
class Launch:
    """How an engine starts. use: Pronghorn's methods, or how a peer speculates; precision: what peers load
    the checkpoint in; path: where its Python looks for packages besides its own."""

    name: str
    python: str
    driver: Path
    model: str
    use: tuple[str, ...]
    precision: str
    threads: int
    cache: Path
    path: str = ""


class Process:
    """An engine's process. Ends with `close`."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._begin = time.perf_counter()
        self._child = subprocess.Popen(
            [launch.python, str(SERVE), str(launch.driver)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0,
            env=environment(launch), start_new_session=True,
        )  # fmt: skip
        self._rest = b""
        try:
            self._answer()
        except BaseException:
            self.close()
            raise
        self._ready = time.perf_counter() - self._begin

    def prepare(self) -> None:
        """Have the checkpoint converted and quantized, where that was not done before."""
        of = self.launch
        self.ask("prepare", model=of.model, precision=of.precision, cache=str(of.cache))

    def load(self) -> tuple[dict[str, Any], Start, Memory]:
        """Load the model and run a short prompt: what the driver says of it, how long that took since the
        process started, and the memory held before the prompt."""
        of = self.launch
        facts = self.ask(
            "load", model=of.model, use=list(of.use), precision=of.precision, threads=of.threads,
            cache=str(of.cache),
        )  # fmt: skip
        loaded = time.perf_counter() - self._begin
        held = memory(self._child.pid)
        self.ask("prefill", n=8)
        return facts, Start(self._ready, loaded, time.perf_counter() - self._begin), held

    def ask(self, do: str, **what: Any) -> Any:
        """The answer to a request. Raises `CannotError`, `EngineError`."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
        except OSError:
            raise EngineError(self._ended()) from None
        return self._answer()

    def peak(self) -> Memory:
        """Memory now, and the most so far."""
        return memory(self._child.pid)

    def close(self) -> None:
        if self._child.poll() is None:
            try:
                os.killpg(self._child.pid, signal.SIGKILL)  # with what it started itself
            except OSError:
                self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        end = time.monotonic() + PATIENCE
        while b"\n" not in self._rest:
            if not select.select([self._child.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise EngineError(f"{self.launch.name} gave no answer for {PATIENCE:.0f} s")
            more = os.read(self._child.stdout.fileno(), 1 << 16)
            if not more:
                raise EngineError(self._ended())
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        answer = json.loads(line)
        if "cannot" in answer:
            raise CannotError(f"{self.launch.name}: {answer['cannot']}")
        if "error" in answer:
            raise EngineError(f"{self.launch.name}: {answer['error']}")
        return answer["ok"]

    def _ended(self) -> str:
        self._log.seek(0)
        said = self._log.read()[-2000:].decode(errors="replace").strip().splitlines()
        why = f": {said[-1]}" if said else ""
        return f"{self.launch.name} ended (status {self._child.wait()}){why}"


def ours(model: str, use: Sequence[str], threads: int, cache: Path) -> Launch:
    return Launch("pronghorn", sys.executable, OURS, model, tuple(use), "", threads, cache, ROOT)


def environment(launch: Launch) -> Mapping[str, str]:
    """For every engine alike: so many threads, and nothing is fetched."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VLLM_CPU_NUM_THREADS")
    threads = dict.fromkeys(names, str(launch.threads))
    own = {"PRONGHORN_PYTHON": sys.executable, "PRONGHORN_PATH": ROOT}  # with which drivers convert
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **threads, **own, **offline, "PYTHONPATH": launch.path}


def memory(pid: int) -> Memory:
    """Zeros where the system does not tell."""
    found: dict[str, int] = {}
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM", "RssAnon", "RssFile", "RssShmem"):
                found[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    of = found.get
    return Memory(
        of("VmRSS", 0), of("RssAnon", 0) + of("RssShmem", 0), of("RssFile", 0), of("VmHWM", 0)
    )  # fmt: skip


def forget(folder: Path) -> bool:
    """Ask the system to drop a checkpoint's pages from its cache, so that the next start reads the disk
    (or whatever holds it). Whether it could be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in [folder] if folder.is_file() else [p for p in folder.iterdir() if p.is_file()]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
