"""The application: routers behind one guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from pronghorn import __version__
from pronghorn.serve import (
    chat,
    completions,
    embeddings,
    errors,
    messages,
    meters,
    models,
    monitor,
    page,
    responses,
    tokenize,
)
from pronghorn.serve.context import Context
from pronghorn.serve.guard import Guard
from pronghorn.serve.settings import Settings

if TYPE_CHECKING:
    from pronghorn.serve.pool import Pool

ROUTERS = (  # each a function of the context
    models.router, chat.router, completions.router, embeddings.router, tokenize.router, monitor.router,
    responses.router, messages.router,
)  # fmt: skip


def create_app(pool: Pool, settings: Settings = Settings()) -> FastAPI:  # noqa: B008  (frozen)
    """The service over these models. `app.state.ctx` is its `Context`."""
    ctx = Context(pool, settings, meters.Meters(pool))
    app = FastAPI(
        title="Pronghorn", version=__version__, docs_url=None, redoc_url=None,  # both would load from a CDN
        description="Language models on this machine, by the OpenAI API.",
        redirect_slashes=False, generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    app.state.ctx = ctx
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router(ctx))
    app.include_router(page.router())
    app.add_middleware(Guard, ctx=ctx)
    if settings.origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware, allow_origins=settings.origins, allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    document = app.openapi

    def openapi() -> dict[str, Any]:
        return _without_422(document())

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    """A mistake in a body is a 400 here, and FastAPI's own 422 never occurs."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document
