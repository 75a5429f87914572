"""The core stays small. The budgets are stated here; raising one needs a reason in docs/design.md."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "pronghorn"

BUDGET = 7925  # lines of the core, docstrings included
LARGEST = 600  # lines of its largest file
METHOD = 220  # lines of a method's file
ARCH = 80  # lines of an architecture's file

CORE = [
    "types.py", "slots.py", "nulls.py", "drafting.py", "companion.py", "beside.py", "opening.py",
    "compose.py", "engine.py", "seq.py", "target.py", "text.py", "rng.py", "errors.py", "kv/arena.py",
    "kv/layout.py", "kv/look.py", "kv/paged.py", "kv/slabs.py", "kv/store.py", "kv/view.py", "kv/radix.py",
    "kv/image.py", "kv/disk.py", "kv/tiers.py", "fingerprint.py", "memory.py", "cost.py", "model/tape.py",
    "model/bind.py", "model/rope.py", "run/base.py", "run/ref.py", "ops/ref.py",
]  # fmt: skip


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_core_is_within_its_budget():
    total = sum(lines(ROOT / name) for name in CORE)
    assert total <= BUDGET, f"the core has {total} lines, {total - BUDGET} too many"


@pytest.mark.parametrize("name", CORE)
def test_no_core_file_is_large(name: str):
    assert lines(ROOT / name) <= LARGEST


def test_every_file_of_the_core_is_counted():
    found = {
        str(p.relative_to(ROOT))
        for pattern in ("*.py", "kv/*.py", "run/*.py", "ops/*.py")
        for p in ROOT.glob(pattern)
        if p.stem != "__init__"
    }
    outside = {"llm.py", "__main__.py", "run/native.py", "ops/codes.py", "ops/panels.py", "ops/values.py"}
    assert found - set(CORE) <= outside, "a new core file has no budget"


@pytest.mark.parametrize("path", sorted(ROOT.glob("methods/*/*.py")), ids=lambda p: p.stem)
def test_a_method_is_a_small_file(path: Path):
    assert lines(path) <= METHOD


@pytest.mark.parametrize("path", sorted(ROOT.glob("model/archs/[!_]*.py")), ids=lambda p: p.stem)
def test_an_architecture_is_a_small_file(path: Path):
    assert lines(path) <= ARCH
