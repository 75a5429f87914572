"""Tiny random models: checkpoints written by transformers, and tapes made without it.

`SHAPES` lists the checkpoints of the parity tests: every architecture, in shapes that an implementation
could confuse (grouped, all and single KV heads, odd head sizes, tied or not, biases, windows, every
rotary scaling). `tape_model` gives a tape with weights in memory, for tests that need no transformers.
"""

from __future__ import annotations

import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
from numpy.typing import NDArray

from pronghorn.model.arch import build_tape
from pronghorn.model.tape import Tape

VOCAB = 256
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 5e5,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


def longrope(half: int) -> dict[str, Any]:
    """Longrope settings for `half` rotated pairs; texts over 256 tokens take the long factors."""
    return {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 256,
        "short_factor": [1.0 + 0.1 * i for i in range(half)],
        "long_factor": [1.5 + 0.4 * i for i in range(half)],
    }  # fmt: skip


MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

# name -> (architecture, changes to the tiny config of `checkpoints`)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("llama", {"rms_norm_eps": 1e-5}),
    "llama-mha-tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-mqa-bias": (
        "llama",
        {"num_key_value_heads": 1, "head_dim": 20, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR, "head_dim": 24}),
    "llama-dynamic": (
        "llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 128},
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN, "head_dim": 32}),
    "llama-yarn-mscale": (
        "llama",
        {
            "rope_parameters": {
                **YARN, "mscale": 0.8, "mscale_all_dim": 0.5, "beta_fast": 16.0, "truncate": False
            }
        },
    ),
    "mistral-window": ("mistral", {"sliding_window": 32}),
    "mistral-full": ("mistral", {"sliding_window": None, "num_key_value_heads": 4, "head_dim": 24}),
    "ministral-mixed": ("ministral", {"num_hidden_layers": 3, "layer_types": MIXED}),
    "ministral-mqa": ("ministral", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2-gqa": ("qwen2", {}),
    "qwen2-tied-mha": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen2-window": (
        "qwen2",
        {
            "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 32,
            "max_window_layers": 1,
        },
    ),
    "qwen3-odd": ("qwen3", {"head_dim": 20}),
    "qwen3-bias-tied": (
        "qwen3", {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "gemma2-gqa": ("gemma2", {"num_hidden_layers": 3}),
    "gemma2-nocap": (
        "gemma2",
        {
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 24,
            "num_key_value_heads": 4, "query_pre_attn_scalar": 32,
        },
    ),
    "gemma3-pattern": ("gemma3_text", {"num_hidden_layers": 3, "layer_types": MIXED}),
    "gemma3-linear": (
        "gemma3_text",
        {
            "num_hidden_layers": 3, "layer_types": MIXED, "num_key_value_heads": 1, "head_dim": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3-gqa": ("phi3", {}),
    "phi3-longrope": (
        "phi3",
        {
            "rope_parameters": longrope(6), "original_max_position_embeddings": 256,
            "max_position_embeddings": 1024,
        },
    ),
    "phi3-partial-window": (
        "phi3",
        {
            "hidden_size": 64, "num_key_value_heads": 1, "sliding_window": 40,
            "partial_rotary_factor": 0.75,
        },
    ),
    "olmo2-gqa": ("olmo2", {}),
    "olmo2-mha-bias": ("olmo2", {"num_key_value_heads": 4, "attention_bias": True}),
    "smollm3-nope": ("smollm3", {"num_hidden_layers": 4}),
    "smollm3-window": (
        "smollm3",
        {
            "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "use_sliding_window": True,
            "sliding_window": 32, "tie_word_embeddings": False, "attention_bias": True,
        },
    ),
    "gpt2-tied": ("gpt2", {}),
    "gpt2-untied-inverse": (
        "gpt2",
        {
            "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True,
            "hidden_size": 60, "num_attention_heads": 3, "activation_function": "gelu",
        },
    ),
    "mixtral-gqa": ("mixtral", {}),
    "mixtral-window": ("mixtral", {"sliding_window": 32, "num_experts_per_tok": 3, "head_dim": 20}),
    "qwen3-moe-gqa": ("qwen3_moe", {}),
    "qwen3-moe-mixed": (
        "qwen3_moe", {"num_hidden_layers": 3, "norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
    "olmoe-gqa": ("olmoe", {}),
    "olmoe-renorm": ("olmoe", {"norm_topk_prob": True, "num_key_value_heads": 4}),
}  # fmt: skip


# Shapes whose greedy text would pass a near tie with seed 1, or repeat one token.
SEEDS = {"gemma3-pattern": 4, "gemma3-linear": 3, "qwen3-moe-gqa": 2}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-models-")


@cache
def checkpoint(shape: str, dtype: str = "float32") -> Path:
    """The folder of a shape's checkpoint, stored in `dtype`, written once per process."""
    folder = Path(_folder().name) / f"{shape}-{dtype}"
    made = model(shape)
    made.to(getattr(import_module("torch"), dtype)).save_pretrained(folder)
    return folder


def model(shape: str) -> Any:
    """The transformers model of a shape, float32, seeded."""
    architecture, changes = SHAPES[shape]
    made = checkpoints.build(architecture, SEEDS.get(shape, 1), **{"vocab_size": VOCAB, **changes})
    for name, p in made.named_parameters():
        # Without these a text repeats one token, and equal texts would say little.
        if architecture == "gpt2" and ".h." in name and p.ndim == 2:
            p.data.mul_(2.0 * (p.shape[1] / p.shape[0]) ** 0.5)  # stored (n_in, n_out)
        elif architecture.startswith("gemma") and "layernorm" in name and ".post_" in name:
            p.data.add_(2.0)  # blocks outweigh the tied embedding
        elif shape == "qwen3-bias-tied" and name.endswith(("o_proj.weight", "down_proj.weight")):
            p.data.mul_(2.0)
    return made


def config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    return {
        "model_type": model_type, "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **changes,
    }  # fmt: skip


def tape_model(
    seed: int = 0, model_type: str = "llama", **changes: Any
) -> tuple[Tape, dict[str, NDArray[np.float32]]]:
    """A tape and random tensors for it (float32), without transformers. `changes` are config fields."""
    tape = build_tape(config(model_type, **changes))
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tape.expected().items():
        noise = rng.standard_normal(shape)
        value = 1 + 0.1 * noise if len(shape) == 1 else noise * 1.5 / shape[-1] ** 0.5
        tensors[name] = value.astype(np.float32)
    return tape, tensors
