"""The Anthropic Messages API."""

from pronghorn.serve.messages.route import router

__all__ = ["router"]
