"""What each op means, written once over the array-API namespace.

The same code runs on NumPy in float64 as the oracle, on NumPy in float32, and on PyTorch (CPU or CUDA).
Speed is not the aim here, except that no op materialises more than it must. A kernel is correct when it
agrees with this file.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from pronghorn.types import Array


class Ops:
    """The array namespace of a runner with its compute dtype.

    `Ops()` is NumPy in float64; `Ops("float32")` NumPy in float32; `Ops("float32", torch)` PyTorch, with
    `device` as PyTorch spells it.
    """

    def __init__(self, dtype: str = "float64", torch: Any = None, device: str = "cpu") -> None:
        self.torch = torch
        self.device = device
        self.xp: Any = np  # NumPy 2 follows the array-API standard itself
        if torch is not None:
            from array_api_compat import array_namespace

            self.xp = array_namespace(torch.zeros(0))
        self.name = dtype
        self.dtype = self.dtype_of(dtype)

    def dtype_of(self, name: str) -> Any:
        """The namespace's dtype called `name` (NumPy spelling, "bfloat16" and "float8_e4m3fn")."""
        if self.torch is not None:
            return getattr(self.torch, name)
        return np.dtype(getattr(ml_dtypes, name, name))

    def array(self, a: Any) -> Array:
        """A NumPy array on this namespace and device, dtype kept."""
        if self.torch is None:
            return np.asarray(a)
        a = np.ascontiguousarray(a)
        if not a.flags.writeable:
            a = a.copy()
        if a.dtype == ml_dtypes.bfloat16:
            t = self.torch.from_numpy(a.view(np.int16)).view(self.torch.bfloat16)
        else:
            t = self.torch.from_numpy(a)
        return t.to(self.device)

    def numpy(self, a: Array) -> Any:
        """Back to NumPy."""
        return np.asarray(a) if self.torch is None else a.detach().cpu().numpy()

    def cast(self, a: Array) -> Array:
        """To the compute dtype."""
        return self.to(a, self.name)

    def to(self, a: Array, dtype: str) -> Array:
        """To the named dtype, rounding to nearest even."""
        kind = self.dtype_of(dtype)
        return a if a.dtype == kind else (a.astype(kind) if self.torch is None else a.to(kind))

    def view(self, a: Array, dtype: str) -> Array:
        """The bytes of `a` read as the named dtype (last axis contiguous)."""
        return a.view(self.dtype_of(dtype))

    def bytes(self, n: int, size: int) -> Array:
        """n zeroed blocks of `size` bytes."""
        if self.torch is None:
            return np.zeros((n, size), np.uint8)
        return self.torch.zeros((n, size), dtype=self.torch.uint8, device=self.device)

    def matmul(self, x: Array, w: Array) -> Array:
        """x (n, n_in), w (n_out, n_in) -> (n, n_out)."""
        return x @ w.T


def norm(ops: Ops, x: Array, w: Array, b: Array | None, mode: str, eps: float, group: int) -> Array:
    """x (n, width) normalised over runs of `group` values; w, b (group,)."""
    xp = ops.xp
    y = xp.reshape(x, (x.shape[0], -1, group))
    if mode == "layer":
        y = y - xp.mean(y, axis=-1, keepdims=True)
    y = y / xp.sqrt(xp.mean(y * y, axis=-1, keepdims=True) + eps) * w
    if b is not None:
        y = y + b
    return xp.reshape(y, x.shape)


def activation(ops: Ops, x: Array, fn: str) -> Array:
    xp = ops.xp
    if fn == "silu":
        return x / (1 + xp.exp(-x))
    if fn == "gelu_tanh":
        return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    if fn == "gelu":
        return 0.5 * x * (1 + erf(ops, x / math.sqrt(2)))
    if fn == "relu":
        return xp.where(x > 0, x, xp.zeros_like(x))
    raise ValueError(f"no activation {fn!r}")


def erf(ops: Ops, x: Array) -> Array:
    """The error function; the array API has none, so NumPy goes through the C library's."""
    if ops.torch is not None:
        return ops.torch.erf(x)
    return np.vectorize(math.erf, otypes=[x.dtype])(x) if x.size else x


def rotate(ops: Ops, x: Array, cos: Array, sin: Array) -> Array:
    """x (n, heads, d); cos, sin (n, half): the first 2*half values of each head are rotated, value i
    against value i + half."""
    xp = ops.xp
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None, :], sin[:, None, :]
    return xp.concat([a * c - b * s, b * c + a * s, rest], axis=-1)


def scores(
    ops: Ops, q: Array, k: Array, visible: Array, scale: float, softcap: float, bias: Array = ()
) -> Array:  # fmt: skip
    """One KV head. q (n, g, d), k (m, d), visible (n, m) bool, bias (m,) or empty -> logits (n, g, m), -inf
    where a row is not visible."""
    xp = ops.xp
    s = xp.matmul(q, k.T[None]) * scale
    if softcap:
        s = softcap * xp.tanh(s / softcap)
    if len(bias):
        s = s + bias
    return xp.where(visible[:, None, :], s, xp.full_like(s, -math.inf))


def softmax(ops: Ops, s: Array) -> Array:
    """Along the last axis; 0 where all is -inf."""
    xp = ops.xp
    if s.shape[-1] == 0:
        return s
    top = xp.max(s, axis=-1, keepdims=True)
    e = xp.exp(s - xp.where(top == -math.inf, xp.zeros_like(top), top))
    total = xp.sum(e, axis=-1, keepdims=True)
    return e / xp.where(total > 0, total, xp.ones_like(total))


def attend(
    ops: Ops, q: Array, k: Array, v: Array, visible: Array, scale: float, softcap: float, bias: Array = ()
) -> tuple[Array, Array]:
    """One KV head. q (n, g, d), k, v (m, d), visible (n, m) bool, bias (m,) or empty -> out (n, g, d), lse
    (n, g); a row that sees nothing gives out 0 and lse -inf."""
    xp = ops.xp
    s = scores(ops, q, k, visible, scale, softcap, bias)
    if s.shape[-1] == 0:
        return xp.zeros_like(q), xp.full_like(q[..., 0], -math.inf)
    top = xp.max(s, axis=-1, keepdims=True)
    top = xp.where(top == -math.inf, xp.zeros_like(top), top)
    e = xp.exp(s - top)
    total = xp.sum(e, axis=-1, keepdims=True)
    safe = xp.where(total > 0, total, xp.ones_like(total))
    out = xp.matmul(e, v[None]) / safe
    lse = xp.where(total > 0, xp.log(safe) + top, xp.full_like(top, -math.inf))
    return out, lse[..., 0]


def merge(ops: Ops, parts: list[tuple[Array, Array]]) -> Array:
    """Attention partials (out (n, g, d), lse (n, g)) over disjoint keys -> attention over their union."""
    xp = ops.xp
    lse = xp.stack([p[1] for p in parts])  # (parts, n, g)
    top = xp.max(lse, axis=0)
    top = xp.where(top == -math.inf, xp.zeros_like(top), top)
    w = xp.exp(lse - top[None])
    w = w / xp.sum(w, axis=0)[None]
    out = parts[0][0] * w[0][..., None]
    for i in range(1, len(parts)):
        out = out + parts[i][0] * w[i][..., None]
    return out


def route(ops: Ops, logits: Array, top_k: int, renorm: bool) -> tuple[Array, Array]:
    """Router logits (n, n_experts) -> expert ids (n, top_k) by falling probability, ties to the lower
    id, and their weights (n, top_k)."""
    xp = ops.xp
    e = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    p = e / xp.sum(e, axis=-1, keepdims=True)
    ids = xp.argsort(-p, axis=-1, stable=True)[:, :top_k]
    w = xp.take_along_axis(p, ids, axis=-1)
    if renorm:
        w = w / xp.sum(w, axis=-1, keepdims=True)
    return ids, w
