"""From a config to a tape: the architecture files and the checked reading of a config.

An architecture is the file `archs/<model_type>.py` ("-" written "_"), found by its name; its `build`
returns the tape. Configs come from files that nobody vouches for, and a value that is skipped changes
the model's output silently, so a file reads each value through `Config`: types and ranges are checked,
what Pronghorn does not implement is refused.

Both generations of Hugging Face configs are read: `rope_parameters` (flat, or one set per kind of
layer) and the older `rope_theta` with `rope_scaling`.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.names import HEAD_DIMS, shown
from pronghorn.model.rope import Rope
from pronghorn.model.tape import Tape

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20  # hidden, feed-forward and attention widths
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 30
MAX_EXPERTS = 1 << 16  # experts of all layers together

# what each kind of rotary scaling reads beside `rope_type` and `rope_theta`; every kind may also hold
# `original_max_position_embeddings` and the notes in `IGNORED`
SCALINGS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor"},
}  # fmt: skip
IGNORED = {"finetuned", "original_max_position_embeddings", "partial_rotary_factor"}
LAYER_KINDS = ("full_attention", "sliding_attention")


def architectures() -> list[str]:
    """Model types that can be built, sorted."""
    folder = Path(__file__).parent / "archs"
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def require_architecture(model_type: object) -> str:
    """Name of the file under archs/ that builds `model_type`. Raises UnsupportedError when there is none."""
    if not isinstance(model_type, str):
        raise CheckpointError(f"config has model_type {shown(model_type)}; it must name the architecture")
    known, name = architectures(), model_type.replace("-", "_")
    if name not in known:
        near = difflib.get_close_matches(name[:64], known, 1, 0.0)
        raise UnsupportedError(
            f"architecture {shown(model_type)} is not supported (nearest: {near[0]}); Pronghorn runs "
            f"{', '.join(known)}"
        )
    return name


def build_tape(config: Mapping[str, Any]) -> Tape:
    """The tape of a config.json (as read, or normalised by `names`).

    Raises UnsupportedError for an unknown `model_type` or a feature that is not implemented, and
    CheckpointError for a value of the wrong type or out of range.
    """
    name = require_architecture(config.get("model_type"))
    tape: Tape = importlib.import_module(f"pronghorn.model.archs.{name}").build(dict(config))
    return tape


class Config:
    """A config read with checks. Every method raises CheckpointError that names the key and the value.

    An absent key means its default, when one is given; null never does, except where said.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def wrong(self, key: str, need: str) -> CheckpointError:
        return CheckpointError(f"config: {key} must be {need}, not {shown(self.values.get(key))}")

    def has(self, key: str) -> bool:
        """Present and not null."""
        return self.values.get(key) is not None

    def refuse(self, *keys: str) -> None:
        """Raise UnsupportedError when one of these is switched on: it would change the output."""
        for key in keys:
            value = self.values.get(key)
            if value is not None and value is not False:
                raise UnsupportedError(
                    f"config: {key} is {shown(value)}, which Pronghorn does not implement for "
                    f"{self.values.get('model_type')}"
                )

    def count(self, key: str, *default: int, most: int = MAX_WIDTH) -> int:
        """A whole number from 1 to `most`; null means the default too."""
        value = self.values.get(key)
        if value is None and default:
            return default[0]
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(key, f"a whole number from 1 to {most}")
        return value

    def first_layer(self, key: str, default: int) -> int:
        """The number of a layer, which may lie past the last one."""
        value = self.values.get(key, default)
        if type(value) is not int or not 0 <= value <= MAX_CONTEXT:
            raise self.wrong(key, "a layer number")
        return value

    def number(self, key: str, *default: float, low: float = 1e-30, high: float = 1e30) -> float:
        """A number from `low` to `high`."""
        if key not in self.values and default:
            return default[0]
        return self.checked(key, self.values.get(key), low, high)

    def checked(self, key: str, value: Any, low: float = 1e-30, high: float = 1e30) -> float:
        if type(value) not in (int, float) or not low <= value <= high:  # NaN fails both
            raise CheckpointError(f"config: {key} must be from {low:g} to {high:g}, not {shown(value)}")
        return float(value)

    def cap(self, key: str, default: float) -> float:
        """A soft cap; 0 when it is null."""
        return 0.0 if key in self.values and not self.has(key) else self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def activation(self, key: str = "hidden_act", default: str = "silu") -> str:
        """The tape's name of an activation function. Raises UnsupportedError for an unknown one."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a name")
        if value not in ACTIVATIONS:
            raise UnsupportedError(
                f"config: {key} {shown(value)} is not implemented; known: {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[value]

    # ------------------------------------------------------------------ sizes

    @property
    def n_layers(self) -> int:
        return self.count("num_hidden_layers", most=MAX_LAYERS)

    @property
    def width(self) -> int:
        return self.count("hidden_size")

    @property
    def n_heads(self) -> int:
        return self.count("num_attention_heads")

    @property
    def n_kv(self) -> int:
        n = self.count("num_key_value_heads", self.n_heads)
        if self.n_heads % n:
            raise self.wrong("num_key_value_heads", f"a divisor of num_attention_heads {self.n_heads}")
        return n

    @property
    def head_dim(self) -> int:
        """Given, or the architecture's own, or the width divided by the heads."""
        own = HEAD_DIMS.get(str(self.values.get("model_type")), 0)
        if not self.has("head_dim") and not own and self.width % self.n_heads:
            raise self.wrong("hidden_size", f"a multiple of num_attention_heads {self.n_heads}")
        dim = self.count("head_dim", own or self.width // self.n_heads)
        if dim % 2 or dim * self.n_heads > MAX_WIDTH:
            raise self.wrong("head_dim", f"even, and at most {MAX_WIDTH} over all heads")
        return dim

    @property
    def context(self) -> int:
        return self.count("max_position_embeddings", most=MAX_CONTEXT)

    def experts(self) -> tuple[int, int]:
        """Number of experts of a layer, and how many a row uses. The number has had two names."""
        key = "num_experts" if self.has("num_experts") else "num_local_experts"
        n = self.count(key, most=MAX_EXPERTS)
        if n * self.n_layers > MAX_EXPERTS:
            raise self.wrong(key, f"at most {MAX_EXPERTS} over all layers")
        return n, self.count("num_experts_per_tok", most=n)

    # ------------------------------------------------------------------ windows

    def window(self, *default: int) -> int:
        """`sliding_window`; 0 when it is null (or written 0 or below), or absent without a default."""
        value = self.values.get("sliding_window", default[0] if default else None)
        if value is None or (type(value) is int and value <= 0):
            return 0
        if type(value) is not int or value > MAX_CONTEXT:
            raise self.wrong("sliding_window", f"null or a whole number up to {MAX_CONTEXT}")
        return value

    def layer_windows(self, window: int, sliding: list[bool]) -> list[int]:
        """Window of each layer: `layer_types` when the config has it, else `sliding`."""
        kinds = self.values.get("layer_types")
        if kinds is None:
            return [window if s else 0 for s in sliding]
        n = self.n_layers
        if not isinstance(kinds, list) or len(kinds) != n:
            raise self.wrong("layer_types", f"a list of {n} names")
        for kind in kinds:
            if kind not in LAYER_KINDS:
                raise UnsupportedError(f"config: layer_types has {shown(kind)}; known: {LAYER_KINDS}")
        if not window and "sliding_attention" in kinds:
            raise self.wrong("sliding_window", "a number, since layer_types has sliding_attention")
        return [window if kind == "sliding_attention" else 0 for kind in kinds]

    # ------------------------------------------------------------------ rotary settings

    def rope(self, theta: float = 10000.0, kind: str = "full_attention", partial: bool = False) -> Rope:
        """The rotary table of layers of `kind`.

        theta: the default base. partial: whether the model honours `partial_rotary_factor`; one that
        does not refuses it.
        """
        given = self._rope_settings(kind)
        share = given.get("partial_rotary_factor", self.values.get("partial_rotary_factor"))
        share = 1.0 if share is None else self.checked("partial_rotary_factor", share, 0.01, 1.0)
        if share != 1.0 and not partial:
            raise UnsupportedError(
                f"config: partial_rotary_factor is {share:g}, but {self.values.get('model_type')} models "
                "rotate whole heads"
            )
        dim = int(self.head_dim * share)
        if dim < 2 or dim % 2:
            raise CheckpointError(
                f"config: partial_rotary_factor {share} of head_dim {self.head_dim} gives {dim} rotated "
                "values; it must be even"
            )
        base = given.get("rope_theta")
        base = self.values.get("rope_theta", theta) if base is None else base
        return self._scaled(dim, self.checked("rope_theta", base, 1.001, 1e15), given)

    def _rope_settings(self, kind: str) -> dict[str, Any]:
        """The settings as one flat dict, whichever generation wrote them."""
        out: dict[str, Any] = {}
        for key in ("rope_scaling", "rope_parameters"):  # the newer one wins
            value = self.values.get(key)
            if value is None:
                continue
            if not isinstance(value, dict):
                raise self.wrong(key, "an object")
            if any(k in value for k in LAYER_KINDS):
                value = value.get(kind)
                if not isinstance(value, dict):
                    raise self.wrong(key, f"settings for {kind}")
            out.update(value)
        return out

    def _scaled(self, dim: int, theta: float, given: dict[str, Any]) -> Rope:
        kind = given.get("rope_type", given.get("type")) or "default"
        kind = {"su": "longrope", "mrope": "default"}.get(str(kind), kind)
        if not isinstance(kind, str) or kind not in SCALINGS:
            raise UnsupportedError(
                f"config: rope_type {shown(kind)} is not implemented; known: {', '.join(SCALINGS)}"
            )
        extra = {"rope_type", "type", "rope_theta", "mrope_section"} | IGNORED | SCALINGS[kind]
        for key, value in given.items():
            if key not in extra and value is not None:
                raise UnsupportedError(
                    f"config: rope setting {shown(key)} ({shown(value)}) is not implemented for {kind}"
                )
        if kind == "default":
            return Rope(dim, theta)
        if kind == "dynamic":
            if dim < 4:
                raise self.wrong("head_dim", "at least 4 for dynamic rope")
            return Rope(dim, theta, kind, self._of(given, "factor"), self.context)
        if kind == "linear":
            return Rope(dim, theta, kind, self._of(given, "factor"))
        original = self._original(given)
        if kind == "llama3":
            low, high = self._of(given, "low_freq_factor"), self._of(given, "high_freq_factor")
            if high <= low:
                raise CheckpointError(
                    f"config: high_freq_factor {high:g} must exceed low_freq_factor {low:g}"
                )
            return Rope(dim, theta, kind, self._of(given, "factor"), original, low, high)
        ratio = self.context / original
        factor = ratio if given.get("factor") is None else self._of(given, "factor")
        if kind == "yarn":
            truncate = given.get("truncate", True)
            if type(truncate) is not bool:
                raise CheckpointError(f"config: truncate must be true or false, not {shown(truncate)}")
            slow, fast = self._of(given, "beta_slow", 1.0), self._of(given, "beta_fast", 32.0)
            gain = self._yarn_gain(given, factor)
            return Rope(dim, theta, kind, factor, original, slow, fast, gain, truncate=truncate)
        gain = 1.0
        if given.get("attention_factor") is not None:
            gain = self._of(given, "attention_factor")
        elif factor > 1.0:
            gain = math.sqrt(1 + math.log(factor) / math.log(original))
        short, long = (self._factors(given, k, dim // 2) for k in ("short_factor", "long_factor"))
        return Rope(dim, theta, kind, factor, original, gain=gain, short=short, long=long)

    def _of(self, given: dict[str, Any], key: str, *default: float) -> float:
        value = given.get(key)
        return default[0] if value is None and default else self.checked(key, value, 1e-6, 1e6)

    def _original(self, given: dict[str, Any]) -> int:
        """Context before scaling. Phi-3 writes it beside the rotary settings; that one wins."""
        key = "original_max_position_embeddings"
        value = self.values.get(key)
        value = given.get(key) if value is None else value
        value = self.context if value is None else value
        if type(value) is not int or not 2 <= value <= MAX_CONTEXT:
            raise CheckpointError(f"config: {key} must be a whole number above 1, not {shown(value)}")
        return value

    def _yarn_gain(self, given: dict[str, Any], factor: float) -> float:
        if given.get("attention_factor") is not None:
            return self._of(given, "attention_factor")

        def scale(m: float) -> float:
            return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

        if given.get("mscale") and given.get("mscale_all_dim"):
            return scale(self._of(given, "mscale")) / scale(self._of(given, "mscale_all_dim"))
        return scale(1.0)

    def _factors(self, given: dict[str, Any], key: str, n: int) -> tuple[float, ...]:
        value = given.get(key)
        if not isinstance(value, list) or len(value) != n:
            raise CheckpointError(f"config: {key} must be a list of {n} numbers, not {shown(value)}")
        return tuple(self.checked(key, v, 1e-6, 1e6) for v in value)
