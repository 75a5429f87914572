"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from pronghorn.serve.body import StrictRoute
from pronghorn.serve.chat import Message, plain_messages
from pronghorn.serve.context import Context
from pronghorn.serve.errors import json_response, responses
from pronghorn.serve.fields import MOST, TEXT, Body, Name
from pronghorn.serve.generation import context_of, encode, encode_chat, token_text

Token = Annotated[int, Field(ge=0, le=MOST)]


class TokenizeBody(Body):
    """A text, or a conversation as the model's template writes it."""

    model: Name | None = None
    prompt: Annotated[str, Field(max_length=TEXT)] | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=10_000)
    add_special_tokens: bool = Field(True, description="With the begin token, where the model has one.")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class Tokens(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeBody(Body):
    model: Name | None = None
    tokens: list[Token] = Field(max_length=1 << 20)


class Detokenized(BaseModel):
    prompt: str


def router(ctx: Context) -> APIRouter:
    made = APIRouter(tags=["tokens"], route_class=StrictRoute)
    documented = responses(404, 408, 413, 415)

    @made.post("/tokenize", response_model=Tokens, responses=documented)
    async def tokenize(body: TokenizeBody) -> Response:
        """Tokens of a text or a conversation."""
        async with ctx.model(body.model) as llm:
            if body.messages is not None:
                ids = await encode_chat(ctx, llm, plain_messages(body.messages))
            else:
                ids = await encode(llm, body.prompt or "", body.add_special_tokens)
            data: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": context_of(llm)}
            if body.return_token_strs:
                data["token_strs"] = [token_text(llm.tokenizer, t) for t in ids]
            return json_response(data)

    @made.post("/detokenize", response_model=Detokenized, responses=documented)
    async def detokenize(body: DetokenizeBody) -> Response:
        """The text of tokens."""
        async with ctx.model(body.model) as llm:
            return json_response({"prompt": llm.tokenizer.decode(body.tokens)})

    return made
