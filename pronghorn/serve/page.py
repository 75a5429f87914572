"""The page: `/` and `/page/{file}`, served from the package.

Every file is read once and named by its content (ETag), so a browser asks each time and is sent nothing that
it has. What a browser may do with the page is said in one policy: no script or style but these files, no
connection but to this server, no string made into markup.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)

HEADERS = {
    "Cache-Control": "no-cache",  # keep it, but ask whether it is still the same
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Asset:
    body: bytes
    kind: str
    tag: str  # of the ETag header

    @staticmethod
    def of(name: str, body: bytes) -> Asset:
        digest = hashlib.sha256(body).hexdigest()[:32]
        return Asset(body, TYPES[name.rpartition(".")[2]], f'"{digest}"')


def assets() -> dict[str, Asset]:
    """The page's files by name: all that will ever be served."""
    folder = files("pronghorn.serve") / "page"
    return {f.name: Asset.of(f.name, f.read_bytes()) for f in folder.iterdir() if f.is_file()}


def router() -> APIRouter:
    """Routes for `/` and `/page/{file}`; they need no key, for they hold nothing of anybody."""
    known = assets()
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    def index(request: Request) -> Response:
        return _send(known["index.html"], request)

    @routes.api_route("/page/{name}", methods=["GET", "HEAD"])
    def file(name: str, request: Request) -> Response:
        if name not in known:
            return Response("The page has no such file.\n", 404, HEADERS, "text/plain; charset=utf-8")
        return _send(known[name], request)

    return routes


def _send(asset: Asset, request: Request) -> Response:
    headers = {**HEADERS, "ETag": asset.tag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, headers=headers, media_type=asset.kind)
