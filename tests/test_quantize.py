"""`pronghorn quantize`: what it writes loads as it lies; what ends it early; what it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronghorn.compose import parse
from pronghorn.errors import CheckpointError
from pronghorn.llm import BUNDLED, LLM
from pronghorn.model.arch import build_tape
from pronghorn.model.checkpoint import load_checkpoint
from pronghorn.model.quantized.stored import dense, floats
from pronghorn.quantize import run, state, text, write
from pronghorn.quantize.job import Job
from pronghorn.types import Packed
from tests.cli import Caller

DRAFT = BUNDLED / "pronghorn-tiny-draft"
WORDS = ["the", "fox", "ran", "over", "a", "hill", "and", "saw", "one", "red", "bird", "when", "rain", "fell"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 12)).capitalize() + "." for _ in range(700)]
    path = tmp_path / "prose.txt"
    path.write_text("\n".join(lines))
    return path


def quiet(done: int, total: int) -> None:
    pass


def folder_of(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(path.iterdir())}


# ------------------------------------------------------------------------------ what it writes


def test_the_folder_is_the_model_packed_at_load(call: Caller, tmp_path: Path) -> None:
    out = tmp_path / "out"
    specs = ["int4:group=64", "weight.int8:only=*embed*"]
    uses = [a for s in specs for a in ("--use", s)]
    said = call("quantize", str(DRAFT), str(out), *uses, "--json").data
    assert said["bits"] == pytest.approx(6, abs=2)
    assert said["nbytes"] == sum(f.stat().st_size for f in out.iterdir())
    held = load_checkpoint(out).tensors
    matrices = {n: t for n in held if isinstance(t := held[n], Packed)}
    source = load_checkpoint(DRAFT).tensors
    assert set(matrices) == {n for n in source if source[n].ndim == 2}
    for name, packed in matrices.items():
        assert packed.grid.bits == (8 if "embed" in name else 4)
        panels = packed.fields["panels"]
        assert panels.ctypes.data % 64 == 0, "panels lie aligned"
        assert not panels.flags.owndata, "panels are views of the map"
        fmt = parse(specs[packed.grid.bits == 8])[1]
        assert (panels == fmt.pack(source[name]).fields["panels"]).all()
    a, b = LLM(str(out), []), LLM(str(DRAFT), specs)
    prompt = "Once upon a time there was a fox"
    assert a.generate(prompt, max_tokens=24).tokens == b.generate(prompt, max_tokens=24).tokens
    assert not list(tmp_path.glob(".out*")), "nothing is left beside it"


@pytest.mark.parametrize("spec", ["fp8", "fp16", "weight.bf16", "nf4", "int3:symmetric=false,activations=16"])
def test_every_kind_comes_back(call: Caller, tmp_path: Path, spec: str) -> None:
    said = call("quantize", str(DRAFT), str(tmp_path / "out"), "--use", spec, "--json").data
    assert said["bits"] > 3
    assert said["notes"] == []
    source, held = load_checkpoint(DRAFT).tensors, load_checkpoint(tmp_path / "out").tensors
    fmt = parse(spec)[1]
    for name in source:
        want = source[name]
        if want.ndim == 2:
            want = dense(fmt.pack(want))
        assert (floats(held[name]) == np.asarray(want, np.float32)).all()


def test_files_of_a_limited_size(tmp_path: Path) -> None:
    source = load_checkpoint(DRAFT)
    write.write_folder(source, {}, tmp_path / "out", quiet, limit=300_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    held = load_checkpoint(tmp_path / "out").tensors
    assert set(held) == set(source.tensors)
    for name in held:
        assert (floats(held[name]) == floats(source.tensors[name])).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq", "awq-gptq"])
def test_calibrated_and_evaluated(call: Caller, tmp_path: Path, prose: Path, method: str) -> None:
    words = ["--tokens", "2048", "--evaluate", str(prose), "--json"]
    plain = call("quantize", str(DRAFT), str(tmp_path / "rtn"), "--use", "int3", *words).data
    made = call(
        "quantize", str(DRAFT), str(tmp_path / "out"), "--use", "int3", "--method", method,
        "--calibrate", str(prose), *words,
    ).data  # fmt: skip
    assert made["bits"] == plain["bits"]
    assert made["n_tokens"] == 2048
    assert 0 < made["evaluation"]["kl"] < (0.95 if method == "awq" else 0.85) * plain["evaluation"]["kl"]
    assert made["evaluation"]["plain"] == plain["evaluation"]["plain"]


def test_evaluation_notices_a_wrong_scale(call: Caller, tmp_path: Path, prose: Path) -> None:
    """8 bits are within the bound that 8 bits promise, and are not when one scale of one matrix is wrong."""
    args = (
        "quantize",
        str(DRAFT),
        str(tmp_path / "out"),
        "--use",
        "int8",
        "--evaluate",
        str(prose),
        "--json",
    )
    good = call(*args).data["evaluation"]
    assert abs(good["ratio"] - 1) < 0.01
    assert good["kl"] < 0.01
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    start, stop = header["model.layers.0.mlp.down_proj.weight.scale"]["data_offsets"]
    scales = np.frombuffer(data, np.float32, (stop - start) // 4, 8 + size + start)
    scales[:] *= 1.5
    path.write_bytes(data)
    from pronghorn.quantize.evaluate import compare

    plain, spoiled = LLM(str(DRAFT), []), LLM(str(tmp_path / "out"), [])
    ids = text.sequences(text.read(prose), plain.tokenizer, 2048, 256)
    assert compare(plain.engine, spoiled.engine, ids).kl > 5 * good["kl"]


# ------------------------------------------------------------------------------ cut short


def job(out: Path, ids: Any, method: str = "gptq", progress: Any = quiet) -> run.Done:
    source = load_checkpoint(DRAFT)
    tape = build_tape(source.config)
    return run.quantize(source, tape, [parse("int4")[1]], method, ids, out, progress)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_a_run_that_was_cut_short_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    ids = np.random.default_rng(1).integers(10, 4000, (4, 128)).astype(np.int32)
    ids = ids if method != "rtn" else text.NONE
    job(tmp_path / "whole", ids, method)
    ran: list[int] = []
    stops = [2]
    stage = Job.run

    def counted(self: Job, number: int) -> Any:
        if number in stops:
            stops.clear()
            raise KeyboardInterrupt
        ran.append(number)
        return stage(self, number)

    monkeypatch.setattr(Job, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "cut", ids, method)
    assert not (tmp_path / "cut").exists()
    assert ran == [0, 1]
    job(tmp_path / "cut", ids, method)
    assert ran == list(range(len(ran))), "finished stages are not run again"
    assert folder_of(tmp_path / "cut") == folder_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".cut*"))


def test_other_arguments_start_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = state.State(tmp_path / "s", {"method": "gptq"})
    (tmp_path / "s" / "0.json").write_text("{}")
    assert first.n_done == 1
    assert state.State(tmp_path / "s", {"method": "gptq"}).n_done == 1
    assert state.State(tmp_path / "s", {"method": "awq"}).n_done == 0


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9 at several moments; what is taken up ends as what was never stopped."""
    code = (
        "import numpy as np, sys; from tests.test_quantize import job; from pathlib import Path;"
        "job(Path(sys.argv[1]), np.arange(512, dtype=np.int32).reshape(4, 128) + 20)"
    )
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    job(tmp_path / "whole", np.arange(512, dtype=np.int32).reshape(4, 128) + 20)
    kept = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cut")], env=env)
        start = time.monotonic()
        while process.poll() is None and time.monotonic() - start < 120:
            n = len(list(tmp_path.glob(".cut.unfinished/*.json"))) - 1
            if n > kept:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = max(kept, n)
    job(tmp_path / "cut", np.arange(512, dtype=np.int32).reshape(4, 128) + 20)
    assert folder_of(tmp_path / "cut") == folder_of(tmp_path / "whole")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = state.write_tensors
    calls = []

    def full(path: Path, arrays: Any, progress: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, arrays, progress)

    monkeypatch.setattr(state, "write_tensors", full)
    with pytest.raises(CheckpointError, match="make room"):
        job(tmp_path / "out", text.NONE, "rtn")
    assert not (tmp_path / "out").exists()
    assert not [p for p in (tmp_path / ".out.unfinished").iterdir() if p.name.endswith(".part")]
    monkeypatch.setattr(state, "write_tensors", real)
    job(tmp_path / "out", text.NONE, "rtn")
    assert LLM(str(tmp_path / "out"), []).generate("A fox", max_tokens=2).tokens


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("args", "way"),
    [
        (["--method", "gptq"], "--calibrate"),
        (["--method", "gptr"], "did you mean 'gptq'"),
        (["--method", "hqq"], "symmetric=false"),
        (["--use", "int4:group=48"], "32, 64, 128"),
        (["--use", "int5"], "did you mean"),
        (["--use", "temperature"], "weight format"),
        (["--memory", "lots"], "4G"),
        (["--method", "gptq", "--calibrate", "/nowhere.txt"], "/nowhere.txt"),
        (["--method", "gptq", "--calibrate", "PROSE", "--memory", "1M"], "--memory"),
    ],
)
def test_refusals(call: Caller, tmp_path: Path, prose: Path, args: list[str], way: str) -> None:
    args = [str(prose) if a == "PROSE" else a for a in args]
    assert way in call.refused("quantize", str(DRAFT), str(tmp_path / "out"), *args)
    assert not (tmp_path / "out").exists()


def test_formats_that_claim_nothing(call: Caller, tmp_path: Path) -> None:
    said = call("quantize", str(DRAFT), str(tmp_path / "out"), "--use", "int4:only=nothing", "--json").data
    assert said["bits"] == 0
    assert "as it was" in said["notes"][0]


def test_a_folder_that_is_there(call: Caller, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("do not touch")
    assert "already exists" in call.refused("quantize", str(DRAFT), str(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "do not touch"


def test_texts(tmp_path: Path) -> None:
    from pronghorn.errors import RequestError

    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n"two"\n')
    assert text.read(path) == ["one", "two"]
    for bad, why in (('{"text": 1}', "line 1"), ("[1", "not JSON"), ('{"body": "x"}', '"text"')):
        path.write_text(bad)
        with pytest.raises(RequestError, match=why):
            text.read(path)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="UTF-8"):
        text.read(tmp_path / "b.txt")
    tokenizer = LLM(str(DRAFT), []).tokenizer
    with pytest.raises(RequestError, match="more text"):
        text.sequences(["short"], tokenizer, 100, 64)
    ids = text.sequences(["a fox ran " * 500], tokenizer, 256, 64)
    assert ids.shape == (4, 64)
