"""What a GGUF file says of its model besides tensors: from config.json's settings, and back to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hemorrhage.models.formats.gguf_names import (
    FAMILIES,
    Family,
    Key,
    head_width,
    inner_width,
    is_latent,
    key_value_heads,
    rope_type,
    ropes,
    rotary_width,
)

Value = bool | int | float | str
"""An entry that is written."""

CONTEXT = 2048
"""Longest text of families that do not say it; a file has to."""

NORM_EPSILON = 1e-5
"""Of layer norms whose epsilon config.json does not say (OLMo)."""


def describe(config: Mapping[str, Any]) -> dict[str, Value]:
    """Return the entries of a model's file, without the architecture's name before them."""
    family = FAMILIES[config["model_type"]]
    width = head_width(config)
    entries: dict[str, Value] = {
        "block_count": int(config["num_hidden_layers"]),
        "context_length": int((family.context and config.get(family.context)) or CONTEXT),
        "embedding_length": int(config["hidden_size"]),
        "feed_forward_length": inner_width(config),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": key_value_heads(config),
        "attention.key_length": width,
        "attention.value_length": int(config["v_head_dim"]) if is_latent(config) else width,
        family.norm.name: float(config.get(family.norm.setting) or NORM_EPSILON),
        "vocab_size": int(config["vocab_size"]),
    }
    for key in family.keys:
        value = _value(key, config)
        if value is not None:
            entries[key.name] = value
    return entries | _ropes(family, config) | _attention(family, config)


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
