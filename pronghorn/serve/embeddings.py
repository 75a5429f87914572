"""/v1/embeddings."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from pronghorn.serve.body import StrictRoute
from pronghorn.serve.completions import Batch, Ids, Texts
from pronghorn.serve.context import Context
from pronghorn.serve.errors import ApiError, json_response, responses
from pronghorn.serve.fields import MOST, Body, Name, Text
from pronghorn.serve.generation import encode
from pronghorn.serve.sse import whole


class EmbeddingBody(Body):
    model: Name | None = None
    input: Text | Ids | Texts | Batch = Field(union_mode="left_to_right")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(
        None, ge=1, le=MOST, description="The first so many numbers, scaled to unit length again."
    )
    user: Name | None = None


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


def router(ctx: Context) -> APIRouter:
    made = APIRouter(tags=["embeddings"], route_class=StrictRoute)

    @made.post("/v1/embeddings", response_model=Embeddings, responses=responses(404, 408, 413, 415, 429, 504))
    async def create_embedding(request: Request, body: EmbeddingBody) -> Response:
        """The mean of the last layer's states over each text, of unit length."""
        return await whole(request, _embed(ctx, body))

    return made


async def _embed(ctx: Context, body: EmbeddingBody) -> Response:
    given: list[Any] = [body.input] if _one(body.input) else list(body.input)
    if len(given) > ctx.settings.max_prompts * 8:
        raise ApiError(400, f"{len(given)} texts, at most {ctx.settings.max_prompts * 8}", "input")
    async with ctx.model(body.model) as llm:
        ids = [await encode(llm, p) if isinstance(p, str) else p for p in given]
        empty = next((i for i, p in enumerate(ids) if not p), -1)
        if empty >= 0:
            raise ApiError(400, f"input {empty} is empty: give at least one token", "input")
        vectors = np.asarray(await llm.embed(ids), np.float32)
        if body.dimensions is not None:
            if body.dimensions > vectors.shape[1]:
                raise ApiError(
                    400,
                    f"dimensions is {body.dimensions}, and the model has {vectors.shape[1]}",
                    "dimensions",
                )
            vectors = vectors[:, : body.dimensions]
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        n = sum(map(len, ids))
        return json_response({
            "object": "list", "model": llm.name,
            "data": [
                {"object": "embedding", "index": i, "embedding": _coded(v, body.encoding_format or "float")}
                for i, v in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": n, "total_tokens": n},
        })  # fmt: skip


def _one(given: Any) -> bool:
    """One text or one list of ids."""
    return isinstance(given, str) or isinstance(given[0], int)


def _coded(vector: Any, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]
