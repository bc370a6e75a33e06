"""Families of models in GGUF's words: which llama.cpp computes as transformers does, and what their tensors are called.

The names are those of gguf's own maps. What differs between families is in ``FAMILIES``, an entry each: what a file
says of a model (``Key``), what llama.cpp takes for granted (``fixed``), and how rows lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from gguf import TensorNameMap

BIASES = ("attention_bias", "mlp_bias", "use_bias", "attention_out_bias", "bias")
"""Settings that give layers a bias."""


@dataclass(frozen=True)
class Key:
    """An entry of a file's metadata: its name behind the architecture's, config.json's setting, and the type.

    ``setting`` may be a product ``a*b``, which is written and not read back.
    """

    name: str
    setting: str
    type: type[bool] | type[int] | type[float] = int


RMS_NORM = Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", float)


def layer_norm(setting: str = "layer_norm_eps") -> Key:
    """Return the entry of a layer norm's epsilon."""
    return Key("attention.layer_norm_epsilon", setting, float)


def expert_keys(count: str, width: str | None = None, used: str = "num_experts_per_tok") -> tuple[Key, ...]:
    """Return what a file says of experts; ``width``: the setting of their inner width, where it has a name."""
    keys = (Key("expert_count", count), Key("expert_used_count", used))
    return keys if width is None else (*keys, Key("expert_feed_forward_length", width))


GRANITE = (
    Key("attention.scale", "attention_multiplier", float),
    Key("embedding_scale", "embedding_multiplier", float),
    Key("residual_scale", "residual_multiplier", float),
    Key("logit_scale", "logits_scaling", float),
)

DEEPSEEK = (
    *expert_keys("n_routed_experts", "moe_intermediate_size"),
    Key("attention.q_lora_rank", "q_lora_rank"),
    Key("attention.kv_lora_rank", "kv_lora_rank"),
    Key("leading_dense_block_count", "first_k_dense_replace"),
    Key("expert_shared_count", "n_shared_experts"),
    Key("expert_weights_scale", "routed_scaling_factor", float),
    Key("expert_weights_norm", "norm_topk_prob", bool),
    Key("expert_group_count", "n_group"),
    Key("expert_group_used_count", "topk_group"),
)

SIGMOID = 2
"""llama.cpp's number of routers that score experts by a sigmoid."""

LITE = (26, 27)
"""Depths of the models whose queries llama.cpp takes for whole (DeepSeek-V2-Lite)."""

TANH = ("gelu_pytorch_tanh", "gelu_new")
"""transformers' names of the GELU that llama.cpp computes."""


@dataclass(frozen=True)
class Family:
    """How llama.cpp has a family.

    ``architecture``: gguf's name; ``norm``, ``keys``: what a file says besides what it says of all; ``fixed``: settings
    that llama.cpp takes for granted -> what they have to be; ``flags``: setting -> tensor of the first block, or of the
    head, that a file has with it; ``sign``: the entry that only this family of an architecture has, and
    its value where any other means another family; ``biases``:
    settings of ``BIASES`` that it may have; ``activation``: of its layers, under the name ``activation_setting``;
    ``rotary_pairs``: the rows of queries and keys lie as pairs; ``fused``: the rows of a fused projection are ordered
    by "heads" (q, k, v of a head) or "groups" (the queries of a key, k, v) in transformers, and q, k, v in a file;
    ``norm_offset``: what a file's norm weights have on top of transformers'; ``ropes``: types of rotary embeddings,
    none of models without any; ``partial_rotary``: heads may be rotated in part; ``window_period``: the last of so many
    blocks sees all, the others a window; None: all blocks see all; ``capped``: logits and attention are always capped;
    ``deepest``: number of blocks of the size whose queries are scaled by hidden_size over heads, not by head_dim;
    ``tied``: the head always is the embedding (True), never (False), or may be; ``wide_heads``: heads may be wider than
    hidden_size over their number; ``grouped``: there may be fewer keys than queries; ``key_values``, ``inner``,
    ``context``: settings of key-value heads, of the inner width (None: 4 · hidden_size) and of the longest text;
    ``aliases``: patterns of module names that gguf's map has under another name; ``gating``: llama.cpp's number of how
    experts are scored; ``mscale``: a scale of attention that the rotary embedding names is applied.
    """

    architecture: str
    norm: Key = RMS_NORM
    keys: tuple[Key, ...] = ()
    fixed: Mapping[str, object] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    sign: tuple[str, int | None] | None = None
    biases: tuple[str, ...] = ()
    activation: tuple[str, ...] = ("silu",)
    activation_setting: str = "hidden_act"
    rotary_pairs: bool = False
    fused: str | None = None
    norm_offset: float = 0.0
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    partial_rotary: bool = False
    window_period: int | None = None
    capped: bool = False
    deepest: int | None = None
    tied: bool | None = None
    wide_heads: bool = True
    grouped: bool = True
    key_values: str | None = "num_key_value_heads"
    inner: str | None = "intermediate_size"
    context: str | None = "max_position_embeddings"
    aliases: tuple[tuple[str, str], ...] = ()
    gating: int | None = None
    mscale: bool = False


ATTENTION_BIAS = {"attention_bias": "attn_q.bias"}
CORRECTION = ((r"e_score_correction_bias$", "e_score_correction.bias"),)

LLAMA = Family(
    "llama",
    biases=("attention_bias", "mlp_bias"),
    flags={**ATTENTION_BIAS, "mlp_bias": "ffn_down.bias"},
    rotary_pairs=True,
    ropes=("default", "linear", "yarn", "llama3"),
)

GPT = Family(
    "gpt2",
    layer_norm("layer_norm_epsilon"),
    activation=TANH,
    activation_setting="activation_function",
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ropes=(),
    tied=True,
    wide_heads=False,
    key_values=None,
    inner="n_inner",
)

MAMBA = Family(
    "mamba",
    Key(RMS_NORM.name, "layer_norm_epsilon", float),
    keys=(
        Key("ssm.conv_kernel", "conv_kernel"),
        Key("ssm.inner_size", "intermediate_size"),
        Key("ssm.state_size", "state_size"),
        Key("ssm.time_step_rank", "time_step_rank"),
    ),
    fixed={"expand": 2, "use_bias": False, "use_conv_bias": True},
    biases=("use_bias",),
    ropes=(),
    context=None,
)

FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": Family(
        "llama",
        keys=expert_keys("num_local_experts"),
        sign=("expert_count", None),
        rotary_pairs=True,
        ropes=("default", "linear", "yarn"),
        aliases=((r"block_sparse_moe\.experts\.(w\d)", r"block_sparse_moe.experts.\1"),),
    ),
    "arcee": Family("arcee", activation=("relu2",), rotary_pairs=True, ropes=("default", "linear", "yarn", "llama3")),
    "smollm3": Family("smollm3", rotary_pairs=True, fixed={"no_rope_layer_interval": 4}),
    "qwen2": Family("qwen2", wide_heads=False),
    "qwen3": Family("qwen3"),
    "qwen2_moe": Family(
        "qwen2moe",
        keys=(
            *expert_keys("num_experts", "moe_intermediate_size"),
            Key("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        ),
        fixed={"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
        flags={"qkv_bias": "attn_q.bias"},
        tied=False,
        wide_heads=False,
    ),
    "qwen3_moe": Family(
        "qwen3moe",
        keys=expert_keys("num_experts", "moe_intermediate_size"),
        fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "gemma": Family("gemma", norm_offset=1.0, activation=TANH, ropes=("default",), tied=True),
    "gemma2": Family(
        "gemma2",
        norm_offset=1.0,
        activation=TANH,
        ropes=("default",),
        window_period=2,
        capped=True,
        deepest=46,
        tied=True,
    ),
    "gemma3_text": Family(
        "gemma3", norm_offset=1.0, activation=TANH, ropes=("default", "linear"), window_period=6, deepest=62
    ),
    "phi3": Family("phi3", ropes=("default",), partial_rotary=True, wide_heads=False),
    "phi": Family(
        "phi2",
        layer_norm(),
        fixed={"qk_layernorm": False},
        activation=TANH,
        ropes=("default",),
        partial_rotary=True,
        tied=False,
        wide_heads=False,
    ),
    "granite": Family("granite", keys=GRANITE, rotary_pairs=True, wide_heads=False),
    "granitemoe": Family(
        "granitemoe",
        keys=(*GRANITE, *expert_keys("num_local_experts")),
        rotary_pairs=True,
        wide_heads=False,
        aliases=(
            (r"block_sparse_moe\.router$", "block_sparse_moe.router.layer"),
            (r"block_sparse_moe\.experts\.(\w+_proj)$", r"mlp.experts.\1"),
        ),
    ),
    "olmo": Family(
        "olmo",
        Key("attention.layer_norm_epsilon", "layer_norm_eps", float),
        keys=(Key("attention.clamp_kqv", "clip_qkv", float),),
        rotary_pairs=True,
        wide_heads=False,
    ),
    "olmo2": Family("olmo2", tied=False, wide_heads=False),
    "olmo3": Family("olmo2", sign=("attention.sliding_window", None), window_period=4, tied=False, wide_heads=False),
    "olmoe": Family(
        "olmoe",
        keys=expert_keys("num_experts"),
        fixed={"norm_topk_prob": False, "clip_qkv": None},
        tied=False,
        wide_heads=False,
        grouped=False,
    ),
    "starcoder2": Family(
        "starcoder2",
        layer_norm("norm_epsilon"),
        fixed={"use_bias": True},
        biases=("use_bias",),
        activation=TANH,
        ropes=("default",),
        wide_heads=False,
    ),
    "nemotron": Family(
        "nemotron",
        layer_norm("norm_eps"),
        biases=("attention_bias", "mlp_bias"),
        flags={**ATTENTION_BIAS, "mlp_bias": "ffn_down.bias"},
        activation=("relu2",),
        norm_offset=1.0,
        ropes=("default", "linear"),
        partial_rotary=True,
        tied=False,
        wide_heads=False,
    ),
    "stablelm": Family(
        "stablelm",
        layer_norm(),
        keys=(Key("use_parallel_residual", "use_parallel_residual", bool),),
        flags={"use_qkv_bias": "attn_q.bias", "qk_layernorm": "attn_q_norm.weight"},
        ropes=("default",),
        partial_rotary=True,
        tied=False,
        wide_heads=False,
    ),
    "glm": Family(
        "chatglm",
        fixed={"attention_bias": True},
        biases=("attention_bias",),
        partial_rotary=True,
        wide_heads=False,
    ),
    "glm4": Family("glm4", biases=("attention_bias",), flags=ATTENTION_BIAS, partial_rotary=True),
    "glm4_moe": Family(
        "glm4moe",
        keys=tuple(key for key in DEEPSEEK if "lora" not in key.name),
        biases=("attention_bias",),
        flags={**ATTENTION_BIAS, "use_qk_norm": "attn_q_norm.weight"},
        partial_rotary=True,
        aliases=CORRECTION,
        gating=SIGMOID,
    ),
    "cohere": Family(
        "command-r",
        layer_norm(),
        keys=(Key("logit_scale", "logit_scale", float),),
        fixed={"use_qk_norm": False},
        flags={"use_qk_norm": "attn_q_norm.weight"},
        ropes=("default",),
        tied=True,
        wide_heads=False,
    ),
    "cohere2": Family(
        "cohere2",
        layer_norm(),
        keys=(Key("logit_scale", "logit_scale", float),),
        ropes=("default",),
        window_period=4,
        tied=True,
        wide_heads=False,
    ),
    "exaone4": Family(
        "exaone4",
        fixed={"sliding_window": None},
        ropes=("default", "linear", "yarn", "llama3"),
        wide_heads=False,
    ),
    "ernie4_5": Family("ernie4_5"),
    "ernie4_5_moe": Family(
        "ernie4_5-moe",
        keys=(
            *expert_keys("moe_num_experts", "moe_intermediate_size", "moe_k"),
            Key("expert_shared_count", "moe_num_shared_experts"),
            Key("expert_shared_feed_forward_length", "moe_intermediate_size*moe_num_shared_experts"),
            Key("leading_dense_block_count", "moe_layer_start_index"),
            Key("interleave_moe_layer_step", "moe_layer_interval"),
        ),
        fixed={"moe_layer_interval": 1},
        aliases=((r"moe_statics\.e_score_correction_bias$", "e_score_correction.bias"),),
    ),
    "seed_oss": Family("seed_oss", biases=("attention_bias",), flags=ATTENTION_BIAS),
    "hunyuan_v1_dense": Family("hunyuan-dense", ropes=("default",)),
    "hunyuan_v1_moe": Family(
        "hunyuan-moe",
        keys=(
            *expert_keys("num_experts", "intermediate_size", "moe_topk"),
            Key("expert_shared_feed_forward_length", "intermediate_size*1"),
        ),
        ropes=("default",),
    ),
    "dots1": Family(
        "dots1",
        keys=tuple(key for key in DEEPSEEK if "lora" not in key.name and "group" not in key.name),
        fixed={"n_group": 1, "topk_group": 1},
        grouped=False,
        aliases=CORRECTION,
        gating=SIGMOID,
    ),
    "gpt_oss": Family(
        "gpt-oss",
        keys=expert_keys("num_local_experts", "intermediate_size"),
        fixed={"attention_bias": True},
        biases=("attention_bias",),
        window_period=2,
        tied=False,
    ),
    "deepseek_v2": Family("deepseek2", keys=DEEPSEEK, fixed={"topk_method": "greedy"}, tied=False),
    "deepseek_v3": Family(
        "deepseek2",
        keys=DEEPSEEK,
        fixed={"rope_interleave": True},
        sign=("expert_gating_func", SIGMOID),
        tied=False,
        aliases=CORRECTION,
        gating=SIGMOID,
        mscale=True,
    ),
    "lfm2": Family(
        "lfm2",
        Key(RMS_NORM.name, "norm_eps", float),
        keys=(Key("shortconv.l_cache", "conv_L_cache"),),
        fixed={"conv_bias": False},
        ropes=("default",),
        wide_heads=False,
    ),
    "mamba": MAMBA,
    "falcon_mamba": replace(MAMBA, sign=("ssm.dt_b_c_rms", None)),
    "gpt2": GPT,
    "gpt_bigcode": replace(
        GPT,
        architecture="starcoder",
        fixed={"scale_attn_weights": True, "multi_query": True, "add_cross_attention": False},
    ),
    "gpt_neox": Family(
        "gptneox",
        layer_norm(),
        keys=(Key("use_parallel_residual", "use_parallel_residual", bool),),
        fixed={"attention_bias": True},
        biases=("attention_bias",),
        activation=("gelu", *TANH),
        fused="heads",
        ropes=("default",),
        partial_rotary=True,
        tied=False,
        wide_heads=False,
        key_values=None,
    ),
    "bloom": Family(
        "bloom",
        layer_norm("layer_norm_epsilon"),
        fixed={"apply_residual_connection_post_layernorm": False},
        fused="heads",
        ropes=(),
        tied=True,
        wide_heads=False,
        key_values=None,
        inner=None,
        context=None,
        aliases=((r"^transformer\.", ""),),
    ),
    "falcon": Family(
        "falcon",
        layer_norm("layer_norm_epsilon"),
        fixed={"alibi": False, "parallel_attn": True},
        activation=("gelu",),
        activation_setting="activation",
        fused="groups",
        ropes=("default",),
        wide_heads=False,
        key_values="num_kv_heads",
        inner="ffn_hidden_size",
    ),
    "mpt": Family(
        "mpt",
        layer_norm("layer_norm_epsilon"),
        fixed={"no_bias": True},
        ropes=(),
        tied=True,
        wide_heads=False,
        key_values=None,
        inner=None,
        context="max_seq_len",
    ),
}
"""transformers' model type -> its family."""

UNSUFFIXED = (".ssm_a", ".ssm_d")
"""Tensors without ``.weight`` behind their names."""

_STACKED = re.compile(r"(?P<before>.*\.experts)\.(?P<number>\d+)\.(?P<after>.*)")
_NORMS = re.compile(r"(?P<before>.*_layernorm)\.norms\.(?P<number>\d+)(?P<after>)")
_SUFFIX = re.compile(r"\.(weight|bias)$")


@cache
def _name_map(architecture: str, layers: int) -> TensorNameMap:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(number, layers)


def file_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the tensors of a file, in its order -> the bench's names of what they are made of: experts are stacked.

    ``names`` are the bench's, of all parameters. Raises ValueError where gguf's map has none for one of them.
    """
    family, layers = FAMILIES[config["model_type"]], config["num_hidden_layers"]
    tied = config.get("tie_word_embeddings")
    numbered: dict[str, dict[int, str]] = {}
    for name in names:
        if tied and name == "lm_head.weight":
            continue
        match = _STACKED.fullmatch(name) or _NORMS.match(name)
        whole = name if match is None else _whole(name, match)
        numbered.setdefault(file_name(family, layers, whole), {})[int(match["number"]) if match else 0] = name
    sources = {name: tuple(parts[number] for number in sorted(parts)) for name, parts in numbered.items()}
    return dict(sorted(sources.items(), key=lambda item: item[0].startswith("blk.")))


def _whole(name: str, match: re.Match[str]) -> str:
    """Return the name of the stack that a part belongs to."""
    return ".".join(part for part in (match["before"], match["after"] or name[match.end() + 1 :]) if part)


def file_name(family: Family, layers: int, name: str) -> str:
    """Return a file's name for a parameter. Raises ValueError where gguf's map has none."""
    suffix = _SUFFIX.search(name)
    module = _SUFFIX.sub("", name)
    for pattern, known in family.aliases:
        module = re.sub(pattern, known, module)
    stated = _SUFFIX.search(module)
    known_as: str | None = _name_map(family.architecture, layers).get_name(_SUFFIX.sub("", module))
    if known_as is None:
        raise ValueError(f"gguf has no name for {name} of {family.architecture} files")
    if known_as.endswith(UNSUFFIXED):
        return known_as
    return f"{known_as}.{(stated or suffix)[1] if stated or suffix else 'weight'}"  # type: ignore[index]


def parameter_names(architecture: str, layers: int) -> dict[str, str]:
    """Return the names of the tensors of a Llama's file -> transformers' names."""
    family = next(family for family in FAMILIES.values() if family.architecture == architecture)
    modules = [*_OUTSIDE, *(f"model.layers.{layer}.{module}" for layer in range(layers) for module in _DECODER)]
    names = [f"{module}.{suffix}" for module in modules for suffix in ("weight", "bias")]
    return {file_name(family, layers, name): name for name in names}


_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")

_DECODER = (
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


def row_order(name: str, config: Mapping[str, Any]) -> torch.Tensor | None:
    """Return which row of a parameter, in transformers' order, a file has at each place; None: the same.

    ``name`` is the bench's. A bias has its layer's order.
    """
    import torch

    family = FAMILIES[config["model_type"]]
    if not (family.rotary_pairs or family.fused):
        return None
    heads, width = int(config["num_attention_heads"]), head_width(config)
    module, groups = name.rpartition(".")[0], key_value_heads(config)
    if family.rotary_pairs and module.endswith(("q_proj", "k_proj")):
        rows = torch.arange((heads if module.endswith("q_proj") else groups) * width)
        return rows.view(-1, 2, width // 2).transpose(1, 2).reshape(-1)
    if family.fused and module.endswith("query_key_value"):
        groups = heads if family.fused == "heads" else groups
        rows = torch.arange((heads + 2 * groups) * width).view(groups, -1, width)
        return torch.cat([rows[:, :-2].reshape(-1), rows[:, -2].reshape(-1), rows[:, -1].reshape(-1)])
    return None


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


def is_latent(config: Mapping[str, Any]) -> bool:
    """Return whether keys and values are made of a narrow latent state (DeepSeek)."""
    return bool(config.get("kv_lora_rank"))


def head_width(config: Mapping[str, Any]) -> int:
    """Return the width of an attention head."""
    if is_latent(config):
        return int(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def key_value_heads(config: Mapping[str, Any]) -> int:
    """Return the number of key-value heads."""
    setting = FAMILIES[config["model_type"]].key_values
    heads = config["num_attention_heads"] if setting is None else config.get(setting) or config["num_attention_heads"]
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        # Falcon's first and StarCoder's.
        heads = 1
    return int(heads)


def inner_width(config: Mapping[str, Any]) -> int:
    """Return the inner width of the MLP."""
    setting = FAMILIES[config["model_type"]].inner
    if config.get("block_auto_adjust_ff_dim"):
        # LFM2's is two thirds of what it says, times a factor, and a multiple.
        multiple = int(config["block_multiple_of"])
        width = int((config.get("block_ffn_dim_multiplier") or 1) * int(2 * config["intermediate_size"] / 3))
        return multiple * -(-width // multiple)
    return int((setting and config.get(setting)) or 4 * config["hidden_size"])


def rotary_width(config: Mapping[str, Any]) -> int:
    """Return how much of a head's width is rotated."""
    if is_latent(config):
        return int(config["qk_rope_head_dim"])
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
    for setting in BIASES:
        if config.get(setting) and setting not in family.biases:
            yield f"GGUF files of {name} models have no biases; this one has {setting}"
    for setting, value in family.fixed.items():
        if config.get(setting, value) != value:
            yield f"GGUF files of {name} models are computed with {setting} {value}; this model has {config[setting]}"
    activation = config.get("hidden_activation") or config.get(family.activation_setting) or family.activation[0]
    if activation not in family.activation:
        yield f"GGUF files of {name} models are computed with {family.activation[0]}; this model has {activation}"
    if "num_attention_heads" in config:
        yield from _head_problems(family, config)
    if family.ropes:
        yield from _rope_problems(family, config)
    yield from _window_problems(family, config)
    yield from _embedding_problems(family, config)


def _embedding_problems(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    name, tied = config["model_type"], bool(config.get("tie_word_embeddings"))
    if family.tied is True and not tied:
        yield f"GGUF files of {name} models have no head apart from the embedding; this model has one"
    if family.tied is False and tied:
        yield f"GGUF files of {name} models have a head apart from the embedding; this model's are tied"
    caps = ("final_logit_softcapping", "attn_logit_softcapping")
    if family.capped and not all(config.get(cap) for cap in caps):
        yield f"GGUF files of {name} models have {' and '.join(caps)}; this model lacks one"
    if not family.capped and config.get(caps[1]):
        yield f"GGUF files of {name} models have no {caps[1]}; this model has one"


def _head_problems(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    name, heads, hidden = config["model_type"], config["num_attention_heads"], config["hidden_size"]
    width = head_width(config)
    if is_latent(config) and config.get("q_lora_rank") is None and config["num_hidden_layers"] not in LITE:
        yield f"GGUF files of {name} models of such a depth have a q_lora_rank; this model has none"
    if not family.wide_heads and width * heads != hidden:
        yield f"GGUF files of {name} models have heads of hidden_size over their number; this model's are {width} wide"
    if not family.grouped and key_value_heads(config) != heads:
        yield f"GGUF files of {name} models have {heads} keys for {heads} queries, not {key_value_heads(config)}"
    if config["num_hidden_layers"] == family.deepest:
        width = hidden // heads
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
    if family.window_period and everywhere != in_windows and rope_type(in_windows) != "default":
        yield f"GGUF files of {name} models have plain rotary embeddings in windows, not {rope_type(in_windows)}"
    odd = sorted({"attention_factor", "mscale", "mscale_all_dim"} & {k for k, v in everywhere.items() if v})
    if family.mscale and everywhere.get("mscale") == everywhere.get("mscale_all_dim"):
        odd = [setting for setting in odd if not setting.startswith("mscale")]
    if given == "yarn" and odd:
        yield f"GGUF files have no {odd[0]} of rotary embeddings; this model has one"
    if given == "yarn" and everywhere.get("truncate") is False:
        yield "GGUF files have whole bounds of rotary embeddings (truncate); this model's are not"
    if rotary_width(config) % 2:
        yield f"GGUF files rotate pairs; this model rotates {rotary_width(config)} numbers of a head"
    if rotary_width(config) != head_width(config) and not family.partial_rotary and not is_latent(config):
        yield f"GGUF files of {name} models rotate whole heads; this model rotates a part (partial_rotary_factor)"


def _window_problems(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with which blocks see a window, and which rotate."""
    name, window, types = config["model_type"], config.get("sliding_window"), config.get("layer_types")
    period, rotating = family.window_period, config.get("no_rope_layers")
    if rotating and rotating != [int((layer + 1) % 4 != 0) for layer in range(len(rotating))]:
        yield f"GGUF files of {name} models rotate all but each fourth block; this model's no_rope_layers differ"
    if period is None:
        windowed = window if types is None else "sliding_attention" in types
        if windowed and window and window < config["max_position_embeddings"]:
            yield f"llama.cpp computes {name} models without a sliding window; this model has one of {window}"
    elif types and types != layer_types(len(types), period):
        yield (
            f"llama.cpp gives {period - 1} of {period} blocks of {name} models a sliding window, all but the last; "
            "this model's layer_types differ"
        )


def layer_types(layers: int, period: int) -> list[str]:
    """Return transformers' types of blocks of which the last of each ``period`` sees all."""
    return ["full_attention" if layer % period == period - 1 else "sliding_attention" for layer in range(layers)]
