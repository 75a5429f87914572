"""What a stored row depends on beside the tokens before it, as a short text."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import pronghorn

if TYPE_CHECKING:
    from pronghorn.compose import Composition
    from pronghorn.model.checkpoint import Checkpoint


def fingerprint(checkpoint: Checkpoint, methods: Composition, *more: Any) -> str:
    """Of the model (config, tensors, samples of what they hold), the methods that touch KV, this version of
    the program, and whatever else: the runner, its instruction set, the dtype of KV."""
    h = blake2b(digest_size=32)
    tensors = checkpoint.tensors
    infos = [tensors.info(name) for name in sorted(tensors)]
    touch = (methods.weight, methods.gate, methods.kvfmt, methods.kv, methods.select)
    every = [
        pronghorn.__version__, checkpoint.kind, json.dumps(checkpoint.config, sort_keys=True, default=str),
        *infos, *((type(m).__module__, m) for group in touch for m in _listed(group)), *more,
    ]  # fmt: skip
    for item in every:
        h.update(repr(item).encode() + b"\0")
    for piece in tensors.samples():
        h.update(piece)
    return h.hexdigest()


def _listed(group: Any) -> tuple[Any, ...]:
    return group if isinstance(group, tuple) else (group,)
