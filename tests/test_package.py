"""The package as installed: version, import time, bundled models, run-time choice of ISA."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata, resources

import numpy as np
import pytest

import pronghorn
from pronghorn.ops.cpu import _native

ISAS = _native.isas()


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter with `env` added to the environment."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version_is_the_distribution_s():
    try:
        installed = metadata.version("pronghorn")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed: running from the source tree")
    assert pronghorn.__version__ == installed


def test_import_is_light_and_quick():
    heavy = ["torch", "transformers", "tokenizers", "jinja2", "huggingface_hub", "llguidance"]
    code = (
        "import sys, time; start = time.perf_counter(); import pronghorn;"
        "print(time.perf_counter() - start);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    runs = [python(code).stdout.split("\n") for _ in range(3)]
    assert all(run[1] == "[]" for run in runs), runs
    assert min(float(run[0]) for run in runs) < 0.3  # seconds; the best of three, machines are busy


@pytest.mark.parametrize("name", ["pronghorn-tiny", "pronghorn-tiny-draft"])
def test_bundled_model_is_whole(name):
    folder = resources.files(pronghorn) / "bundled" / name
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    n_header = int.from_bytes(weights[:8], "little")
    tensors = json.loads(weights[8 : 8 + n_header])
    tensors.pop("__metadata__", None)
    end = max(t["data_offsets"][1] for t in tensors.values())
    assert len(weights) == 8 + n_header + end
    embedding = tensors["model.embed_tokens.weight"]
    assert embedding["shape"] == [config["vocab_size"], config["hidden_size"]]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) <= config["vocab_size"]


def test_page_is_whole():
    folder = resources.files(pronghorn) / "serve" / "page"
    names = {f.name for f in folder.iterdir()}
    text = "".join(f.read_text() for f in folder.iterdir() if f.name != "icon.svg")
    named = {*re.findall(r'"page/([\w.]+)"', text), *re.findall(r'from "\./([\w.]+)"', text)}
    assert names == {"index.html", *named}


def test_bundled_models_say_where_they_come_from():
    text = (resources.files(pronghorn) / "bundled" / "SOURCE.md").read_text()
    for word in ("pronghorn-tiny", "pronghorn-tiny-draft", "Apache-2.0", "FairytaleQA", "sympy"):
        assert word in text


def test_baseline_always_runs_and_the_best_is_the_default():
    assert ISAS[0] == "baseline"
    run = python("from pronghorn.ops.cpu import _native; print(_native.isa())", PRONGHORN_ISA="")
    assert run.stdout.strip() == ISAS[-1], run.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_dot_on_every_instruction_set(isa):
    # Lengths around every vector width; whole numbers, so any order of additions is exact.
    code = """
import numpy as np
from pronghorn.ops.cpu import _native
rng = np.random.default_rng(0)
for n in [*range(70), 1000]:
    a, b = rng.integers(-9, 10, (2, n)).astype(np.float32)
    assert _native.dot(a, b) == a.astype(float) @ b.astype(float), n
print(_native.isa())
"""
    run = python(code, PRONGHORN_ISA=isa)
    assert run.stdout.strip() == isa, run.stderr


def test_sets_round_as_their_sources_say():
    # (1 + u)(1 - u) = 1 - u*u, which rounds to 1: fused, minus one leaves -u*u; unfused, zero. The
    # baseline of x86 has no fused multiply-add, so this tells that the override really took.
    code = """
import numpy as np
from pronghorn.ops.cpu import _native
u = np.float32(2.0**-20)
a = np.zeros(64, np.float32)
b = np.zeros(64, np.float32)
a[0], b[0] = -1, 1
a[32], b[32] = 1 + u, 1 - u
print(_native.dot(a, b))
"""
    got = {isa: float(python(code, PRONGHORN_ISA=isa).stdout) for isa in ISAS}
    fused = -(2.0**-40)
    expected = {"baseline": 0.0, "avx2": fused, "avx512": fused}
    if set(ISAS) - set(expected):
        pytest.skip("all sets of this architecture fuse")
    assert got == {isa: expected[isa] for isa in ISAS}


@pytest.mark.parametrize("isa", ["neon-9000", "AVX2 ", "sse"])
def test_unknown_instruction_set_is_a_clear_error(isa):
    code = "from pronghorn.ops.cpu import _native; _native.isa()"
    run = python(code, PRONGHORN_ISA=isa)
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"pronghorn.errors.UnsupportedError: PRONGHORN_ISA={isa}")
    assert all(name in last for name in ISAS)


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        (np.ones(3, np.float32), np.ones(4, np.float32), ValueError),
        (np.ones(3, np.float64), np.ones(3, np.float64), TypeError),
        (np.ones((3, 3), np.float32), np.ones((3, 3), np.float32), TypeError),
        (np.ones(6, np.float32)[::2], np.ones(3, np.float32), TypeError),
    ],
)
def test_dot_refuses_what_it_cannot_take(a, b, error):
    with pytest.raises(error):
        _native.dot(a, b)
