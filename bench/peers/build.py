"""Build the environment of a peer, with pinned versions, for `pronghorn bench speed --against`
and `pronghorn bench speculate --against`.

    python bench/peers/build.py llama.cpp openvino
    python bench/peers/build.py --dir /somewhere --list

An environment takes 0.2 to 3.5 GB and one to five minutes; llama.cpp is compiled here, for this processor.
What each is made of is in NAME.txt beside this script. It needs Python 3.10 to 3.13 with pip.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WITHOUT = "# without:"


def known() -> list[str]:
    return sorted(p.stem for p in HERE.glob("*.txt"))


def default() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pronghorn" / "peers"


def build(name: str, folder: Path, python: str) -> None:
    """Make folder/name, or bring it up to date. An environment that was begun and failed is removed."""
    place = folder / name
    done = place / "pins.txt"
    pins = (HERE / f"{name}.txt").read_text(encoding="utf-8")
    if done.exists() and done.read_text(encoding="utf-8") == pins:
        print(f"{name} is there: {place}")
        return
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = subprocess.run([python, "-m", "venv", str(place)], check=False)
        if made.returncode:  # a Python without ensurepip: its own pip fills in
            subprocess.run([python, "-m", "venv", "--clear", "--without-pip", str(place)], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--python", str(place / "bin" / "python")]
        subprocess.run([*pip, "install", "-r", str(HERE / f"{name}.txt")], check=True)
        for line in pins.splitlines():
            if line.startswith(WITHOUT):  # a requirement of theirs that does harm here
                subprocess.run([*pip, "uninstall", "-y", line.removeprefix(WITHOUT).strip()], check=True)
        done.write_text(pins, encoding="utf-8")
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    print(f"{name} is built: {place}")


def tried(name: str, folder: Path, python: str) -> bool:
    """`build`, and whether it went well: one peer that cannot be had does not keep the others away."""
    try:
        build(name, folder, python)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"{name} could not be built: {error}", file=sys.stderr)
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known()))
    parser.add_argument("--dir", type=Path, default=default(), help="default: %(default)s")
    parser.add_argument("--python", default=sys.executable, help="Python of the environments")
    parser.add_argument("--list", action="store_true", help="say which are built")
    args = parser.parse_args()
    wrong = [n for n in args.names if n not in known()]
    if wrong:
        parser.error(f"no peer called {wrong[0]!r}; known: {', '.join(known())}")
    if args.list or not args.names:
        for name in known():
            print(f"{name:14} {'built' if (args.dir / name / 'pins.txt').exists() else 'not built'}")
        return 0
    went_well = [tried(name, args.dir, args.python) for name in args.names]
    return 0 if all(went_well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
