"""The process that holds one engine and answers one request a line, so that it stays loaded and engines can
take turns. It runs in the engine's own environment: nothing but the standard library is imported here.

    python serve.py DRIVER.py

DRIVER.py defines `Driver`, with the methods below. Requests and answers are JSON, one a line:

    {"do": "prepare", "model": folder, "precision": "int8", "cache": folder}    convert, once
    {"do": "load", "model": folder, "use": [...], "precision": "int8", "threads": 2, "cache": folder}
    {"do": "prefill", "n": 512}                                  seconds to the first new token
    {"do": "decode", "batch": 8, "context": 128, "tokens": 16}   seconds for one step of all sequences
    {"do": "rows", "n": 8, "context": 128, "repeat": 5}          seconds for one step of n rows
    {"do": "profile", "what": {...}, ...}                        where the time goes, Pronghorn only
    {"do": "answer", "prompts": [ids, ...], ...}                 peers that speculate: bench/peers/_texts.py

An answer is {"ok": value}, {"cannot": reason} for what the engine has no way to do (`NotImplementedError`),
or {"error": text}. Whatever else the engine prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from typing import Any


def main() -> None:
    del sys.path[0]  # this folder: names of our files are not to hide those of libraries
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        driver = runpy.run_path(sys.argv[1])["Driver"]()
    except Exception as error:
        _say(out, {"error": _text(error)})
        return
    _say(out, {"ok": "ready"})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _say(out, {"ok": getattr(driver, request.pop("do"))(**request)})
        except NotImplementedError as error:
            _say(out, {"cannot": str(error) or "not offered"})
        except Exception as error:
            traceback.print_exc()
            _say(out, {"error": _text(error)})


def _say(out: Any, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


if __name__ == "__main__":
    main()
