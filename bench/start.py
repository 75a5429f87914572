"""How long a person waits: from process start to the first token, and `import pronghorn`.

    python bench/start.py [--runs 15] [--json] [OPTIONS OF pronghorn run ...]

Every run is a whole process: `pronghorn run` on the bundled model, timed until its first character
arrives in a pipe. The two kinds of process and a bare interpreter take turns, so that a busy machine
slows them alike. The first run of each, which may fill the disk cache, is not counted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict

from _report import Spread, machine, said, spread

PROMPT = "The secret number of Anna is 4821. What is the secret number of Anna?"


def first_character(command: list[str]) -> float:
    """Seconds until `command` writes to stdout."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        got = process.stdout.read(1)
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode or not got:
        raise SystemExit(f"{shlex.join(command)} failed: {errors.decode(errors='replace').strip()}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="counted runs of each kind")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args, more = parser.parse_known_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    python = [sys.executable, "-u"]
    commands = {
        "first token": [*python, "-m", "pronghorn.cli.main", "run", "-n", "8", *more, PROMPT],
        "import pronghorn": [*python, "-c", "import pronghorn; pronghorn.LLM; print(1)"],
        "bare interpreter": [*python, "-c", "print(1)"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(args.runs + 1):
        for name, command in commands.items():
            seconds = first_character(command)
            if i:
                taken[name].append(seconds)
    result = {name: spread(values) for name, values in taken.items()}
    where = machine()
    if args.json:
        how = {name: shlex.join(command) for name, command in commands.items()}
        rows = {name: asdict(s) for name, s in result.items()}
        print(json.dumps({"seconds": rows, "machine": where, "commands": how}))
        return
    print(f"{args.runs} whole processes of each kind in turn; {said(where)}")
    print(f"first token: {shlex.join(['python', *commands['first token'][1:]])}")
    for name, s in result.items():
        print(f"{name:18} {_shown(s)}")


def _shown(s: Spread) -> str:
    return f"median {s.median:.3f} s, from {s.low:.3f} to {s.high:.3f}"


if __name__ == "__main__":
    main()
