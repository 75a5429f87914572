"""The core never imports a method and never compares a method's name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pronghorn.compose import names

ROOT = Path(__file__).resolve().parents[1] / "pronghorn"
CORE = sorted(
    p for pattern in ("*.py", "kv/*.py", "model/**/*.py", "run/*.py", "ops/*.py") for p in ROOT.glob(pattern)
)
METHODS = {n for group in names().values() for n in group}


def leaks(source: str) -> list[str]:
    """What of `source` breaks the rule."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pronghorn.methods"):
            out.append(f"line {node.lineno}: imports {node.module}")
        if isinstance(node, ast.Import):
            out += [
                f"line {node.lineno}: imports {a.name}"
                for a in node.names
                if a.name.startswith("pronghorn.methods")
            ]
        compared: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            compared = [node.value]
        for side in compared:
            for leaf in ast.walk(side):
                if isinstance(leaf, ast.Constant) and leaf.value in METHODS - FORMATS:
                    out.append(f"line {leaf.lineno}: compares {leaf.value!r}")
    return out


# Names of data types are also names of methods; comparing a dtype is not comparing a method.
FORMATS = {"int8", "bf16", "fp32"}


def test_there_is_something_to_check():
    assert len(CORE) > 20
    assert len(METHODS) > 15


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_core_names_no_method(path: Path):
    assert leaks(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from pronghorn.methods.draft.prompt_lookup import PromptLookup",
        "import pronghorn.methods.kv.snapkv",
        "if name == 'snapkv': pass",
        "x = name in ('quest', 'other')",
    ],
)
def test_a_planted_leak_is_found(source: str):
    assert leaks(source)
