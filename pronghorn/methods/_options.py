"""What options of methods may be."""

from __future__ import annotations

import math
from typing import Any

from pronghorn.errors import MethodError


def at_least(name: str, method: Any, **least: int) -> None:
    """Raises `MethodError` where an option is below what it may be."""
    for option, low in least.items():
        if not low <= getattr(method, option) < math.inf:
            raise MethodError(f"{name}: {option} is {low} or above, not {getattr(method, option)}")
