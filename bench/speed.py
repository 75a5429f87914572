"""Speed on models of real shapes against what the machine can do, one table for several shapes and formats.

    python bench/speed.py [--shape qwen2.5-0.5b ...] [--use weight.int8 ...] [--against openvino ...]

Runs `pronghorn bench speed --quick` (docs/speed.md) for each shape and format in turn and puts the medians
side by side. Random weights are written once, under the user's cache or `--dir`. `--against` and `--peers`
are handed on. "plain" stands for the checkpoint's own bfloat16. Some 40 seconds for each pair without peers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _report import machine, said, table

OURS = "pronghorn"


def measure(shape: str, use: str, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speed.json"
        command = [
            sys.executable, "-c", "from pronghorn.cli.main import main; main()", "bench", "speed", "--shape",
            shape, "--quick", "--json", str(out),
        ]  # fmt: skip
        command += [] if use == "plain" else ["--use", use]
        command += [a for only in ("prefill", "decode", "rows") for a in ("--only", only)]
        for name in ("dir", "peers"):
            command += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
        command += ["--against", ",".join(args.against)] if args.against else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return result


def name_of(cell: dict[str, Any]) -> str:
    if cell["kind"] == "decode":
        return f"decode, batch {cell['rows']}, context {cell['context']}"
    return f"prefill {cell['rows']}" if cell["kind"] == "prefill" else f"a step of {cell['rows']} rows"


def rows_of(shape: str, use: str, record: dict[str, Any]) -> list[list[str]]:
    peers = [n for n in record["loaded"] if n != OURS]
    out = []
    one = 0.0
    for result in record["results"]:
        cell, engines = result["cell"], result["engines"]
        if OURS not in engines:
            continue
        ours = engines[OURS]
        seconds, share = ours["seconds"]["median"], ours["share_of_limit"]
        if cell["kind"] == "rows":
            one = one or seconds
            speed = f"{seconds / one:.2f} x one row"
        else:
            speed = f"{ours['rate']['median']:.0f} tokens/s"
        line = [shape, use, name_of(cell), f"{seconds * 1e3:.2f}", speed]
        line += [f"{share['median']:.0%} ({share['low']:.0%} to {share['high']:.0%})"]
        for peer in peers:
            slower = engines.get(peer, {}).get("times_as_slow_as_pronghorn")
            line.append(f"{slower['median']:.2f} x" if slower else "–")
        out.append(line)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shape", action="append", help="smollm2-135m, qwen2.5-0.5b, llama-3.2-1b; repeat it"
    )
    parser.add_argument("--use", action="append", help="a weight format, or plain; repeat it")
    parser.add_argument("--against", action="append", default=[], help="a peer; repeat it")
    parser.add_argument("--dir", default="", help="where checkpoints are kept")
    parser.add_argument("--peers", default="", help="where the peers' environments are")
    args = parser.parse_args()
    lines, heads = [], ["shape", "format", "cell", "ms", "speed", "of limit"]
    read, peers = [], []
    for shape in args.shape or ["smollm2-135m", "qwen2.5-0.5b"]:
        for use in args.use or ["weight.int8", "int4", "plain"]:
            print(f"{shape} {use} ...", file=sys.stderr, flush=True)
            record = measure(shape, use, args)
            lines += rows_of(shape, use, record)
            peers = [n for n in record["loaded"] if n != OURS]
            samples = [s for r in record["results"] for x in r["samples"].values() for s in x]
            read += [s["limits"]["memory"] / 1e9 for s in samples]
    print(said(machine()))
    print(
        f"memory {sorted(read)[len(read) // 2]:.1f} ({min(read):.1f} to {max(read):.1f}) GB/s by all threads"
    )
    print()
    print(table([*heads, *(f"ours against {p}" for p in peers)], lines))


if __name__ == "__main__":
    main()
