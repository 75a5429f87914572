"""/v1/models."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from pronghorn.serve.context import Context
from pronghorn.serve.errors import ApiError, json_response, responses


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


def router(ctx: Context) -> APIRouter:
    made = APIRouter(tags=["models"])
    born = int(time.time())

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": born, "owned_by": "pronghorn"}

    @made.get("/v1/models", response_model=Models, responses=responses())
    async def list_models() -> Response:
        """Models that can be asked."""
        return json_response({"object": "list", "data": [card(n) for n in ctx.pool.names]})

    @made.get("/v1/models/{name:path}", response_model=Model, responses=responses(404))
    async def retrieve_model(name: str) -> Response:
        """One of them."""
        if name not in ctx.pool.names:
            raise ApiError(404, f"no model called {name[:80]!r}", "model", "model_not_found")
        return json_response(card(name))

    return made
