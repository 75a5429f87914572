"""The OpenAI Responses API."""

from pronghorn.serve.responses.route import router

__all__ = ["router"]
