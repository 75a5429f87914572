"""Several models in one process: loaded when somebody asks for them, within a memory budget.

    pool = Pool({"small": "pronghorn-tiny", "big": Spec("./big", use=("weight.int8",))}, memory=16 << 30)
    async with await pool.get("small") as llm:
        answer = await llm.generate("Once upon a time")

A model counts with what its weights were seen to take (the process's resident size before and after loading,
the others' KV left out; what the files hold where that is more) and with the KV that it may come to hold.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pronghorn.compose import compose
from pronghorn.errors import RequestError, UnavailableError
from pronghorn.llm import DEFAULT_MODEL, DEFAULT_USE, find_model, free_memory
from pronghorn.opening import SELF, parse
from pronghorn.serve.async_llm import AsyncLLM

KV_SHARE = 4  # a model that states no limit of its KV gets this part of the budget
FREE_SHARE = 0.9  # of the memory that is free: the budget where none is given
WEIGHTS = (".safetensors", ".gguf", ".bin")


@dataclass(frozen=True)
class Spec:
    """What a name stands for: the arguments of `LLM`. kv_bytes 0: a quarter of the pool's budget."""

    model: str | os.PathLike[str] = DEFAULT_MODEL
    use: tuple[str | Any, ...] = ()
    backend: str = "native"
    threads: int = 0
    kv_bytes: int = 0
    defaults: tuple[str | Any, ...] = DEFAULT_USE


@dataclass(eq=False)
class _Place:
    """A name and what is behind it. `leases` counts those who hold the model or wait for it."""

    name: str
    spec: Spec
    llm: AsyncLLM | None = None
    loading: Future[AsyncLLM] | None = None
    leases: int = 0
    used: float = 0.0  # time.monotonic() when it was last given back
    weights: int = 0  # bytes that they were seen to take, 0 before the first time
    kv: int = 0
    seconds: float = 0.0  # it took to load

    @property
    def size(self) -> int:
        return self.weights + self.kv


@dataclass
class Lease:
    """A model that stays loaded for as long as the block runs."""

    pool: Pool
    place: _Place
    llm: AsyncLLM
    _held: bool = field(default=True)

    def release(self) -> None:
        if self._held:
            self._held = False
            self.pool._give_back(self.place)

    async def __aenter__(self) -> AsyncLLM:
        return self.llm

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Pool:
    """models: name -> `Spec`, or what `LLM` takes for a model. memory: bytes that the loaded ones may take
    together, 0 for nine tenths of what is free. max_waiting and receipts: of each, see `AsyncLLM`.

    The least recently used model that nobody holds leaves when another needs its place; one that does not
    fit is refused with `UnavailableError`. Any thread and event loop may use a pool.
    """

    def __init__(
        self,
        models: Mapping[str, Spec | str | os.PathLike[str]],
        memory: int = 0,
        max_waiting: int = 1024,
        receipts: int = 1000,
    ) -> None:
        if not models:
            raise RequestError("a pool needs at least one model")
        self.memory = memory or int(free_memory() * FREE_SHARE)
        self.max_waiting, self.receipts = max_waiting, receipts
        self._places = {
            name: _Place(name, spec if isinstance(spec, Spec) else Spec(spec))
            for name, spec in models.items()
        }
        self._lock = threading.Lock()
        self._closed = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="pronghorn-load")  # one load at a time

    # ------------------------------------------------------------------ models

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def loaded(self) -> dict[str, dict[str, Any]]:
        """What is in memory: bytes of weights and of KV at most, seconds it took to load, who holds it."""
        with self._lock:
            return {
                p.name: {
                    "weights": p.weights,
                    "kv": p.kv,
                    "seconds": p.seconds,
                    "leases": p.leases,
                    "healthy": p.llm.healthy,
                }
                for p in self._places.values()
                if p.llm is not None
            }

    async def get(self, name: str) -> Lease:
        """The model, loaded if it is not; those who ask meanwhile share one load, and its error. Raises
        `RequestError` for an unknown name, `UnavailableError` for one that finds no room, and what `LLM`
        raises."""
        place, future = self._take(name)
        try:
            llm = await asyncio.shield(asyncio.wrap_future(future))
        except BaseException:
            self._give_back(place)
            raise
        return Lease(self, place, llm)

    def load(self, name: str) -> None:
        """Load a model ahead, for a caller without an event loop."""
        place, future = self._take(name)
        try:
            future.result()
        finally:
            self._give_back(place)

    def _take(self, name: str) -> tuple[_Place, Future[AsyncLLM]]:
        """Hold a name's place from now on; the future has, or will have, its model."""
        if name not in self._places:
            raise RequestError(f"no model called {name[:80]!r}; here: {', '.join(self._places)}")
        with self._lock:
            if self._closed:
                raise UnavailableError("the models are being closed")
            place = self._places[name]
            if place.loading is None and (place.llm is None or (not place.llm.healthy and not place.leases)):
                place.loading = self._loader.submit(self._load, place)
            place.leases += 1
            if place.loading is not None:
                return place, place.loading
            there: Future[AsyncLLM] = Future()
            assert place.llm is not None
            there.set_result(place.llm)
            return place, there

    def _give_back(self, place: _Place) -> None:
        with self._lock:
            place.leases -= 1
            place.used = time.monotonic()

    # ------------------------------------------------------------------ loading, in its thread

    def _load(self, place: _Place) -> AsyncLLM:
        llm = None
        try:
            llm = self._loaded(place)
        finally:
            with self._lock:
                place.llm, place.loading = llm, None
        return llm

    def _loaded(self, place: _Place) -> AsyncLLM:
        spec = place.spec
        self._unload(place)  # one that failed
        kv = spec.kv_bytes or self.memory // KV_SHARE
        told = _stored(spec)
        self._make_room(place, max(place.weights, told) + kv)
        before, start = self._resident(), time.perf_counter()
        llm = AsyncLLM(
            spec.model, spec.use, spec.backend, spec.threads, kv, spec.defaults,
            max_waiting=self.max_waiting, receipts=self.receipts, name=place.name,
        )  # fmt: skip
        place.seconds = time.perf_counter() - start
        place.weights, place.kv = max(self._resident() - before, told), kv
        try:
            self._make_room(place, place.size)
        except UnavailableError:
            llm.shut()
            raise
        llm.begin(calibrate=True)
        return llm

    def _make_room(self, place: _Place, size: int) -> None:
        """Unload the least recently used until `size` bytes fit. Raises `UnavailableError`."""
        while True:
            with self._lock:
                others = [p for p in self._places.values() if p.llm is not None and p is not place]
                if sum(p.size for p in others) + size <= self.memory:
                    return
                idle = [p for p in others if not p.leases and p.llm is not None and p.llm.idle]
                if not idle or size > self.memory:
                    held = ", ".join(f"{p.name} ({_mib(p.size)}) in use" for p in others if p not in idle)
                    raise UnavailableError(
                        f"{place.name} needs {_mib(size)} with its KV, and the models may take "
                        f"{_mib(self.memory)} together{'; ' + held if held else ''}: "
                        + ("try again later" if size <= self.memory else "raise the limit or give it less KV")
                    )
                victim = min(idle, key=lambda p: p.used)
                llm, victim.llm = victim.llm, None
            if llm is not None:
                llm.shut()
            del llm

    def _unload(self, place: _Place) -> None:
        with self._lock:
            llm, place.llm = place.llm, None
        if llm is not None:
            llm.shut()

    def _resident(self) -> int:
        """Resident bytes of the process without the KV of loaded models; 0 where the system does not tell."""
        gc.collect()
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        engines = [llm.llm.engine for llm in self._models().values()]
        kv = sum(e.store.reserved + e.drafting.reserved for e in engines)
        return int(pages * os.sysconf("SC_PAGE_SIZE")) - kv

    # ------------------------------------------------------------------ what can be seen

    def _models(self) -> dict[str, AsyncLLM]:
        with self._lock:
            return {p.name: p.llm for p in self._places.values() if p.llm is not None}

    def receipt(self, id_: str) -> dict[str, Any] | None:
        """Of a request to any of the loaded models, None when it is not kept (any more)."""
        found = (llm.receipts.get(id_) for llm in self._models().values())
        return next((r for r in found if r is not None), None)

    def engines(self) -> Any:
        """A collector for `prometheus_client`, of all loaded models."""
        from pronghorn.serve.exposition import Engines

        return Engines(self._models)

    # ------------------------------------------------------------------ the end

    async def close(self, drain: float = 0.0) -> None:
        """Load nothing more, and close every model: finish what runs for up to `drain` seconds."""
        with self._lock:
            self._closed = True
        await asyncio.to_thread(self._loader.shutdown, wait=True, cancel_futures=True)
        await asyncio.gather(*(llm.close(drain) for llm in self._models().values()))
        with self._lock:
            for place in self._places.values():
                place.llm = place.loading = None


def _stored(spec: Spec) -> int:
    """Bytes of a model's weights, and its companions', as their files hold them; those that a method stores
    otherwise and those that are not here yet left out."""
    methods = compose(spec.use, spec.defaults)
    companions = {parse(name) for name in methods.models}
    paths = {Path(find_model(c.model)) for c in companions if c.model != SELF and not c.weight}
    if not methods.weight:
        paths.add(Path(find_model(spec.model)))
    files = [f for path in paths for f in ([path] if path.is_file() else path.glob("*"))]
    return sum(f.stat().st_size for f in files if f.suffix in WEIGHTS)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
