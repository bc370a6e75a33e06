"""Families of models in GGUF's words: which llama.cpp computes as transformers does, their tensors' names and order.

The names are those of gguf's own maps. What differs between families is in ``FAMILIES``, a line each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
"""Modules outside the blocks, in a file's order."""

DECODER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Modules of a Llama's block, in a file's order."""

FUSED = (
    "input_layernorm",
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_up_proj",
    "mlp.down_proj",
)

HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
OUTER_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")

BIASED = {
    "qkv_bias": DECODER[1:4],
    "attention_bias": DECODER[1:5],
    "mlp_bias": DECODER[6:],
}
"""Setting -> modules that have a bias with it; ``qkv_bias`` is set by a family itself."""


@dataclass(frozen=True)
class Family:
    """How llama.cpp has a family.

    ``architecture``: gguf's name; ``modules``: of a block; ``biases``: settings of config.json that it may have;
    ``always_biased``: the modules of ``qkv_bias`` have one; ``rotary_pairs``: the rows of queries and keys lie as
    pairs; ``norm_offset``: what a file's norm weights have on top of transformers'; ``activation``: the only one of its
    layers; ``ropes``: types of rotary embeddings; ``partial_rotary``: heads may be rotated in part;
    ``window_period``: the last of so many blocks sees all, the others a window; None: all blocks see all;
    ``capped``: logits and attention are always capped; ``deepest``: number of blocks of the size whose queries are
    scaled by hidden_size over heads, not by head_dim; ``tied``: the head is always the embedding;
    ``multipliers``: settings that scale, by the file's key.
    """

    architecture: str
    modules: tuple[str, ...] = DECODER
    biases: tuple[str, ...] = ()
    always_biased: bool = False
    rotary_pairs: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    partial_rotary: bool = False
    window_period: int | None = None
    capped: bool = False
    deepest: int | None = None
    tied: bool = False
    multipliers: Mapping[str, str] | None = None


LLAMA = Family(
    "llama",
    biases=("attention_bias", "mlp_bias"),
    rotary_pairs=True,
    ropes=("default", "linear", "yarn", "llama3"),
)

FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Family("qwen2", always_biased=True),
    "qwen3": Family("qwen3", (*DECODER, *HEAD_NORMS)),
    "gemma": Family("gemma", norm_offset=1.0, activation="gelu_pytorch_tanh", ropes=("default",), tied=True),
    "gemma2": Family(
        "gemma2",
        (*DECODER, *OUTER_NORMS),
        norm_offset=1.0,
        activation="gelu_pytorch_tanh",
        ropes=("default",),
        window_period=2,
        capped=True,
        deepest=46,
        tied=True,
    ),
    "gemma3_text": Family(
        "gemma3",
        (*DECODER, *HEAD_NORMS, *OUTER_NORMS),
        norm_offset=1.0,
        activation="gelu_pytorch_tanh",
        ropes=("default", "linear"),
        window_period=6,
        deepest=62,
    ),
    "phi3": Family("phi3", FUSED, ropes=("default",), partial_rotary=True),
    "granite": Family(
        "granite",
        rotary_pairs=True,
        multipliers={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
}
"""transformers' model type -> its family."""


def stems(family: Family, layers: int) -> dict[str, str]:
    """Return the modules that have tensors, by transformers' names -> by gguf's, in a file's order."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == family.architecture)
    name_map = get_tensor_name_map(number, layers)
    modules = [*OUTSIDE, *(f"model.layers.{layer}.{module}" for layer in range(layers) for module in family.modules)]
    names = {module: name_map.get_name(module) for module in modules}
    return {module: name for module, name in names.items() if name is not None}


def tensor_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of a model's parameters in transformers -> in a GGUF file, in the file's order."""
    family = FAMILIES[config["model_type"]]
    biased = {module for setting in _biases(family, config) for module in BIASED[setting]}
    names = {}
    for stem, name in stems(family, config["num_hidden_layers"]).items():
        if stem == "lm_head" and config.get("tie_word_embeddings"):
            continue
        names[f"{stem}.weight"] = f"{name}.weight"
        if stem.split(".", 3)[-1] in biased:
            names[f"{stem}.bias"] = f"{name}.bias"
    return names


def parameter_names(architecture: str, layers: int) -> dict[str, str]:
    """Return the names of all tensors that a file of gguf's ``architecture`` may have -> transformers' names."""
    family = next(family for family in FAMILIES.values() if family.architecture == architecture)
    return {
        f"{name}.{suffix}": f"{stem}.{suffix}"
        for stem, name in stems(family, layers).items()
        for suffix in ("weight", "bias")
    }


def rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of a query or key projection ``[heads * d, n]``, from rotary pairs (GGUF) to halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def ropes(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the rotary embeddings of blocks that see all, and of those that see a window."""
    rope = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_scaling") or {}),
    }
    if "full_attention" in rope:
        return rope["full_attention"], rope.get("sliding_attention") or rope["full_attention"]
    return rope, rope


def rope_type(rope: Mapping[str, Any]) -> str:
    """Return the type of a rotary embedding in transformers' words."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def head_width(config: Mapping[str, Any]) -> int:
    """Return the width of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rotary_width(config: Mapping[str, Any]) -> int:
    """Return how much of a head's width is rotated."""
    part = ropes(config)[0].get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return int(head_width(config) * part)


def problem(config: Mapping[str, Any]) -> str | None:
    """Return why a model with this config.json can't be written as a GGUF file here, or None."""
    model_type = config["model_type"]
    if model_type not in FAMILIES:
        return f"GGUF files are written for {', '.join(sorted(FAMILIES))}; this model is a {model_type}"
    return next(_problems(FAMILIES[model_type], config), None)


def _problems(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what llama.cpp would compute otherwise than transformers."""
    name = config["model_type"]
    for setting in ("attention_bias", "mlp_bias"):
        if config.get(setting) and setting not in family.biases:
            yield f"GGUF files of {name} models have no biases; this one has {setting}"
    activation = config.get("hidden_activation") or config.get("hidden_act") or family.activation
    if activation != family.activation:
        yield f"GGUF files of {name} models are computed with {family.activation}; this model has {activation}"
    yield from _rope_problems(family, config)
    yield from _window_problems(family, config)
    if family.tied and not config.get("tie_word_embeddings"):
        yield f"GGUF files of {name} models have no head apart from the embedding; this model has one"
    caps = ("final_logit_softcapping", "attn_logit_softcapping")
    if family.capped and not all(config.get(cap) for cap in caps):
        yield f"GGUF files of {name} models have {' and '.join(caps)}; this model lacks one"
    if not family.capped and config.get(caps[1]):
        yield f"GGUF files of {name} models have no {caps[1]}; this model has one"
    width = head_width(config)
    if config["num_hidden_layers"] == family.deepest:
        width = config["hidden_size"] // config["num_attention_heads"]
    if config.get("query_pre_attn_scalar") not in (None, width):
        yield (
            f"GGUF files of such {name} models have query_pre_attn_scalar {width}; "
            f"this model's is {config['query_pre_attn_scalar']}"
        )


def _rope_problems(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    name = config["model_type"]
    everywhere, in_windows = ropes(config)
    given = rope_type(everywhere)
    if given not in family.ropes:
        yield f"GGUF files of {name} models have rotary embeddings of type {' or '.join(family.ropes)}, not {given}"
    if family.window_period and rope_type(in_windows) != "default":
        yield f"GGUF files of {name} models have plain rotary embeddings in windows, not {rope_type(in_windows)}"
    odd = sorted({"attention_factor", "mscale", "mscale_all_dim", "truncate"} & {k for k, v in everywhere.items() if v})
    if given == "yarn" and odd:
        yield f"GGUF files have no {odd[0]} of rotary embeddings; this model has one"
    if rotary_width(config) != head_width(config) and not family.partial_rotary:
        yield f"GGUF files of {name} models rotate whole heads; this model rotates a part (partial_rotary_factor)"


def _window_problems(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with which blocks see a window."""
    name, window, types = config["model_type"], config.get("sliding_window"), config.get("layer_types")
    period = family.window_period
    if period is None:
        windowed = window if types is None else "sliding_attention" in types
        if windowed and window < config["max_position_embeddings"]:
            yield f"llama.cpp computes {name} models without a sliding window; this model has one of {window}"
    elif types and types != [_layer_type(layer, period) for layer in range(len(types))]:
        yield (
            f"llama.cpp gives {period - 1} of {period} blocks of {name} models a sliding window, all but the last; "
            "this model's layer_types differ"
        )


def _layer_type(layer: int, period: int) -> str:
    return "full_attention" if layer % period == period - 1 else "sliding_attention"


def _biases(family: Family, config: Mapping[str, Any]) -> list[str]:
    """Return the settings of ``BIASED`` that a model has."""
    return [*(["qkv_bias"] if family.always_biased else []), *(name for name in family.biases if config.get(name))]
