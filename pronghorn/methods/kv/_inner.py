"""The policy that another one sets budgets for."""

from __future__ import annotations

from pronghorn.compose import parse
from pronghorn.errors import MethodError
from pronghorn.slots import Scorer


def scorer(owner: str, spec: str) -> Scorer:
    """By its spec, "name:key=value,...". Raises `MethodError`."""
    if spec.partition(":")[0].strip() in ("", owner):
        raise MethodError(f"{owner}: policy names another policy, with its options, not {spec!r}")
    policy: Scorer = parse(f"kv.{spec}", files=False)[1]
    if not hasattr(policy, "score"):
        raise MethodError(f"{owner}: {spec!r} does not score rows, so nobody can set its budgets")
    return policy
