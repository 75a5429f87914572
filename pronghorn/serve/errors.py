"""Errors as clients of the OpenAI API read them: {"error": {message, type, param, code}}."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from starlette.responses import Response

from pronghorn.errors import EngineError, PronghornError, QueueFullError, UnavailableError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
    413: "invalid_request_error", 415: "invalid_request_error", 429: "rate_limit_error",
    503: "unavailable_error", 504: "timeout_error",
}  # fmt: skip
LONGEST = 1000  # characters of a message


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorDetail


class ApiError(Exception):
    """A refusal with its HTTP status. retry: seconds after which asking again makes sense, 0 for never;
    the official clients obey both headers that this becomes."""

    def __init__(self, status: int, message: str, param: str = "", code: str = "", retry: int = 0) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    @property
    def headers(self) -> dict[str, str]:
        if self.retry:
            return {"retry-after": str(self.retry)}
        return {"x-should-retry": "false"} if self.status >= 408 else {}


def as_api_error(error: BaseException) -> ApiError:
    """Any exception as what the client is told; a bug of ours tells nothing of itself."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry=1)
    if isinstance(error, (UnavailableError, EngineError)):
        return ApiError(503, str(error), code="unavailable", retry=5)
    if isinstance(error, PronghornError):
        return ApiError(400, str(error))
    return ApiError(500, "internal error: the server's log has the cause", code="internal_error")


def error_data(error: ApiError, path: str = "") -> dict[str, Any]:
    """The body of an error, in the form that clients of `path` expect."""
    message = error.message if len(error.message) <= LONGEST else error.message[: LONGEST - 3] + "..."
    kind = KINDS.get(error.status, "api_error")
    if path.startswith("/v1/messages"):  # Anthropic's form
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {
        "error": {
            "message": message, "type": kind, "param": error.param or None, "code": error.code or None
        }
    }  # fmt: skip


def error_response(error: ApiError, path: str = "") -> Response:
    return json_response(error_data(error, path), error.status, error.headers)


def json_bytes(data: Any) -> bytes:
    """Compact JSON. Lone surrogates, which UTF-8 does not have, become "?"."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


def json_response(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_bytes(data), status, dict(headers or {}), "application/json")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error statuses of an endpoint for its OpenAPI document, those of every endpoint included."""
    every = {*statuses, 400, 401, 503}
    return {s: {"model": ErrorBody, "description": HTTPStatus(s).phrase} for s in sorted(every)}


def install(app: FastAPI) -> None:
    """Every error that leaves an endpoint takes this form."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def invalid(request: Request, error: Any) -> Response:
        return error_response(_validation(error.errors()), request.url.path)

    async def http(request: Request, error: Any) -> Response:
        status = error.status_code
        text = f"{request.method} {request.url.path}: {HTTPStatus(status).phrase.lower()}"
        own = ApiError(status, text, code="unknown_url" if status == 404 else "")
        response = error_response(own, request.url.path)
        response.headers.update(error.headers or {})
        return response

    async def known(request: Request, error: Any) -> Response:
        return error_response(as_api_error(error), request.url.path)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(PronghornError, known)


def _validation(errors: Sequence[Any]) -> ApiError:
    """The first mistake, named by its place in the body. Of the branches of a union the one that got
    deepest is the one that was meant."""
    deepest = max(errors, key=lambda e: len(e["loc"]))
    place = [str(p) for p in deepest["loc"] if p != "body" and not _branch(p)]
    param = ".".join(place)
    message = str(deepest["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param, "invalid_value")


def _branch(part: Any) -> bool:
    """Names of a union's branches ("list[str]", "function-after[...]"), which pydantic puts into a place."""
    return isinstance(part, str) and (
        "[" in part or part in ("str", "int", "float", "bool") or part[:1].isupper()
    )
