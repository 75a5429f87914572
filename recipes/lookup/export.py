"""Writes a trained look-up model as a Hugging Face folder, weights in bfloat16.

python -m recipes.lookup.export RUN tests/models/lookup
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from pronghorn.bench.lookups import BEGIN, END, VOCABULARY
from recipes.lookup.train import Model, Shape

SPACE = "▁"  # SentencePiece's mark of a space before a word


def tensors(model: Model) -> dict[str, Tensor]:
    """The weights under their names in Hugging Face's Llama."""
    s = model.s
    out = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}."
        q, k, v = layer.qkv.weight.split([s.heads * s.head, s.kv_heads * s.head, s.kv_heads * s.head])
        gate, up = layer.up.weight.chunk(2)
        out |= {
            f"{at}self_attn.q_proj.weight": q,
            f"{at}self_attn.k_proj.weight": k,
            f"{at}self_attn.v_proj.weight": v,
            f"{at}self_attn.o_proj.weight": layer.out.weight,
            f"{at}mlp.gate_proj.weight": gate,
            f"{at}mlp.up_proj.weight": up,
            f"{at}mlp.down_proj.weight": layer.down.weight,
            f"{at}input_layernorm.weight": layer.attention_norm.weight,
            f"{at}post_attention_layernorm.weight": layer.ffn_norm.weight,
        }
    return {name: t.detach().to(torch.bfloat16).contiguous() for name, t in out.items()}


def config(s: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": s.width,
        "intermediate_size": s.ffn,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": s.context,
        "rope_theta": s.base,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "torch_dtype": "bfloat16",
    }


def tokenizer() -> Tokenizer:
    """Words between spaces; a text begins with the begin token."""
    marked = {w if w.startswith("<|") else SPACE + w: i for i, w in enumerate(VOCABULARY)}
    out = Tokenizer(models.WordLevel(marked, unk_token="<|unk|>"))
    out.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    out.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    out.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", BEGIN)])
    out.add_special_tokens([AddedToken(w, special=True) for w in VOCABULARY if w.startswith("<|")])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    state = torch.load(args.run / "last.pt", weights_only=True)
    model = Model(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(model), args.folder / "model.safetensors", {"format": "pt"})
    tokenizer().save(str(args.folder / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "unk_token": "<|unk|>",
        "model_max_length": model.s.context,
        "clean_up_tokenization_spaces": False,
    }
    for name, value in (("config.json", config(model.s)), ("tokenizer_config.json", named)):
        (args.folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    n = sum(p.numel() for p in model.parameters())
    print(f"{args.folder}: {n:,} parameters after {state['step']} steps, {state['seconds'] / 60:.0f} minutes")


if __name__ == "__main__":
    main()
