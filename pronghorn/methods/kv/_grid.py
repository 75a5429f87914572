"""Where policies act that drop rows as the text grows, and what their options may be."""

from __future__ import annotations

import math
from typing import Any

from pronghorn.errors import MethodError


def next_drop(n_prompt: int, length: int, prompt_every: int, every: int) -> int:
    """A barrier every `prompt_every` tokens inside the prompt, at its end, and every `every` tokens later."""
    if length < n_prompt:
        return min((length // prompt_every + 1) * prompt_every, n_prompt)
    return (length // every + 1) * every


def at_least(name: str, policy: Any, **least: int) -> None:
    """Raises `MethodError` where an option is below what it may be."""
    for option, low in least.items():
        if not low <= getattr(policy, option) < math.inf:
            raise MethodError(f"{name}: {option} is {low} or above, not {getattr(policy, option)}")
