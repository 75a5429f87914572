"""One vocabulary for checkpoints: Hugging Face's tensor names and config fields.

Every reader hands its tensors and its config through here, so that an architecture file meets a
single spelling whatever the file's age or format:

- tensor names lose the wrappers of multimodal checkpoints and gain the prefix that bare ones lack;
- experts fused into one tensor become one tensor per expert, as the original checkpoints store
  them;
- `rope_theta`, `rope_scaling`, `layer_types`, `head_dim`, `tie_word_embeddings` are always present.

Config values come from files that nobody vouches for: each field that sizes something is checked
here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pronghorn.errors import CheckpointError, UnsupportedError

MAX_DIM = 2**31 - 1
MAX_TENSORS = 1 << 17  # the largest published mixtures of experts have under 100,000

_DIMS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "sliding_window",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
)
_FLOATS = (
    "rope_theta",
    "rope_local_base_freq",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "partial_rotary_factor",
)
_FLAGS = (
    "attention_bias",
    "mlp_bias",
    "norm_topk_prob",
    "tie_word_embeddings",
    "use_sliding_window",
)

# Values that published configs leave out because the model's own configuration class supplies them.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {"tie_word_embeddings": True},
    "gemma3_text": {
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "vocab_size": 262208,
    },
    "gpt2": {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    "mixtral": {"rope_theta": 1000000.0},
    "smollm3": {"rope_theta": 2000000.0, "tie_word_embeddings": True},
}

# Head sizes of configs without one; every other architecture divides the width by the heads.
HEAD_DIMS = {"gemma2": 256, "gemma3_text": 256, "qwen3": 128}

# Stored, but no weight of a text model: the image half of multimodal checkpoints, rotary frequencies that
# the config gives as well, and GPT-2's causal masks. Nothing else is dropped: see `checkpoint.validate`.
_DROP = re.compile(
    r"(^|\.)(vision_tower|vision_model|multi_modal_projector|vision_projector)\."
    r"|\.rotary_emb\.inv_freq$"
    r"|(^|\.)h\.\d+\.attn\.(bias|masked_bias)$"
)
_PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_BARE_GPT2 = re.compile(r"^(wte\.|wpe\.|ln_f\.|h\.\d+\.)")
_BARE = re.compile(r"^(embed_tokens\.|norm\.|layers\.\d+\.)")
_FUSED = re.compile(
    r"^(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(gate_up_proj|down_proj)(?:\.weight)?$"
)
_MIXTRAL_GATE = re.compile(r"^(model\.layers\.\d+)\.mlp\.gate\.weight$")


def canonical(name: str, model_type: str) -> str:
    """The Hugging Face name of a stored tensor, or "" for one that no text model needs."""
    if _DROP.search(name):
        return ""
    for prefix, replacement in _PREFIXES:
        if name.startswith(prefix):
            name = replacement + name[len(prefix) :]
            break
    if model_type == "gpt2":
        return "transformer." + name if _BARE_GPT2.match(name) else name
    if _BARE.match(name):
        name = "model." + name
    if model_type == "mixtral" and (match := _MIXTRAL_GATE.match(name)):
        return f"{match[1]}.block_sparse_moe.gate.weight"
    return name


def expert_name(layer: str, model_type: str, expert: int, part: str) -> str:
    """Name of one expert's matrix; `layer` is "model.layers.N", `part` is gate, up or down."""
    if model_type == "mixtral":
        letter = {"gate": "w1", "up": "w3", "down": "w2"}[part]
        return f"{layer}.block_sparse_moe.experts.{expert}.{letter}.weight"
    return f"{layer}.mlp.experts.{expert}.{part}_proj.weight"


def fused_experts(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[str, ...]] | None:
    """Layer prefix and parts ("gate", "up") or ("down",) of a tensor that stacks every expert.

    None when `name` is no such tensor. Raises CheckpointError for a shape that cannot be split.
    """
    match = _FUSED.match(name)
    if match is None:
        return None
    parts = ("gate", "up") if match[2] == "gate_up_proj" else ("down",)
    if len(shape) != 3 or 0 in shape or shape[1] % len(parts):
        raise CheckpointError(f"{name} has shape {shape}; stacked experts are (experts, rows, columns)")
    return match[1], parts


def check_count(n_tensors: int) -> None:
    """Bound what splitting stacked experts may cost: a few bytes of a file can name many."""
    if n_tensors > MAX_TENSORS:
        raise CheckpointError(f"the checkpoint splits into {n_tensors} tensors; at most {MAX_TENSORS}")


def shown(value: object) -> str:
    """`repr` of a value from a file, short enough for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def normalise_config(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A flat config with the fields named in this module's docstring, every size checked.

    `raw` is the parsed config.json (or its equivalent from another format), `where` names it in
    errors. Raises CheckpointError for a field of the wrong type or out of range, UnsupportedError
    for weights quantized in a layout that only their own library reads.
    """
    config = dict(raw)
    text = config.pop("text_config", None)
    config.pop("vision_config", None)
    if isinstance(text, dict):
        config = {**config, **text}
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(f"{where} has no model_type; it must name the architecture")
    if model_type == "gemma3":
        model_type = config["model_type"] = "gemma3_text"
    if config.get("quantization_config"):
        raise UnsupportedError(
            f"{where} says that the weights are quantized "
            f"({_method(config['quantization_config'])}); "
            "use the unquantized checkpoint, or a GGUF file"
        )
    config = {**_DEFAULTS.get(model_type, {}), **config}
    experts = config.get("num_experts", config.get("num_local_experts"))
    if experts is not None:
        config["num_experts"] = config["num_local_experts"] = experts
    _check_fields(config, where)
    _rope(config, model_type, where)
    if config.get("tie_word_embeddings") is None:
        config["tie_word_embeddings"] = False
    if model_type == "gpt2":
        _gpt2_aliases(config)
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if config.get("num_key_value_heads") is None and heads:
        config["num_key_value_heads"] = heads
    if config.get("head_dim") is None and heads and width:
        config["head_dim"] = HEAD_DIMS.get(model_type, width // heads)
    return config


def _gpt2_aliases(config: dict[str, Any]) -> None:
    """GPT-2's own field names stay, and win; the common ones are added beside them."""
    if config.get("n_inner") is None and config.get("n_embd") is not None:
        config["n_inner"] = 4 * config["n_embd"]
    for common, own in (
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ):
        config[common] = config.get(own)
    config["num_key_value_heads"] = config["num_attention_heads"]
    config["head_dim"] = None


def _method(quantization: object) -> str:
    if isinstance(quantization, dict):
        return shown(quantization.get("quant_method"))
    return shown(quantization)


def _check_fields(config: dict[str, Any], where: str) -> None:
    for key in _DIMS:
        value = config.get(key)
        if value is not None and (type(value) is not int or not 1 <= value <= MAX_DIM):
            # Some configs write 0 or -1 for "no window".
            if key == "sliding_window" and type(value) is int and value <= 0:
                config[key] = None
                continue
            raise CheckpointError(f"{where}: {key} must be a whole number above 0, not {shown(value)}")
    for key in _FLOATS:
        value = config.get(key)
        if value is None:
            continue
        if type(value) not in (int, float) or not 0 <= value < 1e300:
            raise CheckpointError(f"{where}: {key} must be a finite number, not {shown(value)}")
    for key in _FLAGS:
        if config.get(key) is not None and type(config[key]) is not bool:
            raise CheckpointError(f"{where}: {key} must be true or false, not {shown(config[key])}")
    for key, kind in (("layer_types", str), ("no_rope_layers", int)):
        value = config.get(key)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(each, kind) for each in value)
        ):
            raise CheckpointError(f"{where}: {key} must be a list, one for each layer, not {shown(value)}")


def _rope(config: dict[str, Any], model_type: str, where: str) -> None:
    """Settle rope_theta, rope_scaling and gemma3's rope_local_base_freq from either generation."""
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):  # the newer one wins
        given = config.get(key)
        if given is not None and not isinstance(given, dict):
            raise CheckpointError(f"{where}: {key} must be an object, not {shown(given)}")
        if given and ("full_attention" in given or "sliding_attention" in given):
            given = _full_attention(config, given, f"{where}: {key}")
        rope.update(given or {})
    config.pop("rope_parameters", None)
    theta = rope.pop("rope_theta", None)
    partial = rope.pop("partial_rotary_factor", None)
    if partial is not None:
        config["partial_rotary_factor"] = partial
    if theta is None:
        theta = config.get("rope_theta")
    config["rope_theta"] = 10000.0 if theta is None else theta
    kind = rope.pop("type", None)
    kind = rope.get("rope_type", kind)
    if kind is not None and not isinstance(kind, str):
        raise CheckpointError(f"{where}: rope_type must be a name, not {shown(kind)}")
    if kind in (None, "default", "mrope"):
        config["rope_scaling"] = None
    else:
        rope["rope_type"] = "longrope" if kind == "su" else kind
        if rope["rope_type"] in ("dynamic", "llama3", "longrope", "yarn"):
            whole = config.get("original_max_position_embeddings")
            if rope["rope_type"] == "longrope" and whole is not None:
                rope["original_max_position_embeddings"] = whole
            elif rope.get("original_max_position_embeddings") is None:
                rope["original_max_position_embeddings"] = (
                    whole if whole is not None else config.get("max_position_embeddings")
                )
        config["rope_scaling"] = {key: _rope_value(key, rope[key], where) for key in rope}
    for key in ("rope_theta", "rope_local_base_freq", "partial_rotary_factor"):
        value = config.get(key)
        if value is None:
            continue
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise CheckpointError(f"{where}: {key} must be a number above 0, not {shown(value)}")
        config[key] = float(value)


def _full_attention(config: dict[str, Any], given: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings of layers with full attention, out of one set for each kind of layer.

    Those of the layers with a window shrink to gemma3's rope_local_base_freq, so anything more is refused.
    """
    full, local = given.get("full_attention"), given.get("sliding_attention")
    if not isinstance(full, dict):
        raise CheckpointError(f"{where} must hold settings for full_attention, not {shown(full)}")
    if local is None or (local == full and config["model_type"] != "gemma3_text"):
        return full
    if not isinstance(local, dict):
        raise CheckpointError(f"{where} must hold settings for sliding_attention, not {shown(local)}")
    if config["model_type"] != "gemma3_text":
        raise UnsupportedError(
            f"{where} has settings of its own for sliding_attention, which Pronghorn does not implement for "
            f"{config['model_type']}"
        )
    kind = local.get("rope_type", local.get("type"))
    if kind not in (None, "default"):
        raise UnsupportedError(
            f"{where} has rope_type {shown(kind)} for sliding_attention; Pronghorn scales only the layers "
            "with full attention"
        )
    for key, value in local.items():
        if key not in ("rope_type", "type", "rope_theta") and value is not None:
            raise UnsupportedError(
                f"{where} sets {shown(key)} ({shown(value)}) for sliding_attention, which Pronghorn does not "
                "implement"
            )
    if local.get("rope_theta") is not None:
        config["rope_local_base_freq"] = local["rope_theta"]
    return full


def _rope_value(key: str, value: Any, where: str) -> Any:
    numbers = value if isinstance(value, list) else [value]
    if key == "rope_type" or value is None or isinstance(value, bool):
        return value
    if any(type(n) not in (int, float) or not math.isfinite(n) or n < 0 for n in numbers):
        raise CheckpointError(f"{where}: rope setting {shown(key)} is {shown(value)}")
    return value


def _at_least(config: Mapping[str, Any], key: str, least: int, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int or value < least:
        raise CheckpointError(
            f"config says {key} {shown(value)}; it must be a whole number of at least {least}"
        )
    return value


def fill_layers(config: dict[str, Any]) -> None:
    """Add `layer_types` (and smollm3's `no_rope_layers`) where the config leaves them to its class.

    Call it once the number of layers is known to be sane: the lists are that long.
    """
    n_layers = config.get("num_hidden_layers")
    if n_layers is None:
        return
    model_type = config["model_type"]
    window = config.get("sliding_window")
    if model_type in ("qwen2", "qwen3", "qwen3_moe", "smollm3") and not config.get(
        "use_sliding_window", False
    ):
        window = config["sliding_window"] = None
    if model_type == "smollm3" and config.get("no_rope_layers") is None:
        interval = _at_least(config, "no_rope_layer_interval", 1, 4)
        config["no_rope_layers"] = [int((i + 1) % interval != 0) for i in range(n_layers)]
    if config.get("layer_types") is None:
        sliding = [window is not None] * n_layers
        if model_type in ("qwen2", "qwen3") and window is not None:
            first = _at_least(config, "max_window_layers", 0, 28)
            sliding = [i >= first for i in range(n_layers)]
        elif model_type == "smollm3" and window is not None:
            sliding = [not has_rope for has_rope in config["no_rope_layers"]]
        elif model_type == "gemma2":
            sliding = [i % 2 == 0 for i in range(n_layers)]
        elif model_type == "gemma3_text":
            saved = _at_least(config, "_sliding_window_pattern", 1, 6)
            pattern = _at_least(config, "sliding_window_pattern", 1, saved)
            sliding = [(i + 1) % pattern != 0 for i in range(n_layers)]
        config["layer_types"] = ["sliding_attention" if s else "full_attention" for s in sliding]
    for key in ("layer_types", "no_rope_layers"):
        if config.get(key) is not None and len(config[key]) != n_layers:
            raise CheckpointError(
                f"config says num_hidden_layers {n_layers} but {key} has {len(config[key])} entries"
            )
