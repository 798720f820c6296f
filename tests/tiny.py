"""Tiny random models of every family, saved as transformers folders with a tokenizer made on the spot."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_COMMON = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "tie_word_embeddings": True},
    "mistral": {**_COMMON, "sliding_window": 16},
    "qwen2": {**_COMMON, "tie_word_embeddings": False},
    "qwen3": {**_COMMON},
    "gemma2": {**_COMMON, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **_COMMON,
        "sliding_window": 16,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "smollm3": {**_COMMON, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "ernie4_5": {**_COMMON, "use_bias": True},
    "ministral3": {
        **_COMMON,
        "rope_parameters": {
            "type": "yarn",
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "seed_oss": {**_COMMON, "attention_out_bias": True},
    "hunyuan_v1_dense": {**_COMMON},
    "granite": {
        **_COMMON,
        "embedding_multiplier": 3.0,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "gemma": {**_COMMON},
    "exaone4": {**_COMMON, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo2": {**_COMMON},
    "cohere": {**_COMMON, "use_qk_norm": True},
    "cohere2": {**_COMMON, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "starcoder2": {**_COMMON},
    "phi3": {**_COMMON},
    "opt": {
        **{
            k: v
            for k, v in _COMMON.items()
            if k not in ("intermediate_size", "num_key_value_heads", "head_dim")
        },
        "ffn_dim": 64,
        "word_embed_proj_dim": 16,
    },
    "gpt2": {
        "vocab_size": 260,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    },
    "gpt_neox": {**_COMMON, "use_parallel_residual": True},
}

# Built like another one here: what costs time is tried on the others, what a family's row says on all.
_ALIKE = {
    "smollm3", "ernie4_5", "ministral3", "seed_oss", "hunyuan_v1_dense", "granite", "gemma", "exaone4",
    "cohere2",
}  # fmt: skip
DIFFERENT = [name for name in CONFIGS if name not in _ALIKE]


def make_model(
    folder: Path, model_type: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """Write a random model with weights large enough that predictions are not uniform."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config)
    for name, tensor in model.named_parameters():
        if tensor.ndim == 2:
            torch.nn.init.normal_(tensor, std=0.25)
        elif name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.1)
    model.to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}
    vocabulary |= {chr(code): len(vocabulary) + code - 32 for code in range(32, 127)}
    vocabulary["\n"] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def make_text(file: Path, characters: int = 12_000) -> Path:
    """A text with some structure: words of a small vocabulary in random order."""
    generator = torch.Generator().manual_seed(1)
    words = ["the", "scale", "of", "a", "group", "is", "stored", "beside", "its", "codes", "and", "zero"]
    picked = torch.randint(0, len(words), (characters // 4,), generator=generator).tolist()
    file.write_text(" ".join(words[index] for index in picked)[:characters])
    return file
