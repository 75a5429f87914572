"""Pronghorn: run language models fast, and tell the truth about what each speed-up costs."""

__version__ = "0.1.0"
