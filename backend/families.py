"""One row per architecture: where its blocks, linears, norms, head and embedding sit."""

from dataclasses import dataclass

from torch import nn

from backend.errors import UserError


@dataclass(frozen=True)
class Family:
    """The layout of one architecture, by module names below the causal language model.

    blocks      the list of decoder blocks
    linears     linears of one block in the order they are computed; those of one group share their input
    embeddings  input embedding (and learned positions), never compressed by default
    transposed  weights are stored [in, out], as GPT-2's Conv1D has them
    stored_head what checkpoints call the head
    feeds       for each group what its inputs are proportional to, channel by channel: the norm before it, or
                the linear whose outputs reach it through nothing but attention or a product; "" where no
                scale can be moved there
    final_norm  the norm before the head
    norm_offset what a norm adds to its stored weight: Gemma multiplies by one plus it
    rotates     the residual stream may be turned: RMS norms before each half of a block, and none after
    free_heads  the configuration gives a head a width of its own, so that a block may have fewer heads
    """

    name: str
    blocks: str
    linears: tuple[tuple[str, ...], ...]
    embeddings: tuple[str, ...]
    head: str = "lm_head"
    transposed: bool = False
    stored_head: str = "lm_head"
    feeds: tuple[str, ...] = ("input_layernorm", "", "post_attention_layernorm", "")
    final_norm: str = "model.norm"
    norm_offset: float = 0.0
    rotates: bool = False
    free_heads: bool = False

    @property
    def tables(self) -> tuple[str, ...]:
        """What has a row for each token or position: embeddings and head."""
        return (*self.embeddings, self.head)

    def group_names(self, block: int) -> list[list[str]]:
        """Full names of the linears of one block, group by group."""
        return [[f"{self.blocks}.{block}.{name}" for name in group] for group in self.linears]

    def place(self, layer: str) -> tuple[int, str]:
        """Block number and projection (e.g. 3, `self_attn.q_proj`) of a linear's full name."""
        number, projection = layer.removeprefix(self.blocks + ".").split(".", 1)
        return int(number), projection

    def prefixed(self, tensor: str) -> str:
        """A tensor's full name, also when the checkpoint was saved without the language model's prefix."""
        prefix = self.blocks.split(".", 1)[0] + "."
        if tensor.startswith(self.stored_head + "."):
            return self.head + tensor.removeprefix(self.stored_head)
        return tensor if tensor.startswith(prefix) else prefix + tensor


_LLAMA = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def _like_llama(name: str) -> Family:
    feeds = ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj")
    return Family(
        name, "model.layers", _LLAMA, ("model.embed_tokens",), feeds=feeds, rotates=True, free_heads=True
    )


def _like_gemma(name: str, second_norm: str) -> Family:
    feeds = ("input_layernorm", "self_attn.v_proj", second_norm, "mlp.up_proj")
    return Family(
        name, "model.layers", _LLAMA, ("model.embed_tokens",), feeds=feeds, norm_offset=1.0, free_heads=True
    )  # fmt: skip


def _without_norms_before(name: str, free_heads: bool = False) -> Family:
    """Norms stand behind each half of a block, or one serves both halves: no scale can be moved into it."""
    feeds = ("", "self_attn.v_proj", "", "mlp.up_proj")
    return Family(
        name, "model.layers", _LLAMA, ("model.embed_tokens",), feeds=feeds, free_heads=free_heads
    )  # fmt: skip


# By `model_type` of the configuration.
FAMILIES: dict[str, Family] = {
    "llama": _like_llama("Llama"),
    "mistral": _like_llama("Mistral"),
    "qwen2": _like_llama("Qwen2"),
    "qwen3": _like_llama("Qwen3"),
    "smollm3": _like_llama("SmolLM3"),
    "ernie4_5": _like_llama("ERNIE 4.5"),
    "ministral3": _like_llama("Ministral 3"),
    "seed_oss": _like_llama("Seed-OSS"),
    "hunyuan_v1_dense": _like_llama("Hunyuan"),
    # It multiplies embeddings, halves of blocks and logits by numbers, which turning and scaling pass by.
    "granite": _like_llama("Granite"),
    "gemma": _like_gemma("Gemma", "post_attention_layernorm"),
    "gemma2": _like_gemma("Gemma 2", "pre_feedforward_layernorm"),
    "gemma3_text": _like_gemma("Gemma 3", "pre_feedforward_layernorm"),
    "exaone4": _without_norms_before("EXAONE 4", free_heads=True),
    # Its norms of queries and keys span all heads.
    "olmo2": _without_norms_before("OLMo 2"),
    "cohere": _without_norms_before("Cohere"),
    "cohere2": _without_norms_before("Cohere 2"),
    "starcoder2": Family(
        "StarCoder 2",
        "model.layers",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.c_fc",),
            ("mlp.c_proj",),
        ),
        ("model.embed_tokens",),
        feeds=("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", ""),
    ),
    "phi3": Family(
        "Phi-3",
        "model.layers",
        (("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
        ("model.embed_tokens",),
        rotates=True,
        free_heads=True,
    ),
    "opt": Family(
        "OPT",
        "model.decoder.layers",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ),
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        # Its ReLU passes a positive scale on.
        feeds=("self_attn_layer_norm", "self_attn.v_proj", "final_layer_norm", "fc1"),
        final_norm="model.decoder.final_layer_norm",
    ),
    "gpt2": Family(
        "GPT-2",
        "transformer.h",
        (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        ("transformer.wte", "transformer.wpe"),
        transposed=True,
        feeds=("ln_1", "", "ln_2", ""),
        final_norm="transformer.ln_f",
    ),
    "gpt_neox": Family(
        "GPT-NeoX",
        "gpt_neox.layers",
        (
            ("attention.query_key_value",),
            ("attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
        ("gpt_neox.embed_in",),
        stored_head="embed_out",
        final_norm="gpt_neox.final_layer_norm",
    ),
}


def family_of(model_type: str, model: str) -> Family:
    """The row of an architecture; UserError names the supported ones."""
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"model {model}: architecture '{model_type}' is not supported; supported: {known}")
    return FAMILIES[model_type]


def blocks_of(model: nn.Module, family: Family) -> nn.ModuleList:
    """The decoder blocks of a loaded model."""
    blocks = model.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks
