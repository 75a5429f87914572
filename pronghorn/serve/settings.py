"""What a server allows, plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """keys: API keys that are accepted; none: anybody may ask. open_metrics: /metrics needs no key.
    origins: web origins whose pages may ask ("*" for all). max_body: bytes of a request. Times in seconds:
    `timeout` of a whole answer, `header_timeout` and `body_timeout` of a request's arrival, `send_timeout`
    of a client that reads nothing, `schema_timeout` for a grammar to be opened."""

    keys: tuple[str, ...] = ()
    open_metrics: bool = True
    origins: tuple[str, ...] = ()
    max_body: int = 8 << 20
    timeout: float = 600.0
    header_timeout: float = 20.0
    body_timeout: float = 30.0
    send_timeout: float = 60.0
    schema_timeout: float = 1.0
    max_branches: int = 64  # answers to one request (`n`)
    max_prompts: int = 256  # prompts of one completions request, texts of one embeddings request
