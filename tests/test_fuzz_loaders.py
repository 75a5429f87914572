"""Damaged files: whatever the bytes, loading gives a checkpoint or a PronghornError, soon and
small.

Each example opens the file, reads every tensor and scans them. Limits: one second, and 32 MiB
beyond what the valid file of a few dozen kilobytes needs.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import checkpoints
import gguf
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pronghorn.errors import PronghornError
from pronghorn.model.checkpoint import find_nonfinite, load_checkpoint, validate
from pronghorn.model.convert import convert

SECONDS = 1.0
BYTES = 32 << 20
EXTREMES = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
FORMATS = ("safetensors", "gguf", "q8_0", "bin")
QUIET = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,  # the same examples on every machine; the seeded sweep below adds others
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# (where in the header, how): set a byte, write 4 or 8 bytes, delete, insert, cut.
MUTATION = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(("byte", "u32", "u64", "delete", "insert", "cut")),
    st.one_of(st.sampled_from(EXTREMES), st.integers(0, 255)),
)


def mutate(raw: bytes, n_header: int, changes) -> bytes:
    out = bytearray(raw)
    for where, how, value in changes:
        at = int(where * min(n_header, len(out)))
        if how == "byte":
            out[at : at + 1] = bytes([value & 255])
        elif how == "u32":
            out[at : at + 4] = struct.pack("<I", value & (2**32 - 1))
        elif how == "u64":
            out[at : at + 8] = struct.pack("<Q", value)
        elif how == "delete":
            del out[at : at + 1 + value % 16]
        elif how == "insert":
            out[at:at] = bytes([value & 255]) * (1 + value % 16)
        else:
            del out[int(where * len(out)) :]
    return bytes(out)


def exercise(path: Path) -> bool:
    """Open it and use all of it. True if it loaded, False if refused; anything else propagates."""
    try:
        checkpoint = load_checkpoint(path)
        shapes = {name: checkpoint.tensors.info(name).shape for name in checkpoint.tensors}
        for name, shape in shapes.items():
            assert checkpoint.tensors[name].shape == shape, name
        validate(checkpoint, shapes)
        find_nonfinite(checkpoint)
    except PronghornError as error:
        assert 20 < len(str(error)) < 2000, "an error says what happened, briefly"
        return False
    return True


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, tuple[Path, int]]:
    """A valid file of each format in a folder of its own, and the length of its header."""
    root = tmp_path_factory.mktemp("originals")
    wide = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64, "rms_norm_eps": 1e-5}
    for name in ("safetensors", "gguf", "q8_0", "bin"):
        (root / name).mkdir()
    folder = checkpoints.write("llama", root / "safetensors", **wide)
    experts = checkpoints.write("qwen3_moe", root / "experts", hidden_size=64, vocab_size=64)
    convert(experts, root / "gguf" / "m.gguf", "f32")
    convert(folder, root / "q8_0" / "m.gguf", "q8_0")
    convert(folder, root / "bin" / "m.bin", "f32")
    raw = (folder / "model.safetensors").read_bytes()
    out = {
        "safetensors": (folder / "model.safetensors", 8 + struct.unpack("<Q", raw[:8])[0]),
        "bin": (root / "bin" / "m.bin", 28),
    }
    for name in ("gguf", "q8_0"):
        file = root / name / "m.gguf"
        out[name] = (file, int(gguf.GGUFReader(file).data_offset))
    return out


def bounded(path: Path) -> bool:
    tracemalloc.start()
    start = time.perf_counter()
    try:
        loaded = exercise(path)
        took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took < SECONDS, f"{took:.2f} s"
    assert peak < BYTES, f"{peak} bytes"
    return loaded


@pytest.mark.parametrize("kind", FORMATS)
def test_originals_load(kind, originals):
    assert bounded(originals[kind][0])


@pytest.mark.parametrize("kind", FORMATS)
@QUIET
@given(changes=st.lists(MUTATION, min_size=1, max_size=4))
def test_any_damage_loads_or_is_refused(kind, changes, originals):
    original, n_header = originals[kind]
    raw = original.read_bytes()
    path = original.with_name("damaged" + original.suffix)
    path.write_bytes(mutate(raw, n_header, changes))
    bounded(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_extreme_at_every_header_byte(kind, originals):
    """A huge number at each place of the header in turn: counts, lengths, offsets, shapes."""
    original, n_header = originals[kind]
    raw = original.read_bytes()
    path = original.with_name("damaged" + original.suffix)
    refused = 0
    step = max(1, n_header // 400)
    for at in range(0, n_header, step):
        for value in (2**31 - 1, 2**62, 2**64 - 1):
            out = bytearray(raw)
            out[at : at + 8] = struct.pack("<Q", value)
            path.write_bytes(out)
            start = time.perf_counter()
            refused += not exercise(path)
            assert time.perf_counter() - start < SECONDS
    assert refused > 0.3 * 3 * n_header / step, "most such damage must be seen"


# The sweep runs apart, where the kernel enforces the limit on memory that Python does not count.
SWEEP = """
import random, resource, sys, time
sys.path.insert(0, sys.argv[1])
import test_fuzz_loaders as t
from pathlib import Path
path, n_header, rounds = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
raw = path.read_bytes()
t.exercise(path)
for line in open("/proc/self/status"):
    if line.startswith("VmSize"):
        used = int(line.split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
draw = random.Random(20)
damaged = path.with_name("swept" + path.suffix)
loaded = 0
for i in range(rounds):
    changes = [(draw.random(), draw.choice(("byte", "u32", "u64", "delete", "insert", "cut")),
                draw.choice(t.EXTREMES + tuple(range(256)))) for _ in range(draw.randint(1, 3))]
    damaged.write_bytes(t.mutate(raw, n_header, changes))
    start = time.perf_counter()
    try:
        loaded += t.exercise(damaged)
    except BaseException as error:
        print("round", i, repr(error)); raise
    assert time.perf_counter() - start < t.SECONDS, i
print("loaded", loaded, "of", rounds)
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_seeded_sweep_within_an_address_space_limit(kind, originals):
    path, n_header = originals[kind]
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, str(tests), str(path), str(n_header), "600"],
        capture_output=True, text=True, timeout=120, cwd=tests.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "of 600" in done.stdout


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8)
    | st.sampled_from((0, -1, 2**31, 2**63, 10**40, 1e308, -0.5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
    max_size=3), max_leaves=6,
)  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen2", "qwen3_moe", "smollm3", "gpt2"])
@QUIET
@given(data=st.data())
def test_any_config_loads_or_is_refused(architecture, data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"config-{architecture}"
    if not folder.exists():
        checkpoints.write(architecture, folder)
        (folder / "config.json").rename(folder / "original.json")
    config = json.loads((folder / "original.json").read_text())
    extra = ["rope_scaling", "rope_theta", "text_config", "sliding_window_pattern",
             "no_rope_layers",
             "max_window_layers", "no_rope_layer_interval", "use_sliding_window"]  # fmt: skip
    keys = data.draw(st.lists(st.sampled_from(sorted(config) + extra), min_size=1, max_size=3))
    for key in keys:
        config[key] = data.draw(JSON)
    (folder / "config.json").write_text(json.dumps(config))
    bounded(folder)


@QUIET
@given(value=JSON)
@example(value={"eos_token_id": [2**63]})
def test_any_generation_config_or_index_loads_or_is_refused(value, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "generation"
    if not folder.exists():
        checkpoints.write("llama", folder)
    (folder / "generation_config.json").write_text(json.dumps(value))
    bounded(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    bounded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": value}))
    try:
        bounded(folder)
    finally:
        index.unlink()


def header(n_tensors: int, n_keys: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth


HOSTILE: dict[str, Callable[[], bytes]] = {
    "counts beyond the file": lambda: header(2**62, 2**62, bytes(64)),
    "a string of 2^60 bytes": lambda: header(0, 1, struct.pack("<Q", 2**60) + bytes(32)),
    "an array of 2^60 items": lambda: header(0, 1, key(b"a", 9, struct.pack("<IQ", 4, 2**60))),
    "an array of 2^60 strings": lambda: header(0, 1, key(b"a", 9, struct.pack("<IQ", 8, 2**60))),
    "arrays in arrays, deeply": lambda: header(0, 1, key(b"a", 9, nested(50_000))),
    "one key twice": lambda: header(0, 2, key(b"a", 0, b"1") * 2 + bytes(16)),
    "a name of no bytes": lambda: header(0, 1, key(b"", 0, b"1") + bytes(16)),
    "a type that is none": lambda: header(0, 1, key(b"a", 77, bytes(16))),
    "no architecture": lambda: header(0, 1, key(b"abc", 0, b"1")),
    "version 1": lambda: b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big-endian": lambda: b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "not GGUF": lambda: b"GGML" + bytes(100),
    "a megabyte of noise": lambda: b"GGUF" + random.Random(0).randbytes(1 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_gguf(name, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[name]())
    assert not bounded(path)
