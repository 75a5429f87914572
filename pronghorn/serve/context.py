"""What the routers of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pronghorn.serve.errors import ApiError
from pronghorn.serve.grammars import Grammars
from pronghorn.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request

    from pronghorn.serve.async_llm import AsyncLLM
    from pronghorn.serve.meters import Meters
    from pronghorn.serve.pool import Pool


@dataclass
class Context:
    """pool: the models. meters: what /metrics shows. draining: no new requests.
    active: requests under way."""

    pool: Pool
    settings: Settings
    meters: Meters
    draining: bool = False
    active: int = 0
    grammars: Grammars = field(init=False)
    rendering: asyncio.Lock = field(default_factory=asyncio.Lock)  # a chat template renders one at a time

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.settings.schema_timeout)

    @asynccontextmanager
    async def model(self, name: str | None) -> AsyncIterator[AsyncLLM]:
        """The model of this name, the first one without a name; loaded if need be, and kept for as long as
        the block runs. Raises `ApiError` 404."""
        name = name or self.pool.names[0]
        if name not in self.pool.names:
            known = ", ".join(self.pool.names)
            raise ApiError(404, f"no model called {name[:80]!r}; here: {known}", "model", "model_not_found")
        async with await self.pool.get(name) as llm:
            yield llm


def user_of(request: Request, name: str) -> str:
    """Whose share of the server a request counts to: the key's, and within it the user that the request
    names; without keys the user, or the address. Nobody can take another key's share by a name."""
    key: str = request.scope.get("state", {}).get("key", "")
    host = request.client.host if request.client else ""
    return f"{key}/{name}" if key else name or host
