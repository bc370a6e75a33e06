"""Configurations of the formats that the table of engines speaks of, those that engines refuse included."""

from __future__ import annotations

from typing import Any

from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme

PACKED, OCTETS, FLOATS = "pack-quantized", "int-quantized", "float-quantized"


def weights(bits: int, strategy: str, *, symmetric: bool = True, size: int | None = None) -> QuantizationArgs:
    """Integers."""
    return {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": size,
        "dynamic": False,
    }  # fmt: skip


def floats(bits: int, strategy: str, size: int | None = None, scale: str | None = None) -> QuantizationArgs:
    """Floating-point numbers, in compressed-tensors' words."""
    made: QuantizationArgs = {
        "num_bits": bits, "type": "float", "symmetric": True, "strategy": strategy, "group_size": size,
        "dynamic": False, "scale_dtype": scale,
    }  # fmt: skip
    return {**made, "block_structure": [128, 128]} if strategy == "block" else made


def inputs(
    bits: int, strategy: str, dynamic: bool | str = True, kind: str = "int", size: int | None = None
) -> QuantizationArgs:
    """Rounded inputs."""
    return {
        "num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "group_size": size, "dynamic": dynamic,
    }  # fmt: skip


TOKENS, TENSORS, FIXED = inputs(8, "token"), inputs(8, "tensor"), inputs(8, "tensor", dynamic=False)
FP8_TOKENS = inputs(8, "token", kind="float")
FP8_GROUPS = inputs(8, "group", kind="float", size=128)
NVFP4 = floats(4, "tensor_group", 16, "torch.float8_e4m3fn")
MXFP4, MXFP8 = floats(4, "group", 32, "torch.uint8"), floats(8, "group", 32, "torch.uint8")


def _integers() -> dict[str, QuantizationScheme]:
    made: dict[str, QuantizationScheme] = {}
    for bits in range(2, 9):
        for symmetric in (True, False):
            kind = "" if symmetric else " asymmetric"
            for size in (16, 32, 64, 128, 256):
                group = weights(bits, "group", symmetric=symmetric, size=size)
                made[f"W{bits}A16{kind} in groups of {size}"] = {"weights": group, "format": PACKED}
            channel = weights(bits, "channel", symmetric=symmetric)
            made[f"W{bits}A16{kind} per channel"] = {"weights": channel, "format": PACKED}
    return made


def _rounded(words: str, grid: QuantizationArgs, form: str, **read: QuantizationArgs) -> dict[str, QuantizationScheme]:
    return {
        f"{words}, {name.replace('_', ' ')}": {"weights": grid, "input_activations": arguments, "format": form}
        for name, arguments in read.items()
    }


FORMATS: dict[str, QuantizationScheme] = {
    **_integers(),
    "W1A16": {"weights": weights(1, "group", size=64), "format": PACKED},
    "W8A16 a byte each": {"weights": weights(8, "channel"), "format": OCTETS},
    **_rounded(
        "W8A8", weights(8, "channel"), OCTETS, tokens=TOKENS, fixed=FIXED, tensors=TENSORS, six_bits=inputs(6, "token"),
        four_bits=inputs(4, "token"),
    ),
    **_rounded("W8A8 of one scale", weights(8, "tensor"), OCTETS, tokens=TOKENS, fixed=FIXED),
    **_rounded("W8A8 in groups", weights(8, "group", size=64), OCTETS, tokens=TOKENS, fixed=FIXED),
    **_rounded("W8A8 in groups, packed", weights(8, "group", size=64), PACKED, tokens=TOKENS, fixed=FIXED),
    **_rounded(
        "W4A8", weights(4, "group", size=64), PACKED, tokens=TOKENS, fixed=FIXED, tensors=TENSORS,
        four_bits=inputs(4, "token"), six_bits=inputs(6, "token"), fp8=FP8_TOKENS,
    ),
    **_rounded("W4A8 per channel", weights(4, "channel"), PACKED, tokens=TOKENS, four_bits=inputs(4, "token")),
    **_rounded("W4A8 asymmetric", weights(4, "group", symmetric=False, size=64), PACKED, tokens=TOKENS),
    **_rounded("W4AFP8", weights(4, "group", size=128), PACKED, tokens=FP8_TOKENS),
    **_rounded("W4AFP8 per channel", weights(4, "channel"), PACKED, tokens=FP8_TOKENS),
    "FP8 of one scale, A16": {"weights": floats(8, "tensor"), "format": FLOATS},
    "FP8 per channel, A16": {"weights": floats(8, "channel"), "format": FLOATS},
    **_rounded(
        "FP8 of one scale", floats(8, "tensor"), FLOATS, tokens=FP8_TOKENS,
        fixed=inputs(8, "tensor", dynamic=False, kind="float"),
    ),
    **_rounded("FP8 per channel", floats(8, "channel"), FLOATS, tokens=FP8_TOKENS),
    **_rounded("FP8 in blocks", floats(8, "block"), FLOATS, groups=FP8_GROUPS),
    "NVFP4A16": {"weights": NVFP4, "format": "nvfp4-pack-quantized"},
    **_rounded("NVFP4", NVFP4, "nvfp4-pack-quantized", same={**NVFP4, "dynamic": "local"}),
    "MXFP4A16": {"weights": MXFP4, "format": "mxfp4-pack-quantized"},
    **_rounded("MXFP4", MXFP4, "mxfp4-pack-quantized", same={**MXFP4, "dynamic": True}),
    "MXFP8A16": {"weights": MXFP8, "format": "mxfp8-quantized"},
    **_rounded("MXFP8", MXFP8, "mxfp8-quantized", same={**MXFP8, "dynamic": True}),
}  # fmt: skip
"""Name -> a group of layers."""

CACHES: dict[str, QuantizationArgs] = {
    "FP8 per tensor": inputs(8, "tensor", dynamic=False, kind="float"),
    "FP8 per head": inputs(8, "attn_head", dynamic=False, kind="float"),
    "FP8 per token": inputs(8, "token", kind="float"),
    "INT8": inputs(8, "tensor", dynamic=False),
    "INT4 in groups": {**inputs(4, "group", size=32), "symmetric": False},
}
"""Name -> a ``kv_cache_scheme``."""


def config_of(
    groups: dict[str, QuantizationScheme], *, ignore: tuple[str, ...] = ("lm_head",), **others: Any
) -> dict[str, Any]:
    """Return a ``quantization_config`` of these groups; a group without targets has all linear layers."""
    forms = {str(scheme["format"]) for scheme in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {name: {"targets": ["Linear"], **scheme} for name, scheme in groups.items()},
        "ignore": list(ignore),
        **others,
    }
