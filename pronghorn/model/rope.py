"""Rotary position embedding: inverse frequencies and their context-length scalings.

Halves are rotated against each other (the Hugging Face convention): the pair is (i, i + dim/2).
Sources: RoPE (Su et al., 2021, arXiv 2104.09864); linear interpolation (Chen et al., 2306.15595);
dynamic NTK and YaRN (Peng et al., 2309.00071); LongRoPE (Ding et al., 2402.13753); Llama 3's
wavelength blend as its release computes it. Frequencies are computed in float32 where the reference
implementation does so, because at long positions their last bit shows in the logits.

Dynamic and long scalings depend on the context length. A key is rotated once, when it is written, with
the length `span = max(prompt length, pos + 1)`: the same result as running the whole prompt in one
step, whatever the chunk size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """dim: rotated values per head (even); the rest of the head passes unrotated."""

    dim: int
    theta: float
    kind: str = "default"  # default | linear | dynamic | yarn | llama3 | longrope
    factor: float = 1.0
    original: int = 0  # context before scaling
    low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast
    gain: float = 1.0  # factor on cos and sin (yarn, longrope)
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    truncate: bool = True  # yarn: round the correction range to whole dimensions

    def __post_init__(self) -> None:
        if self.kind == "dynamic" and self.dim <= 2:
            raise CheckpointError("dynamic rotary scaling needs more than two rotated values per head")

    @property
    def varies(self) -> bool:
        """Whether the frequencies depend on the context length."""
        return self.kind in ("dynamic", "longrope")

    def inv_freq(self, span: int) -> Floats:
        """Inverse frequencies (dim/2,) float32 for a context of `span` tokens."""
        theta = self.theta
        if self.kind == "dynamic" and span > self.original:
            grow = self.factor * span / self.original - (self.factor - 1)
            theta = theta * grow ** (self.dim / (self.dim - 2))
        exponent = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        # NumPy's float32 power is off by a last bit in a fifth of its values, which costs 1e-4 of a logit
        # after 300 positions; rounded from float64 it agrees with PyTorch's
        steps = np.power(np.float64(np.float32(theta)), exponent.astype(np.float64)).astype(np.float32)
        freq: Floats = (np.float32(1.0) / steps).astype(np.float32)
        if self.kind == "linear":
            freq = (freq / np.float32(self.factor)).astype(np.float32)
        if self.kind == "llama3":
            return self._llama3(freq)
        if self.kind == "yarn":
            return self._yarn(freq, steps)
        if self.kind == "longrope":
            ext = np.asarray(self.long if span > self.original else self.short, np.float32)
            freq = (np.float32(1.0) / (ext * steps)).astype(np.float32)
        return freq

    def _llama3(self, freq: Floats) -> Floats:
        wavelength = 2 * math.pi / freq
        smooth = (self.original / wavelength - self.low) / (self.high - self.low)
        blend = (1 - smooth) * freq / self.factor + smooth * freq
        out = np.where(wavelength > self.original / self.low, freq / self.factor, blend)
        out = np.where(wavelength < self.original / self.high, freq, out)
        return np.asarray(out, np.float32)

    def _yarn(self, freq: Floats, steps: Floats) -> Floats:
        def dimension(rotations: float) -> float:
            turns = math.log(self.original / (rotations * 2 * math.pi))
            return self.dim * turns / (2 * math.log(self.theta))

        start, stop = dimension(self.high), dimension(self.low)
        if self.truncate:
            start, stop = math.floor(start), math.ceil(stop)
        start, stop = max(start, 0), min(stop, self.dim - 1)
        if start == stop:
            stop += 0.001  # the reference keeps the ramp finite
        ramp = np.clip((np.arange(self.dim // 2, dtype=np.float32) - start) / (stop - start), 0, 1)
        slowed = np.float32(1.0) / (np.float32(self.factor) * steps)
        return np.asarray(slowed * ramp + freq * (1 - ramp), np.float32)
