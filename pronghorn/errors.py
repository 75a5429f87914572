"""Errors that a user can act on.

Every error raised for a user's input or environment derives from `PronghornError`. Its text names
the cause and the way out; the command line prints it on one line and exits with status 2.
"""


class PronghornError(Exception):
    """Base of all errors that name a cause and a way out."""


class CheckpointError(PronghornError):
    """A checkpoint, tokenizer or template that cannot be read, or that contradicts itself."""


class UnsupportedError(PronghornError):
    """Something well formed that Pronghorn does not implement (an architecture, a tensor type)."""


class MethodError(PronghornError):
    """An unknown method or option, or a combination of methods that cannot work."""


class RequestError(PronghornError):
    """A request that cannot be served: empty prompt, prompt past the context, bad token id."""


class QueueFullError(PronghornError):
    """As many requests wait as may: come back later."""


class UnavailableError(PronghornError):
    """A model that cannot serve now: it is being closed, it failed, or it does not fit the memory."""


class EngineError(PronghornError):
    """The engine failed at something that was no fault of the request."""
