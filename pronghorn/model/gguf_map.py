"""GGUF's names for tensors and settings, in both directions.

GGUF files follow llama.cpp, which changes some tensors while converting: it reorders the rows of q
and k where its rope rotates neighbouring pairs, adds 1 to Gemma's norm weights, transposes GPT-2's
matrices and stacks experts. `Place` says which of these a tensor went through; `gguf` undoes them,
`convert` applies them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.names import shown

# Hugging Face's config beside GGUF's own keys: it carries what those have no words for.
OWN_CONFIG = "pronghorn.config"

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GPT2_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_FEED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_PRE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_PLAIN = {**_PRE, **_ATTENTION, **_FEED}
_GEMMA = {
    **_PLAIN,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER: dict[str, dict[str, str]] = {
    "llama": {**_PLAIN, "ffn_gate_inp": "block_sparse_moe.gate"},
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "smollm3": _PLAIN,
    "qwen3moe": {**_PLAIN, "ffn_gate_inp": "mlp.gate"},
    "olmoe": {**_PLAIN, "ffn_gate_inp": "mlp.gate"},
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "olmo2": {
        **_ATTENTION,
        **_FEED,
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "phi3": {
        **_PRE,
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    },
    "gpt2": {
        "attn_norm": "ln_1",
        "ffn_norm": "ln_2",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
}
_ARCH = {
    "llama": "llama",
    "mistral": "llama",
    "ministral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "smollm3": "smollm3",
    "gpt2": "gpt2",
}
_PAIRED_ROPE = ("llama", "smollm3")
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

_BLOCK = re.compile(r"^blk\.(\d{1,5})\.(\w+?)(?:\.(\d{1,5}))?\.(weight|bias)$")
_STACK = re.compile(r"^ffn_(gate|up|down)_exps$")
_HF_LAYER = re.compile(r"^(?:model\.layers|transformer\.h)\.(\d+)\.(.+)\.(weight|bias)$")
_HF_EXPERT = re.compile(r"^(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)$")
_PARTS = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: its name on the other side, and what llama.cpp did to it."""

    name: str
    change: str = ""  # "" | "pairs" | "plus_one" | "transpose"
    part: str = ""  # "gate" | "up" | "down" for experts
    expert: int = -1  # -1 with a part: every expert, stacked
    layer: int = -1


def arch_of(model_type: str) -> str:
    """GGUF's name of an architecture. Raises UnsupportedError when there is none."""
    if model_type not in _ARCH:
        raise UnsupportedError(f"GGUF has no name for architecture {shown(model_type)}")
    return _ARCH[model_type]


def require_arch(arch: object) -> str:
    """`arch` if its tensors can be mapped. Raises UnsupportedError naming those that can."""
    if not isinstance(arch, str) or arch not in _LAYER:
        raise UnsupportedError(
            f"GGUF architecture {shown(arch)} is not supported; Pronghorn reads: {', '.join(_LAYER)}"
        )
    return arch


def _change(arch: str, base: str) -> str:
    if arch in _PAIRED_ROPE and base in ("attn_q", "attn_k"):
        return "pairs"
    if arch in ("gemma2", "gemma3") and base.endswith("_norm"):
        return "plus_one"
    if arch == "gpt2" and base in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
        return "transpose"
    return ""


def from_gguf(name: str, arch: str) -> Place | None:
    """Hugging Face's name of a GGUF tensor; None for one that carries no weight (rope tables).

    For experts, `Place.name` is the layer prefix ("model.layers.3"): see `names.expert_name`.
    Raises UnsupportedError for a name that this architecture does not have.
    """
    if name in ROPE_TENSORS or name.endswith(".attn_rot_embd.weight"):
        return None
    top = _GPT2_TOP if arch == "gpt2" else _TOP
    base, _, suffix = name.rpartition(".")
    if base in top and suffix in ("weight", "bias"):
        return Place(f"{top[base]}.{suffix}", _change(arch, base))
    if match := _BLOCK.match(name):
        layer, base, expert, suffix = match.groups()
        stem = "transformer.h" if arch == "gpt2" else "model.layers"
        prefix = f"{stem}.{int(layer)}"
        if (stack := _STACK.match(base)) and "ffn_gate_inp" in _LAYER[arch] and suffix == "weight":
            return Place(prefix, part=stack[1], layer=int(layer))
        if expert is not None and arch == "llama" and base in _FEED and suffix == "weight":
            return Place(prefix, part=base[4:], expert=int(expert), layer=int(layer))
        if expert is None and base in _LAYER[arch]:
            change = _change(arch, base)
            if change == "transpose" and suffix == "bias":
                change = ""
            return Place(f"{prefix}.{_LAYER[arch][base]}.{suffix}", change, layer=int(layer))
    raise UnsupportedError(f"GGUF tensor {shown(name)} is unknown for architecture {arch}")


def to_gguf(name: str, arch: str) -> Place:
    """GGUF's name of a Hugging Face tensor. Raises UnsupportedError when there is none."""
    top = _GPT2_TOP if arch == "gpt2" else _TOP
    base, _, suffix = name.rpartition(".")
    for theirs, ours in top.items():
        if base == ours:
            return Place(f"{theirs}.{suffix}", _change(arch, theirs))
    if match := _HF_LAYER.match(name):
        layer, inner, suffix = match.groups()
        if (expert := _HF_EXPERT.match(inner)) and expert[2] in _PARTS:
            part = _PARTS[expert[2]]
            return Place(f"blk.{layer}.ffn_{part}_exps.weight", "", part, int(expert[1]), int(layer))
        for theirs, ours in _LAYER[arch].items():
            if inner == ours:
                change = _change(arch, theirs)
                if change == "transpose" and suffix == "bias":
                    change = ""
                return Place(f"blk.{layer}.{theirs}.{suffix}", change, layer=int(layer))
    raise UnsupportedError(f"GGUF has no name for tensor {shown(name)} of architecture {arch}")


def config_from(
    meta: Mapping[str, Any],
    arch: str,
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, list[float]],
) -> dict[str, Any]:
    """A config.json's fields from GGUF's.

    `shapes` are the file's tensors by GGUF name, `factors` the rope tensors' values. Raises
    CheckpointError where a setting that the architecture needs is missing or of the wrong type.
    """
    if isinstance(own := meta.get(OWN_CONFIG), str):
        return _own(own, arch)
    read = _Reader(meta, arch)
    n_layers, width = read.whole("block_count"), read.whole("embedding_length")
    heads = read.whole("attention.head_count")
    if "token_embd.weight" not in shapes:
        raise CheckpointError("the GGUF file holds no token_embd.weight")
    common: dict[str, Any] = {
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    if arch == "gpt2":
        return {
            **common,
            "model_type": "gpt2",
            "n_embd": width,
            "n_layer": n_layers,
            "n_head": heads,
            "n_inner": read.whole("feed_forward_length"),
            "n_positions": read.whole("context_length"),
            "layer_norm_epsilon": read.number("attention.layer_norm_epsilon"),
            "activation_function": "gelu_new",
        }
    head_dim = read.whole("attention.key_length", max(1, width // heads))
    rotated = read.whole("rope.dimension_count", head_dim)
    config: dict[str, Any] = {
        **common,
        "model_type": {"qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}.get(arch, arch),
        "hidden_size": width,
        "intermediate_size": read.whole("feed_forward_length", 0) or None,
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": read.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": read.whole("context_length"),
        "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": read.number("rope.freq_base", 10000.0),
        "sliding_window": read.whole("attention.sliding_window", 0) or None,
        "rope_scaling": _rope_scaling(read, factors),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_down.bias" in shapes,
        "hidden_act": "silu",
    }
    if rotated != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    if original := read.whole("rope.scaling.original_context_length", 0):
        config["original_max_position_embeddings"] = original
    if arch == "llama" and (n_experts := read.whole("expert_count", 0)):
        config.update(model_type="mixtral", num_local_experts=n_experts)
        config["num_experts_per_tok"] = read.whole("expert_used_count")
    elif arch == "llama" and config["sliding_window"]:
        config["model_type"] = "mistral"
    elif arch in ("qwen3moe", "olmoe"):
        config["num_experts"] = read.whole("expert_count")
        config["num_experts_per_tok"] = read.whole("expert_used_count")
        config["norm_topk_prob"] = bool(meta.get(f"{arch}.expert_weights_norm", arch == "qwen3moe"))
        if arch == "qwen3moe":
            config["moe_intermediate_size"] = read.whole("expert_feed_forward_length")
            config["intermediate_size"] = config["intermediate_size"] or config["moe_intermediate_size"]
    elif arch in ("gemma2", "gemma3"):
        _gemma(config, read, arch)
    return config


def _gemma(config: dict[str, Any], read: _Reader, arch: str) -> None:
    """What llama.cpp knows from the size of the model rather than from the file."""
    config.pop("hidden_act")
    config["hidden_activation"] = "gelu_pytorch_tanh"
    width, heads = config["hidden_size"], config["num_attention_heads"]
    largest = config["num_hidden_layers"] == (46 if arch == "gemma2" else 62)  # the 27B models
    config["query_pre_attn_scalar"] = width // heads if largest else config["head_dim"]
    config["sliding_window"] = config["sliding_window"] or (4096 if arch == "gemma2" else None)
    if arch == "gemma2":
        config["attn_logit_softcapping"] = read.number("attn_logit_softcapping", 50.0)
        config["final_logit_softcapping"] = read.number("final_logit_softcapping", 30.0)
    else:
        config["rope_theta"] = read.number("rope.freq_base", 1000000.0)
        config["rope_local_base_freq"] = read.number("rope.freq_base_swa", 10000.0)


def _own(text: str, arch: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"GGUF key {OWN_CONFIG} is not valid JSON") from error
    if not isinstance(config, dict) or _ARCH.get(str(config.get("model_type"))) != arch:
        raise CheckpointError(f"GGUF key {OWN_CONFIG} does not describe architecture {arch}")
    return config


def _rope_scaling(read: _Reader, factors: Mapping[str, list[float]]) -> dict[str, Any] | None:
    """Rope scaling from the keys, or from per-frequency factors given as tensors.

    llama.cpp stores Llama 3's scaling only as a divisor for each frequency. "longrope" with the
    same factors for short and long text and an attention factor of 1 says exactly that.
    """
    long, short = factors.get("rope_factors_long.weight"), factors.get("rope_factors_short.weight")
    attention = read.number("rope.scaling.attn_factor", 0.0)
    if long is not None and short is not None:
        scaling: dict[str, Any] = {
            "rope_type": "longrope",
            "long_factor": long,
            "short_factor": short,
        }
        return {**scaling, "attention_factor": attention} if attention else scaling
    kind = read.text("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": read.number("rope.scaling.factor")}
        if kind == "yarn":
            for key, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
                if value := read.number(f"rope.scaling.{theirs}", 0.0):
                    scaling[key] = value
        return scaling
    if kind not in ("none", "longrope"):
        raise UnsupportedError(f"GGUF rope scaling {shown(kind)} is not supported")
    freqs = factors.get("rope_freqs.weight")
    if freqs is None or all(f == 1.0 for f in freqs):
        return None
    return {
        "rope_type": "longrope",
        "long_factor": freqs,
        "short_factor": freqs,
        "attention_factor": 1.0,
    }


class _Reader:
    """Typed look-ups of "<arch>.<key>"."""

    def __init__(self, meta: Mapping[str, Any], arch: str) -> None:
        self._meta = meta
        self._arch = arch

    def _find(self, key: str) -> Any:
        value = self._meta.get(f"{self._arch}.{key}")
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            return value[0]  # one value per layer, all alike
        return value

    def whole(self, key: str, default: int = -1) -> int:
        value = self._find(key)
        if value is None and default >= 0:
            return default
        least = 0 if default == 0 else 1
        if type(value) is not int or not least <= value < 2**31:
            raise CheckpointError(f"GGUF key {self._arch}.{key} must be a whole number, not {shown(value)}")
        return value

    def number(self, key: str, default: float = -1.0) -> float:
        value = self._find(key)
        if value is None and default >= 0:
            return default
        if type(value) not in (int, float) or not 0 <= value < 1e38:
            raise CheckpointError(f"GGUF key {self._arch}.{key} must be a number, not {shown(value)}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._find(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise CheckpointError(f"GGUF key {self._arch}.{key} must be text, not {shown(value)}")
        return value


def config_to(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """GGUF's architecture name and settings ("<arch>.<key>" -> int, float or str) for a config."""
    arch = arch_of(config["model_type"])
    wanted: dict[str, Any]
    if arch == "gpt2":
        wanted = {
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "block_count": config["n_layer"],
            "feed_forward_length": config.get("n_inner") or 4 * config["n_embd"],
            "attention.head_count": config["n_head"],
            "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        }
        return arch, {f"{arch}.{key}": value for key, value in wanted.items()}
    wanted = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": int(config["head_dim"] * config.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": config["rope_theta"],
        "rope.freq_base_swa": config.get("rope_local_base_freq"),
        "attention.sliding_window": config.get("sliding_window"),
        "expert_count": config.get("num_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_weights_norm": config.get("norm_topk_prob"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
    }
    scaling = config["rope_scaling"]
    if scaling:
        kind = scaling["rope_type"]
        if kind in ("linear", "yarn", "longrope"):
            wanted["rope.scaling.type"] = kind
            wanted["rope.scaling.factor"] = _float(scaling.get("factor"))
            wanted["rope.scaling.attn_factor"] = _float(scaling.get("attention_factor"))
        if kind in ("yarn", "longrope"):
            wanted["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return arch, {f"{arch}.{key}": value for key, value in wanted.items() if value is not None}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
