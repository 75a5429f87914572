"""Shared fixtures: where the read-only test material lies, and a skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_root() -> Path:
    """Folder of third-party test data and models; it is never part of the repository."""
    return Path(os.environ.get("PRONGHORN_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared():
    """`shared("models/stories260K")` gives the path, or skips the test with a reason."""

    def find(relative: str) -> Path:
        path = shared_root() / relative
        if not path.exists():
            pytest.skip(f"test material {relative!r} is not here (set PRONGHORN_SHARED)")
        return path

    return find
