"""llama.cpp's mixes of block types: which type llama-quantize gives each tensor of a file that is called Q4_K_M.

A file is called by the type of most of its tensors. Some get a better one: what gives the values of attention, the
MLP's way back, attention's way out, embeddings and the head, in all blocks or in some of them. The rules depend on the
tensor's name, its place among those of the same kind, and a few numbers of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hemorrhage.models.formats.gguf_metadata import Value, describe
from hemorrhage.models.formats.gguf_names import FAMILIES

MIXES = {
    "q2_k": "q2_k",
    "q3_k_s": "q3_k",
    "q3_k_m": "q3_k",
    "q3_k_l": "q3_k",
    "q4_0": "q4_0",
    "q4_1": "q4_1",
    "q4_k_s": "q4_k",
    "q4_k_m": "q4_k",
    "q5_0": "q5_0",
    "q5_1": "q5_1",
    "q5_k_s": "q5_k",
    "q5_k_m": "q5_k",
    "q6_k": "q6_k",
    "q8_0": "q8_0",
    "iq4_nl": "iq4_nl",
    "iq4_xs": "iq4_xs",
    "mxfp4_moe": "mxfp4",
    "tq1_0": "tq1_0",
    "tq2_0": "tq2_0",
}
"""What a file is called -> the type of most of its tensors."""

SUPER_BLOCKS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "tq1_0", "tq2_0")
"""Types whose blocks are 256 weights; others have 32."""

VALUES = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")
"""What the values of attention come from, alone or with others."""

EIGHT = 8
"""Experts of Mixtral, whose attention is small beside them."""

OF_70B = ("llama", "qwen2", "olmo")
"""Architectures whose models of 80 blocks llama.cpp takes for the 70B size."""

NOT_QUANTIZED = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "ssm_conv1d.weight", "conv.weight")


@dataclass(frozen=True)
class _File:
    """What the rules ask of a file: ``queries``: of a key in the first block; ``values``: number of ``VALUES``."""

    mix: str
    architecture: str
    blocks: int
    queries: int
    experts: int
    values: int
    is_tied: bool
    is_weighted: bool

    @property
    def usual(self) -> str:
        return MIXES[self.mix]

    @property
    def is_falcon(self) -> bool:
        return self.architecture == "falcon"

    @property
    def is_70b(self) -> bool:
        is_size = self.architecture in OF_70B and self.blocks == 80
        return is_size and (self.architecture != "llama" or self.queries != 1)


def mix_types(
    mix: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], is_weighted: bool
) -> dict[str, str]:
    """Return the type of each tensor of a file that llama-quantize quantizes, whether or not its blocks divide rows.

    ``shapes``: the file's tensors, in its order; ``is_weighted``: whether it is made with an importance matrix.
    """
    metadata = describe(config)
    heads, keys = (_first(metadata.get(f"attention.{name}", 0)) for name in ("head_count", "head_count_kv"))
    file = _File(
        mix,
        FAMILIES[config["model_type"]].architecture,
        int(config["num_hidden_layers"]),
        heads // keys if keys else 0,
        _first(metadata.get("expert_count", 0)),
        sum(name.endswith(VALUES) for name in shapes),
        "output.weight" not in shapes,
        is_weighted,
    )
    types: dict[str, str] = {}
    seen = {"values": 0, "down": 0}
    for name in sorted(shapes, key=_block):
        if _is_quantized(name, shapes[name]):
            types[name] = _type_of(file, name, shapes[name], seen)
    return types


def _first(value: Value) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _block(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def _is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    has_rows = sum(length > 1 for length in shape[:-1]) > 0
    return has_rows and name.endswith("weight") and not name.endswith(NOT_QUANTIZED)


def _type_of(file: _File, name: str, shape: tuple[int, ...], seen: dict[str, int]) -> str:
    if name == "output.weight" or (file.is_tied and name == "token_embd.weight"):
        return _of_head(file, shape[-1])
    if file.mix == "mxfp4_moe":
        return "mxfp4" if len(shape) == 3 else "q8_0"
    if name == "token_embd.weight":
        return "q4_k" if file.mix in ("tq1_0", "tq2_0") else file.usual
    return _of_layer(file, name, seen)


def _of_layer(file: _File, name: str, seen: dict[str, int]) -> str:
    if name.endswith(VALUES):
        seen["values"] += 1
        return _of_values(file, seen["values"] - 1)
    if "ffn_down" in name:
        seen["down"] += 1
        # Of a model with experts, blocks may have several.
        return _of_way_back(file, _block(name) if file.experts > 1 else seen["down"] - 1)
    if name.endswith("attn_output.weight"):
        return _of_way_out(file)
    return "q8_0" if name.endswith("attn_k.weight") and file.experts == EIGHT else file.usual


def _of_head(file: _File, columns: int) -> str:
    width = 256 if file.usual in SUPER_BLOCKS else 32
    if file.usual in ("mxfp4", "q8_0") or file.is_falcon or columns % width:
        return "q8_0"
    return "q6_k"


def _of_values(file: _File, number: int) -> str:
    kind = file.usual
    is_grouped = file.queries >= 4
    match file.mix:
        case "q2_k":
            kind = "q4_k" if is_grouped else "q3_k"
        case "q3_k_m":
            kind = "q5_k" if number < 2 else "q4_k"
        case "q3_k_l":
            kind = "q5_k"
        case "iq4_nl" | "iq4_xs" if is_grouped:
            kind = "q5_k"
        case "q4_k_m" | "q5_k_m" if _more_bits(number, file.values):
            kind = "q6_k"
        case "q4_k_s" if number < 4:
            kind = "q5_k"
    if file.is_70b and kind in ("q3_k", "q4_k"):
        kind = "q5_k"
    return "q8_0" if file.experts == EIGHT else kind


def _of_way_back(file: _File, number: int) -> str:
    """Return the type of the matrix by which an MLP leaves its inner width."""
    kind = file.usual
    first, more = number < file.blocks // 8, _more_bits(number, file.blocks)
    is_start = number < file.blocks // 16
    match file.mix:
        case "q2_k":
            kind = "q3_k"
        case "q3_k_m" if is_start:
            kind = "q5_k"
        case "q3_k_m" if more or not file.is_falcon:
            kind = "q4_k"
        case "q3_k_l":
            kind = "q4_k" if file.is_falcon else "q5_k"
        case "q4_k_m" if file.is_falcon:
            kind = "q6_k" if is_start else "q5_k" if more else kind
        case "q4_k_m" | "q5_k_m" if more:
            kind = "q6_k"
        case "iq4_nl" | "iq4_xs" if first and not file.is_weighted:
            kind = "q5_k"
        case "q4_k_s" if first and not file.is_falcon:
            kind = "q5_k"
        case "q4_0" | "q5_0" if first and file.is_weighted:
            kind = file.mix.replace("_0", "_1")
    return kind


def _of_way_out(file: _File) -> str:
    """Return the type of the matrix by which attention ends."""
    if file.is_falcon:
        return "q4_k" if file.mix == "q3_k_l" else file.usual
    if file.experts == EIGHT:
        better = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")
        return "q5_k" if file.mix in better else file.usual
    return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(file.mix, file.usual)


def _more_bits(number: int, count: int) -> bool:
    """Return whether one of ``count`` blocks gets more bits: the first and last eighth, and every third between."""
    return number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2
