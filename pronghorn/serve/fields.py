"""Fields that the bodies of several endpoints share, with the ranges that the OpenAI API gives them.

Fields that we do not know are ignored, as clients send new ones all the time. Under "pronghorn" everything
is ours, so an unknown one there is a mistake and is named.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST = 1 << 24  # tokens, ids and the like; larger numbers are mistakes
TEXT = 1 << 22  # characters of one text
Name = Annotated[str, Field(max_length=256)]
Text = Annotated[str, Field(max_length=TEXT)]


class Body(BaseModel):
    """Base of everything that a client sends."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class Extension(Body):
    """What only Pronghorn has."""

    use: list[Annotated[str, Field(max_length=1 << 18)]] = Field(
        default=[],
        max_length=16,
        description='Methods of this request, as in "token-recycling" or "top-k:k=5".',
    )
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first.")
    deadline: float = Field(
        default=0.0, ge=0, le=86400, description="Seconds until the answer is wanted, 0 for any."
    )
    trace: bool = Field(
        default=False, description="Chunks tell where each token comes from; the last has the receipt."
    )
    regex: str = Field(default="", max_length=1 << 18, description="A pattern that the answer matches.")
    ignore_eos: bool = Field(default=False, description="Go on to max_tokens.")
    truncate: bool = Field(default=False, description="Cut a prompt that is too long at its start.")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
                raise ValueError(f"no field called {str(key)[:60]!r}; {hint}")
        return data


class StreamOptions(Body):
    include_usage: bool | None = None


class JsonSchema(Body):
    name: Name = ""
    description: str | None = Field(None, max_length=TEXT)
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class AsText(Body):
    type: Literal["text"]


class AsJson(Body):
    type: Literal["json_object"]


class AsSchema(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[AsText | AsJson | AsSchema, Field(discriminator="type")]


class Part(Body):
    """A part of a content. Only text is read here."""

    kinds: ClassVar[tuple[str, ...]] = ("text", "refusal")
    type: Name
    text: Text | None = None
    refusal: Text | None = None

    @field_validator("type")
    @classmethod
    def _text(cls, kind: str) -> str:
        if kind not in cls.kinds:
            raise ValueError(f"parts of the type {kind!r} are not understood: this model reads text only")
        return kind


def words(content: str | Sequence[Part] | None) -> str:
    """The text of a content."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or part.refusal or "" for part in content)


class Sampling(Body):
    """How tokens are chosen. null stands for the default everywhere, as it does at OpenAI."""

    model: Name | None = Field(None, description="A model of /v1/models; the first one when left out.")
    temperature: float | None = Field(None, ge=0, le=100, description="Default 1; 0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MOST, description="0 or -1 for all.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=4096)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: Annotated[str, Field(max_length=4096)] | list[Annotated[str, Field(max_length=4096)]] | None = None
    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    pronghorn: Extension | None = None

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: Any) -> Any:
        if isinstance(stop, list) and len(stop) > 64:
            raise ValueError(f"{len(stop)} texts, at most 64 are looked for")
        return stop

    @property
    def extension(self) -> Extension:
        return self.pronghorn or Extension()
