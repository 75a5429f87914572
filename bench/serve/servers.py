"""The servers that are compared: ours, llama.cpp's and OpenVINO GenAI behind a front of the bench.

All serve the same weights. int8: one GGUF file in Q8_0, which ours and llama.cpp load as it is; OpenVINO has
its own 8 bits (per channel). bf16: the checkpoint's numbers everywhere, in fp16 files for OpenVINO. own: the
checkpoint as it is, for ours by name as users give it.

Needed for the peers, once:

- llama.cpp: the `llama-server` program, named by --llama-server or $LLAMA_SERVER, else looked for in PATH.
  The package llama-cpp-python does not bring it, and its own server does not batch. It is the target
  `llama-server` of llama.cpp's CMake project, whose sources also lie in the source package of
  llama-cpp-python (vendor/llama.cpp; bench/peers/llama.cpp.txt has the version). Build type Release,
  GGML_NATIVE on; web page and TLS are not needed.
- OpenVINO GenAI: `python bench/peers/build.py openvino`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from load import get

from pronghorn.bench.engines import Launch, Process, environment
from pronghorn.bench.peers import SCRIPTS, environments, folder_name
from pronghorn.bench.shapes import SHAPES, cache, kept

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OURS, LLAMA, OPENVINO = "pronghorn", "llama.cpp", "openvino"
NAMES = (OURS, LLAMA, OPENVINO)
OWN = "own"  # a precision: what the checkpoint is in
TYPES = {"int8": "q8_0", "bf16": "bf16", OWN: "same"}
PATIENCE = 300.0  # seconds until a server must be ready
BATCH = 16  # sequences that llama.cpp runs at once; its others wait
KV_GIB = 4


class ServerError(Exception):
    """A server cannot be had, did not start or ended."""


@dataclass(frozen=True)
class Setting:
    """What every server of a comparison gets. model: a Hugging Face folder, or a shape's name; context:
    tokens that a sequence may have; use: Pronghorn's methods; slots: see BATCH."""

    model: str
    precision: str = "int8"
    threads: int = 2
    context: int = 4096
    slots: int = BATCH
    use: tuple[str, ...] = ()
    llama_server: str = ""

    @property
    def folder(self) -> Path:
        if self.model in SHAPES:
            return kept(self.model)
        from pronghorn.llm import find_model

        folder = Path(find_model(self.model))
        if not (folder / "config.json").exists():
            raise ServerError(f"{self.model} is no shape ({', '.join(SHAPES)}), bundled model or folder")
        return folder

    @property
    def home(self) -> Path:
        """Where what is made of the model lies."""
        return cache() / "made" / folder_name(self.folder)

    @property
    def given(self) -> str:
        """What ours is told to serve."""
        return self.model if self.precision == OWN and self.model not in SHAPES else str(self.gguf())

    def gguf(self) -> Path:
        kind = TYPES[self.precision]
        path = self.home / f"{kind}.gguf"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"part-{path.name}")
            command = ["convert", str(self.folder), str(part), "--dtype", kind, "--force"]
            _done([sys.executable, "-m", "pronghorn.cli.main", *command], {"PYTHONPATH": str(ROOT)})
            os.replace(part, path)
        return path


def ours(of: Setting, port: int) -> list[str]:
    use = [x for method in of.use for x in ("--use", method)]
    return [
        sys.executable, "-m", "pronghorn.cli.main", "serve", of.given, "--plain", "--port", str(port),
        "--threads", str(of.threads), *use,
    ]  # fmt: skip


def llama(of: Setting, port: int) -> list[str]:
    """Batches of 2,048 rows in pieces of 512, stored prompts on: as it comes. Every slot has the context."""
    return [
        _llama_server(of), "-m", str(of.gguf()), "--host", "127.0.0.1", "--port", str(port),
        "-c", str(of.context * of.slots), "-np", str(of.slots), "-t", str(of.threads),
        "-tb", str(of.threads), "--no-ui",
    ]  # fmt: skip


def openvino(of: Setting, port: int) -> list[str]:
    python = environments() / OPENVINO / "bin" / "python"
    if not python.exists():
        raise ServerError(f"OpenVINO is not installed: python {SCRIPTS / 'build.py'} openvino")
    made = of.home / OPENVINO / of.precision
    if not made.exists():
        with closing(Process(_launch(of, str(python)))) as process:
            process.prepare()
    front = HERE / "openvino_front.py"
    return [str(python), str(front), str(made), str(port), str(of.threads), str(KV_GIB)]


COMMANDS: dict[str, Callable[[Setting, int], list[str]]] = {OURS: ours, LLAMA: llama, OPENVINO: openvino}


@dataclass
class Server:
    """A server's process. started: seconds until it said that it is ready."""

    name: str
    setting: Setting
    port: int = 0
    begin: float = 0.0
    started: float = 0.0
    label: str = ""
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _log: Path = Path(os.devnull)

    def __enter__(self) -> Server:
        self.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        self.label = self.label or self.name
        self.port = free_port()
        command = COMMANDS[self.name](self.setting, self.port)
        launch = _launch(self.setting, command[0])
        handle, name = tempfile.mkstemp(prefix=f"serve-{self.name}-", suffix=".log")
        self._log = Path(name)
        env = {**environment(launch), "PYTHONPATH": str(ROOT) if self.name == OURS else ""}
        self.begin = time.perf_counter()
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, env=env, start_new_session=True
        )
        os.close(handle)

    def wait(self) -> None:
        """Until it is ready."""
        while True:
            with contextlib.suppress(OSError):
                get(self.port, "/health", timeout=5.0)
                self.started = time.perf_counter() - self.begin
                return
            self.check()
            if time.perf_counter() - self.begin > PATIENCE:
                self.close()
                raise ServerError(f"{self.name} was not ready in {PATIENCE:.0f} s; see {self._log}")
            time.sleep(0.01)

    def check(self) -> None:
        """Raises `ServerError` where the process has ended."""
        assert self._child is not None
        if self._child.poll() is not None:
            last = self._log.read_text(errors="replace").strip().splitlines()[-8:]
            raise ServerError(f"{self.name} ended ({self._child.returncode}):\n" + "\n".join(last))

    def pause(self) -> None:
        """Take no time from whose turn it is."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ask it to end, and see that it does."""
        if self._child is None or self._child.poll() is not None:
            return
        self.go_on()
        self._signal(signal.SIGTERM)
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._child.wait()

    @property
    def weights(self) -> Path:
        """File or folder that it loads."""
        if self.name == OPENVINO:
            return self.setting.home / OPENVINO / self.setting.precision
        own = self.name == OURS and self.setting.precision == OWN
        return self.setting.folder if own else self.setting.gguf()

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def resident(self) -> int:
        """Bytes."""
        return _status(self.pid, "VmRSS")

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        said = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(said[11]) + int(said[12])) / os.sysconf("SC_CLK_TCK")

    def _signal(self, what: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.pid, what)


def free_port() -> int:
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def versions(names: Sequence[str], setting: Setting) -> dict[str, str]:
    out = {}
    if LLAMA in names:
        done = subprocess.run(
            [_llama_server(setting), "--version"], capture_output=True, text=True, check=False
        )
        out[LLAMA] = (done.stderr + done.stdout).strip().partition("\n")[0]
    if OPENVINO in names:
        pins = (SCRIPTS / "openvino.txt").read_text().splitlines()
        out[OPENVINO] = next(p for p in pins if p.startswith("openvino-genai"))
    return out


def _llama_server(of: Setting) -> str:
    found = of.llama_server or os.environ.get("LLAMA_SERVER", "") or shutil.which("llama-server")
    if not found or not Path(found).exists():
        raise ServerError("llama-server is not there; bench/serve/servers.py says how to get it")
    return found


def _launch(of: Setting, python: str) -> Launch:
    driver = SCRIPTS / f"{OPENVINO}_driver.py"
    return Launch(OPENVINO, python, driver, str(of.folder), (), of.precision, of.threads, of.home)


def _done(command: list[str], more: dict[str, str]) -> None:
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")


def _status(pid: int, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0
