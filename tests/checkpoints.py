"""Small random checkpoints, written by transformers itself, for the parity and loading tests.

`write(architecture, folder, **changes)` makes a seeded model of a few thousand parameters, saves
it as `save_pretrained` does, and returns the folder. `changes` are fields of the transformers
config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# What each architecture needs beside BASE: odd head sizes, windows and experts on purpose.
FIELDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 32, "head_dim": 16},
    "ministral": {"sliding_window": 32, "head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 20},
    "gemma2": {"head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16},
    "phi3": {},
    "olmo2": {},
    "smollm3": {"num_hidden_layers": 4},
    "gpt2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 16,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}

ARCHITECTURES: tuple[str, ...] = tuple(FIELDS)


def fields(architecture: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the transformers config class."""
    out = {**BASE, **FIELDS[architecture], **changes}
    if architecture == "gpt2":
        out["n_embd"] = out.pop("hidden_size")
        out["n_layer"] = out.pop("num_hidden_layers")
        out["n_head"] = out.pop("num_attention_heads")
        out["n_inner"] = out.pop("intermediate_size")
        out["n_positions"] = out.pop("max_position_embeddings")
        out.pop("num_key_value_heads")
    return out


def build(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """The transformers model, float32, in eval mode, with every parameter drawn at random.

    Norm weights and biases are drawn too: left at ones and zeros they would hide a loader that
    drops or swaps them.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **fields(architecture, changes))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                centre = 0.0 if name.endswith("bias") or architecture.startswith("gemma") else 1.0
                parameter.copy_(centre + 0.1 * noise)
            else:
                parameter.copy_(noise * (1.5 / parameter.shape[-1] ** 0.5))
    return model


def write(
    architecture: str,
    folder: Path,
    seed: int = 0,
    dtype: str = "float32",
    shard: str = "5GB",
    **changes: Any,
) -> Path:
    """Save `build(architecture, seed, **changes)` into `folder` in `dtype`; returns `folder`."""
    import torch

    model = build(architecture, seed, **changes).to(getattr(torch, dtype))
    model.save_pretrained(folder, safe_serialization=True, max_shard_size=shard)
    return folder
