"""How a command ends: the exit status of everything that can happen, and one line about it on stderr.

0 done   1 a check failed   2 use, input or environment   70 a bug of ours   130 Ctrl-C
141 the reader of our output went away
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from pronghorn.errors import PronghornError

USE, BUG, INTERRUPTED, CLOSED = 2, 70, 130, 141


def ending(call: Callable[[], Any]) -> int:
    """Run `call` and give the exit status. What it returns is the status, when it is a number."""
    try:
        try:
            status = call()
            sys.stdout.flush()
            return status if isinstance(status, int) else 0
        except Exception as error:
            status = _tell(error)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return CLOSED


def _tell(error: Exception) -> int:
    """Print one line about `error`; its exit status."""
    if isinstance(error, BrokenPipeError):
        raise error
    if os.environ.get("PRONGHORN_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    if isinstance(error, PronghornError):
        return _say(str(error), USE)
    if hasattr(error, "format_message"):  # a usage error of the option parser
        return _say(_usage(error), USE)
    if isinstance(error, MemoryError):
        return _say("not enough memory for this; use a smaller model or fewer tokens", USE)
    if isinstance(error, OSError):
        return _say(str(error), USE)
    return _say(f"internal error: {type(error).__name__}: {error} (PRONGHORN_DEBUG=1 shows where)", BUG)


def _usage(error: Any) -> str:
    path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "pronghorn"
    return f"{error.format_message()} (see `{path} --help`)"


def _say(text: str, status: int) -> int:
    print("pronghorn: " + printable(" ".join(text.split())), file=sys.stderr)
    return status


def printable(text: str) -> str:
    """`text` without characters that would steer a terminal, and without lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _drop_output() -> None:
    """Point stdout at nothing, so that closing it at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
