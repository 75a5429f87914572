"""The native runner's threads, by themselves: built with the machine's compiler where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "pronghorn" / "ops" / "cpu"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
SANITIZERS = {"plain": [], "thread": ["-fsanitize=thread"], "address": ["-fsanitize=address,undefined"]}


@pytest.fixture(scope="module", params=SANITIZERS)
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stress test, compiled."""
    if not COMPILER:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("team") / "stress"
    command = [COMPILER, "-std=c++20", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-I", str(SOURCES)]
    command += [*SANITIZERS[request.param], str(HERE / "team_stress.cpp"), str(SOURCES / "team.cpp")]
    built = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip(f"no {request.param} sanitizer for this compiler")
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_item_runs_once_and_in_its_phase(stress: Path, threads: int):
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    ran = subprocess.run(
        [str(stress), str(threads), "600"], capture_output=True, text=True, timeout=300, env=env
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
