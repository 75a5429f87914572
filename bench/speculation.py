"""Measures what drafting gains and writes the tables of docs/speculation.md.

    python bench/speculation.py [--only NAME ...] [--again] [--data FOLDER]

Runs `pronghorn bench speculate` as RUNS says. Every run leaves a record in a folder (--to), and one whose
record is there is not run again unless `--again` says so: what was interrupted goes on with what is missing.
Tables of runs without a record stay as they are.
Peers must be there: `python bench/peers/build.py openvino transformers`, and llama-server as
bench/serve/servers.py says. WIDE stands for the bundled model at the cost of SmolLM2-135M's layers, a folder
that `bench/widen.py` writes. A run in which a lossless drafter changed a token, or that was cut short, leaves
no record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from _report import into
from widen import widen

from pronghorn.bench.gains import record_of
from pronghorn.bench.gains_report import pages
from pronghorn.bench.shapes import cache

PAGE = Path(__file__).resolve().parents[1] / "docs" / "speculation.md"
PEERS = "openvino,llama-server,transformers"
BUNDLED = PAGE.parents[1] / "pronghorn" / "bundled" / "pronghorn-tiny"
WIDE = cache() / "pronghorn-tiny-wide"
ONE = ("--batch", "1", "--temperature", "0")
RUNS: dict[str, tuple[str, ...]] = {
    "tiny": ("pronghorn-tiny", "--batch", "1", "--prompts", "8", "--rounds", "3"),
    "tiny-batches": (
        "pronghorn-tiny", "--batch", "1", "--batch", "4", "--batch", "16", "--prompts", "16", "--rounds", "2",
        "--draft", "auto", "--draft", "prompt-lookup",
    ),
    "wide": (
        "WIDE", "--batch", "1", "--prompts", "6", "--rounds", "2", "--tokens", "64",
        "--draft", "auto", "--draft", "aggressive", "--draft", "copyspec", "--draft", "prompt-lookup",
        "--draft", "suffix", "--draft", "token-recycling",
        "--draft", "draft-model:model=pronghorn-tiny-draft",
    ),
    "wide-batches": (
        "WIDE", "--batch", "4", "--batch", "16", "--prompts", "16", "--rounds", "2", "--tokens", "48",
        "--draft", "auto", "--draft", "prompt-lookup", "--category", "copying", "--category", "code",
        "--category", "json", "--category", "free-text", "--category", "mt-bench", "--category", "rag",
    ),
    "tiny-peers": (
        "pronghorn-tiny", *ONE, "--prompts", "4", "--draft", "auto", "--against", PEERS, "--draft-model",
        "pronghorn-tiny-draft",
    ),
    "smollm2-peers": (
        "--shape", "smollm2-135m", "--use", "int8", *ONE, "--prompts", "4", "--rounds", "3", "--tokens", "64",
        "--draft", "auto", "--category", "copying", "--category", "code", "--category", "free-text",
        "--against", "openvino,llama-server",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], choices=sorted(RUNS), help="repeat it")
    parser.add_argument("--again", action="store_true", help="also what has a record")
    parser.add_argument("--data", default="", help="folder of the data; else ../shared/data")
    parser.add_argument("--to", type=Path, default=cache() / "speculate", help="folder of the records")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    made: dict[str, str] = {}
    for name, options in RUNS.items():
        file = args.to / f"{name}.json"
        if (args.again or not file.exists()) and (not args.only or name in args.only):
            if "WIDE" in options:
                widen(BUNDLED, WIDE, times=3, layers=30)
            real = [str(WIDE) if x == "WIDE" else x for x in options]
            measure([*real, *(["--data", args.data] if args.data else [])], file)
        if file.exists():
            record = record_of(json.loads(file.read_text(encoding="utf-8")))
            shown = f"`pronghorn bench speculate {' '.join(options)}`"
            made |= {
                f"{kind} {name}": f"\n{shown}\n\n{text}\n".replace(str(WIDE), "WIDE")
                for kind, text in pages(record).items()
            }
    into(PAGE, made)


def measure(options: list[str], file: Path) -> None:
    part = file.with_suffix(".part")
    command = [
        sys.executable,
        "-m",
        "pronghorn.cli.main",
        "bench",
        "speculate",
        *options,
        "--json",
        str(part),
    ]
    root = str(PAGE.parents[1])
    print(" ".join(command[2:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, check=False)
    if done.returncode:
        part.unlink(missing_ok=True)
        raise SystemExit(f"it ended with status {done.returncode}: no record is kept")
    os.replace(part, file)


if __name__ == "__main__":
    main()
