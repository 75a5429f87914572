"""What a stored row depends on beside the tokens before it, as a short text; and what a model is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import pronghorn

if TYPE_CHECKING:
    from pronghorn.compose import Composition
    from pronghorn.model.checkpoint import Checkpoint


def fingerprint(checkpoint: Checkpoint, methods: Composition, *more: Any) -> str:
    """Of the model (config, tensors, samples of what they hold), the methods that touch KV, this version of
    the program, and whatever else: the runner, its instruction set, the dtype of KV."""
    touch = (methods.weight, methods.gate, methods.kvfmt, methods.kv, methods.select)
    made = ((type(m).__module__, m) for group in touch for m in _listed(group))
    return _digest(checkpoint, [pronghorn.__version__, *made, *more])


def of_model(checkpoint: Checkpoint, skips: Sequence[int]) -> str:
    """Of the model alone, and of the layers of it that do not run."""
    return _digest(checkpoint, [tuple(skips)])


def _digest(checkpoint: Checkpoint, more: Iterable[Any]) -> str:
    h = blake2b(digest_size=32)
    tensors = checkpoint.tensors
    config = json.dumps(checkpoint.config, sort_keys=True, default=str)
    for item in (checkpoint.kind, config, *(tensors.info(name) for name in sorted(tensors)), *more):
        h.update(repr(item).encode() + b"\0")
    for piece in tensors.samples():
        h.update(piece)
    return h.hexdigest()


def _listed(group: Any) -> tuple[Any, ...]:
    return group if isinstance(group, tuple) else (group,)
