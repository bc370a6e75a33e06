"""What a GGUF file says of its model besides tensors: from config.json's settings, and back to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hemorrhage.models.formats.gguf_names import (
    FAMILIES,
    Family,
    Key,
    head_width,
    inner_width,
    is_latent,
    key_value_heads,
    layer_types,
    rope_type,
    ropes,
    rotary_width,
)

Value = bool | int | float | str | list[int]
"""An entry that is written."""

Read = Mapping[str, object]
"""The metadata of a file."""

Shapes = Mapping[str, Sequence[int]]
"""The tensors of a file."""

CONTEXT = 2048
"""Longest text of families that do not say it; a file has to."""

NORM_EPSILON = 1e-5
"""Of layer norms whose epsilon config.json does not say (OLMo)."""


def describe(config: Mapping[str, Any]) -> dict[str, Value]:
    """Return the entries of a model's file, without the architecture's name before them."""
    family = FAMILIES[config["model_type"]]
    entries: dict[str, Value] = {
        "block_count": int(config["num_hidden_layers"]),
        "context_length": int((family.context and config.get(family.context)) or CONTEXT),
        "embedding_length": int(config["hidden_size"]),
        **_heads(config),
        family.norm.name: float(config.get(family.norm.setting) or NORM_EPSILON),
        "vocab_size": int(config["vocab_size"]),
    }
    for key in family.keys:
        value = _value(key, config)
        if value is not None:
            entries[key.name] = value
    if "conv" in (config.get("layer_types") or ()):
        heads = key_value_heads(config)
        entries["attention.head_count_kv"] = [0 if kind == "conv" else heads for kind in config["layer_types"]]
    return entries | _ropes(family, config) | _attention(family, config)


def _heads(config: Mapping[str, Any]) -> dict[str, Value]:
    if "num_attention_heads" not in config:
        # Needed also where a model has neither heads nor an MLP.
        norms = {"ssm.dt_b_c_rms": config["model_type"] == "falcon_mamba"}
        return {"feed_forward_length": 0, "attention.head_count": 0, **norms}
    width = head_width(config)
    return {
        "feed_forward_length": inner_width(config),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": key_value_heads(config),
        "attention.key_length": width,
        "attention.value_length": int(config["v_head_dim"]) if is_latent(config) else width,
    }


def _value(key: Key, config: Mapping[str, Any]) -> Value | None:
    factors = [1 if setting == "1" else config.get(setting) for setting in key.setting.split("*")]
    given = [factor for factor in factors if factor is not None]
    return key.type(math.prod(given)) if len(given) == len(factors) else None


def _ropes(family: Family, config: Mapping[str, Any]) -> dict[str, Value]:
    if not family.ropes:
        return {}
    rope, in_windows = ropes(config)
    entries: dict[str, Value] = {
        "rope.dimension_count": rotary_width(config),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope_type(rope) in ("linear", "yarn"):
        entries |= {"rope.scaling.type": rope_type(rope), "rope.scaling.factor": float(rope["factor"])}
    if rope_type(rope) == "yarn":
        original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        entries["rope.scaling.original_context_length"] = int(original)
        for bound in ("beta_fast", "beta_slow"):
            if rope.get(bound):
                entries[f"rope.scaling.yarn_{bound}"] = float(rope[bound])
        if family.mscale and rope.get("mscale_all_dim"):
            # A tenth, as llama.cpp divides it out for this family.
            entries["rope.scaling.yarn_log_multiplier"] = 0.1 * float(rope["mscale_all_dim"])
    if family.window_period:
        entries |= {
            "attention.sliding_window": int(config["sliding_window"]),
            "rope.freq_base_swa": float(in_windows["rope_theta"]),
        }
    return entries


def _attention(family: Family, config: Mapping[str, Any]) -> dict[str, Value]:
    """Return what only some models have, under the names of no single family."""
    entries: dict[str, Value] = {}
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(cap):
            entries[cap] = float(config[cap])
    if family.gating is not None:
        entries["expert_gating_func"] = family.gating
    if family.architecture == "mpt":
        attention = config["attn_config"]
        entries["attention.max_alibi_bias"] = float(attention["alibi_bias_max"]) if attention["alibi"] else 0.0
        if attention["clip_qkv"]:
            entries["attention.clamp_kqv"] = float(attention["clip_qkv"])
    if family.architecture == "falcon":
        entries["tensor_data_layout"] = "jploski"
    return entries


def settings(metadata: Read, shapes: Shapes) -> dict[str, Any]:
    """Return the config.json of the model of a file that llama.cpp reads. Raises ValueError, one line.

    What a file does not say is what transformers takes for granted of the family, or what llama.cpp does.
    """
    reading = _Reading(metadata, shapes)
    model_type, family = reading.family()
    config = _common(reading, family, model_type) | dict(family.fixed)
    for key in family.keys:
        if "*" not in key.setting and reading.has(key.name):
            config[key.setting] = _typed(reading.value(key.name), key)
    for setting, tensor in family.flags.items():
        config[setting] = any(f"blk.{layer}.{tensor}" in shapes for layer in (0, config["num_hidden_layers"] - 1))
    if family.ropes:
        config |= _read_ropes(reading, family, model_type)
    if reading.has("attention.kv_lora_rank"):
        config |= _read_latent(reading, model_type, config)
    config |= _READERS.get(model_type, _nothing)(reading, config)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if reading.has(cap):
            config[cap] = reading.number(cap)
    for token, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        is_token = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < config["vocab_size"]
        config[f"{token}_token_id"] = number if is_token else None
    return config


class _Reading:
    """A file's metadata, by the names behind its architecture's."""

    def __init__(self, metadata: Read, shapes: Shapes) -> None:
        self.metadata, self.shapes = metadata, shapes
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ValueError("its metadata has no general.architecture")  # noqa: TRY004 - one class for what a file says
        self.architecture = architecture

    def family(self) -> tuple[str, Family]:
        """Return transformers' model type, and the family."""
        same = [(name, family) for name, family in FAMILIES.items() if family.architecture == self.architecture]
        if not same:
            known = ", ".join(sorted({family.architecture for family in FAMILIES.values()}))
            raise ValueError(f"its architecture is {self.architecture[:40]}; read are {known}")
        signed = [each for each in same if each[1].sign is not None and self._has_sign(*each[1].sign)]
        if self.architecture == "deepseek2" and any("exp_probs_b" in name for name in self.shapes):
            # The corrections of DeepSeek-V3's router, in files that do not say how experts are scored.
            signed = [each for each in same if each[1].gating is not None]
        return (signed or [each for each in same if each[1].sign is None])[0]

    def _has_sign(self, name: str, value: int | None) -> bool:
        given = self.metadata.get(f"{self.architecture}.{name}")
        return bool(given) if value is None else given == value

    def has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.metadata

    def value(self, name: str) -> object:
        """Return an entry; of one with a value a block the only one there is. Raises ValueError."""
        key = f"{self.architecture}.{name}"
        if key not in self.metadata:
            raise ValueError(f"its metadata has no {key}")
        value = self.metadata[key]
        if isinstance(value, list):
            if not value or any(each != value[0] for each in value):
                raise ValueError(f"its {key} differs between blocks, which is not read")
            value = value[0]
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """Return a number between 1 and two thousand millions. Raises ValueError."""
        if default is not None and not self.has(name):
            return default
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise ValueError(f"its {self.architecture}.{name} is {str(value)[:40]}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number above zero, as the shortest decimal that is the same in float32. Raises ValueError."""
        if default is not None and not self.has(name):
            return default
        value = self.value(name)
        if not isinstance(value, int | float) or not 0 < value < 2.0**63:
            raise ValueError(f"its {self.architecture}.{name} is {str(value)[:40]}")
        return _shortest(float(value))


def _shortest(value: float) -> float:
    """Return the decimal number that somebody wrote who stored ``value`` in float32."""
    import numpy as np

    return float(str(np.float32(value)))


def _typed(value: object, key: Key) -> Value:
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError(f"its {key.name} is {str(value)[:40]}")
    if key.type is int and not 0 <= value < 2**31:
        raise ValueError(f"its {key.name} is {value}")
    return _shortest(float(value)) if key.type is float else key.type(value)


def _common(reading: _Reading, family: Family, model_type: str) -> dict[str, Any]:
    """Return what every file says."""
    embedding = reading.shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise ValueError("it has no token_embd.weight")
    vocabulary, hidden = embedding
    layers = reading.whole("block_count") - int(reading.has("nextn_predict_layers") and _predicting(reading))
    if reading.whole("embedding_length") != hidden:
        raise ValueError(f"its embedding_length is {reading.whole('embedding_length')}; token_embd.weight has {hidden}")
    if not 1 <= layers <= len(reading.shapes):
        raise ValueError(f"its block_count is {layers} for {len(reading.shapes)} tensors")
    config: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        family.norm.setting: reading.number(family.norm.name),
        "tie_word_embeddings": "output.weight" not in reading.shapes,
    }
    if family.context is not None:
        config[family.context] = reading.whole("context_length")
    _check_experts(reading)
    return config | (_read_heads(reading, family, model_type, hidden) if family.architecture != "mamba" else {})


def _read_heads(reading: _Reading, family: Family, model_type: str, hidden: int) -> dict[str, Any]:
    """Return the widths of attention and of the MLP."""
    heads = reading.whole("attention.head_count")
    if heads > hidden:
        raise ValueError(f"its attention.head_count is {heads} for {hidden} numbers")
    config: dict[str, Any] = {"num_attention_heads": heads}
    if family.key_values is not None and family.architecture != "lfm2":
        config[family.key_values] = reading.whole("attention.head_count_kv", heads)
    if family.inner is not None and reading.has("feed_forward_length"):
        config[family.inner] = reading.whole("feed_forward_length")
    width = reading.whole("attention.key_length", hidden // heads)
    if width != hidden // heads or _has_head_width(model_type):
        config["head_dim"] = width
    return config


def _predicting(reading: _Reading) -> int:
    """Return the number of blocks behind the last that predict further tokens; transformers has none of them."""
    value = reading.value("nextn_predict_layers")
    return value if isinstance(value, int) and 0 <= value < reading.whole("block_count") else 0


def _has_head_width(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return "head_dim" in CONFIG_MAPPING[model_type]().to_dict()


def _check_experts(reading: _Reading) -> None:
    """Raise ValueError where a file has another number of experts than it says: the model is made before it is read."""
    experts = reading.whole("expert_count") if reading.has("expert_count") and reading.value("expert_count") else 0
    stacks = {shape[0] for name, shape in reading.shapes.items() if "_exps" in name and len(shape) == 3}
    if stacks and stacks != {experts}:
        raise ValueError(f"its expert_count is {experts}; its tensors have {', '.join(map(str, sorted(stacks)))}")
    if experts > len(reading.shapes) and not stacks:
        raise ValueError(f"its expert_count is {experts} for {len(reading.shapes)} tensors")


def _read_ropes(reading: _Reading, family: Family, model_type: str) -> dict[str, Any]:
    """Return the rotary embeddings, and which blocks see a window."""
    from transformers import CONFIG_MAPPING

    context = reading.whole("context_length")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": reading.number("rope.freq_base", 1e4)}
    kind = reading.metadata.get(f"{reading.architecture}.rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": reading.number("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        rope |= _read_yarn(reading, model_type, context)
    if family.partial_rotary:
        width = reading.whole("attention.key_length", 0) or _plain_width(reading)
        rope["partial_rotary_factor"] = reading.whole("rope.dimension_count", width) / width
    config: dict[str, Any] = {}
    if reading.has("attention.sliding_window") and (family.window_period or model_type == "phi3"):
        window = reading.value("attention.sliding_window")
        is_width = isinstance(window, int) and not isinstance(window, bool) and 0 < window < 2**31
        config["sliding_window"] = window if is_width else None
    if family.window_period:
        config["layer_types"] = _read_windows(reading, family.window_period)
    in_windows = {
        "rope_type": "default",
        "rope_theta": reading.number("rope.freq_base_swa", _theta_in_windows(reading)),
    }
    by_type = "full_attention" in (CONFIG_MAPPING[model_type]().to_dict().get("rope_parameters") or {})
    config["rope_parameters"] = {"full_attention": rope, "sliding_attention": in_windows} if by_type else rope
    return config


def _theta_in_windows(reading: _Reading) -> float:
    """Return llama.cpp's base of the rotary embedding in windows where a file does not say it."""
    return 1e4 if reading.architecture == "gemma3" else reading.number("rope.freq_base", 1e4)


def _plain_width(reading: _Reading) -> int:
    return reading.whole("embedding_length") // reading.whole("attention.head_count")


def _read_yarn(reading: _Reading, model_type: str, context: int) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "original_max_position_embeddings": reading.whole("rope.scaling.original_context_length", context)
    }
    for bound in ("beta_fast", "beta_slow"):
        if reading.has(f"rope.scaling.yarn_{bound}"):
            rope[bound] = reading.number(f"rope.scaling.yarn_{bound}")
    if reading.has("rope.scaling.yarn_attn_factor"):
        rope["attention_factor"] = reading.number("rope.scaling.yarn_attn_factor")
    if reading.has("rope.scaling.yarn_log_multiplier"):
        scale = _shortest(reading.number("rope.scaling.yarn_log_multiplier") * 10)
        rope |= {"mscale": scale, "mscale_all_dim": scale}
    if model_type == "gpt_oss":
        # llama.cpp rounds the bounds that the model does not round.
        rope["truncate"] = False
    return rope


def _read_windows(reading: _Reading, period: int) -> list[str]:
    """Return transformers' types of the blocks."""
    layers = reading.whole("block_count")
    pattern = reading.metadata.get(f"{reading.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) == layers:
        return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]
    if isinstance(pattern, int) and not isinstance(pattern, bool) and 1 <= pattern <= layers:
        period = pattern
    return layer_types(layers, period)


def _read_latent(reading: _Reading, model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the widths of keys and values that are made of a latent state (DeepSeek)."""
    rotary = reading.whole("rope.dimension_count")
    keys = reading.whole("attention.key_length_mla", reading.whole("attention.key_length"))
    if keys <= rotary:
        raise ValueError(f"its attention.key_length is {keys}, of which {rotary} are rotated")
    latent: dict[str, Any] = {
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": keys - rotary,
        "v_head_dim": reading.whole("attention.value_length_mla", reading.whole("attention.value_length")),
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": config.get("q_lora_rank"),
        "n_group": config.get("n_group", 1),
        "topk_group": config.get("topk_group", 1),
        "routed_scaling_factor": config.get("routed_scaling_factor", 1.0),
        "norm_topk_prob": config.get("norm_topk_prob", False),
        "head_dim": rotary,
    }
    if model_type == "deepseek_v2" and latent["n_group"] > 1:
        latent["topk_method"] = "group_limited_greedy"
    return latent


def _nothing(_: _Reading, _found: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _falcon(reading: _Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    two_norms, groups = "blk.0.attn_norm_2.weight" in reading.shapes, config["num_kv_heads"]
    return {
        "new_decoder_architecture": two_norms or groups > 1,
        "multi_query": groups == 1,
        "num_ln_in_parallel_attn": None if two_norms or groups == 1 else 1,
        "bias": False,
    }


def _mpt(reading: _Reading, _: Mapping[str, Any]) -> dict[str, Any]:
    has_bias = reading.has("attention.max_alibi_bias") and reading.value("attention.max_alibi_bias") != 0
    bias = reading.number("attention.max_alibi_bias") if has_bias else 0.0
    clip = reading.number("attention.clamp_kqv") if reading.has("attention.clamp_kqv") else None
    return {"attn_config": {"alibi": bias > 0, "alibi_bias_max": int(bias) or 8, "clip_qkv": clip}}


def _granite(_: _Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"] // config["num_attention_heads"]
    return {"attention_multiplier": config.get("attention_multiplier", width**-0.5)}


def _gemma(reading: _Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    deepest = FAMILIES[config["model_type"]].deepest
    plain = config["num_hidden_layers"] == deepest
    return {"query_pre_attn_scalar": _plain_width(reading) if plain else config["head_dim"]}


def _ernie(_: _Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"moe_layer_end_index": config["num_hidden_layers"] - 1}


def _exaone(reading: _Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    """Windows are in the models of 64 blocks alone."""
    layers = config["num_hidden_layers"]
    if layers != 64:
        return {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    return {
        "sliding_window": reading.whole("attention.sliding_window", 4096),
        "layer_types": _read_windows(reading, 4),
    }


def _lfm2(reading: _Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    heads = reading.metadata.get("lfm2.attention.head_count_kv")
    layers = config["num_hidden_layers"]
    if not isinstance(heads, list) or len(heads) != layers or len({*heads} - {0}) != 1:
        raise ValueError(f"its lfm2.attention.head_count_kv is {str(heads)[:40]}")
    return {
        "layer_types": ["full_attention" if number else "conv" for number in heads],
        "num_key_value_heads": max(heads),
        "block_auto_adjust_ff_dim": False,
    }


_READERS: Mapping[str, Callable[[_Reading, Mapping[str, Any]], dict[str, Any]]] = {
    "falcon": _falcon,
    "mpt": _mpt,
    "granite": _granite,
    "granitemoe": _granite,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "ernie4_5_moe": _ernie,
    "exaone4": _exaone,
    "lfm2": _lfm2,
}
"""Model type -> what only its files say."""
