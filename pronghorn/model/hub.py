"""Models by their name on the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from pronghorn.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
_UNWANTED = ["consolidated*", "original/*", "*/*"]


def is_name(source: str) -> bool:
    """Whether `source` reads as "org/name" (it may still not exist there)."""
    return _NAME.fullmatch(source) is not None and not source.endswith((".gguf", ".bin"))


def download(name: str) -> Path:
    """Folder of the newest snapshot of `name`, fetched if needed.

    Raises CheckpointError when it cannot be had, naming the cause and the way out.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its terms on its hub page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder or hub model called {name} (a private one needs `hf auth login`)"
        ) from error
    except Exception as error:
        # The HTTP client beneath the hub, and with it the errors, changes between its versions.
        raise CheckpointError(
            f"cannot download {name}: {_first_line(error)}. Check the connection, or download the "
            "model elsewhere and give the path of its folder"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
