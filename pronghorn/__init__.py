"""Pronghorn: run language models fast, and tell the truth about what each speed-up costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pronghorn.llm import LLM, Answer, Options, Piece, Stream
    from pronghorn.serve.async_llm import AsyncLLM, AsyncStream
    from pronghorn.serve.delta import Delta

__all__ = [
    "LLM", "Answer", "AsyncLLM", "AsyncStream", "Delta", "Options", "Piece", "Stream", "__version__",
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # on first use: importing the package alone stays cheap
    if name in ("LLM", "Answer", "Options", "Piece", "Stream"):
        from pronghorn import llm

        return getattr(llm, name)
    if name in ("AsyncLLM", "AsyncStream"):
        from pronghorn.serve import async_llm

        return getattr(async_llm, name)
    if name == "Delta":
        from pronghorn.serve.delta import Delta

        return Delta
    raise AttributeError(f"module 'pronghorn' has no attribute {name!r}")
