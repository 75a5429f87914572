"""Bodies are read with care: UTF-8, JSON as its standard says, nested to a depth, no number that is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from pronghorn.serve.errors import ApiError

DEPTH = 64  # lists and objects inside each other, schemas of tools included


class StrictRoute(APIRoute):
    """A route whose body is checked before anything looks at it. Use it as a router's `route_class`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            data = await request.body()
            if data:
                _check_type(request.headers.get("content-type", ""))
                request._json = parse(data)
            return await handle(request)

        return strict


def _check_type(kind: str) -> None:
    """Only JSON that says so: a page of another origin can send anything else without asking first."""
    name = kind.partition(";")[0].strip().lower()
    if name != "application/json" and not (name.startswith("application/") and name.endswith("+json")):
        raise ApiError(
            415, f"content-type is {kind[:80]!r}: send application/json", code="invalid_content_type"
        )


def parse(data: bytes) -> Any:
    """The value of a JSON text. Raises `ApiError` 400."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from None
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ApiError(400, f"the body is nested more than {DEPTH} deep", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}"[:300], code="invalid_json") from None
    if _deeper(value, DEPTH):
        raise ApiError(400, f"the body is nested more than {DEPTH} deep", code="invalid_json")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested more than `most` deep; walks level by level."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return False
    return True
