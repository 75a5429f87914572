"""What an operator and the page look at: /health, /metrics, the live state, receipts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from pronghorn.compose import OWN_SLOTS, SLOTS, load, names, override
from pronghorn.errors import MethodError
from pronghorn.serve.context import Context
from pronghorn.serve.errors import ApiError, json_response, responses

if TYPE_CHECKING:
    from pronghorn.serve.async_llm import AsyncLLM


class Health(BaseModel):
    status: Literal["ok", "draining"]


def router(ctx: Context) -> APIRouter:
    made = APIRouter(tags=["server"])

    @made.get("/health", response_model=Health, responses={**responses(), 503: {"model": Health}})
    async def health() -> Response:
        """200 while requests are taken, 503 while the server finishes what runs."""
        if ctx.draining:
            return json_response({"status": "draining"}, 503, {"retry-after": "5"})
        return json_response({"status": "ok"})

    @made.get(
        "/metrics",
        response_class=Response,
        responses={**responses(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Counters and histograms in Prometheus' text form."""
        return Response(ctx.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @made.get("/pronghorn/state", responses=responses(404))
    async def state(model: str = "") -> dict[str, Any]:
        """What runs, waits and is held right now."""
        async with ctx.model(model) as llm:
            return await llm.look()

    @made.get("/pronghorn/methods", responses=responses(404))
    async def methods(model: str = "") -> dict[str, Any]:
        """Methods that a request may bring of its own, with their options."""
        async with ctx.model(model) as llm:
            return {"methods": own_methods(llm)}

    @made.get("/v1/receipts/{id}", responses=responses(404))
    async def receipt(id: str) -> dict[str, Any]:  # noqa: A002  (the name in the path)
        """How an answer came about: what was drafted, dropped and approximated for it."""
        found = ctx.pool.receipt(f"req-{id[-32:]}")
        if found is None:
            raise ApiError(404, f"no receipt for {id[:80]!r}: the latest ones are kept", code="not_found")
        return found

    return made


def own_methods(llm: AsyncLLM) -> list[dict[str, Any]]:
    """Methods that this engine takes from a request, as their files describe them."""
    from pronghorn.cli.methods import describe

    out = []
    for slot in OWN_SLOTS:
        for name in names()[slot]:
            told = describe(slot, name)
            if all(not o.required for o in told.options):
                try:
                    override(llm.llm.methods, [load(slot, name)()], llm.llm.facts)
                except MethodError:
                    continue
            out.append(asdict(told) | {"several": SLOTS[slot][2]})
    return out
