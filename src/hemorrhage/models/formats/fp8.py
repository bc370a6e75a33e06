"""Fine-grained FP8 as DeepSeek and Qwen publish it: a scale for each block of 128 rows and 128 columns.

``weight`` float8_e4m3fn [rows, columns]; ``weight_scale_inv`` float32, or bytes that are powers of two [blocks of rows,
blocks of columns], by which codes are multiplied in spite of its name; blocks at the end may be smaller. Mistral's
checkpoints, and AutoFP8's (``weight_scale``), have one scale for the whole weight. ``activation_scale``
(``input_scale``) is of checkpoints whose inputs have one fixed scale (``activation_scheme`` static); others round each
token's inputs in groups as wide as a block. The dense weight is computed in float32, as DeepSeek's and transformers'
code does for that dtype.

The bench stores ``weight_block_size`` int32 [2] beside these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from hemorrhage.models.formats import small_floats
from hemorrhage.models.formats.compressed import has_nan
from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.settings import Entry, parse

MARKS = ("weight_scale_inv", "weight_scale")
"""Suffixes of a quantized layer's tensors."""

SIZE = "weight_block_size"

Positive = Annotated[int, Field(gt=0, lt=2**31)]

_INPUT_SCALES = ("activation_scale", "input_scale")


class Settings(Entry):
    """What is read of config.json's ``quantization_config``."""

    weight_block_size: Annotated[tuple[Positive, Positive], Field(strict=False)] | None = None
    activation_scheme: Literal["dynamic", "static"] = "dynamic"


class BlockFloatLinear(DequantizedLinear):
    """A linear layer of FP8 numbers with a scale for each block, dequantized whenever it computes."""

    storage_format = "fp8"

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        """Take the tensors ``stored`` as in the module's docstring. Raises ValueError where they don't fit."""
        check(stored)
        rows, columns = stored["weight"].shape
        super().__init__((rows, columns), dict(stored), None)
        self.inputs: QuantizationArgs = {"num_bits": 8, "type": "float", "symmetric": True}
        if "input_scale" in stored:
            self.inputs |= {"strategy": "tensor", "dynamic": False}
        else:
            self.inputs |= {"strategy": "group", "group_size": int(stored[SIZE][1]), "dynamic": True}

    def dense(self) -> Tensor:
        """Return what transformers dequantizes: float32 [rows, columns]."""
        stored = self.stored()
        height, width = stored[SIZE].tolist()
        scale = _scales(stored["weight_scale_inv"])
        column_of = torch.arange(self.in_features, device=scale.device) // width
        row_of = torch.arange(self.out_features, device=scale.device) // height

        def piece(rows: slice) -> Tensor:
            return stored["weight"][rows].float() * scale[row_of[rows]][:, column_of]

        return self.by_rows(piece)


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], _layer: str) -> BlockFloatLinear:
    """Return the layer that ``stored`` holds. Blocks are 128 x 128 where ``quantization`` does not say their size."""
    settings = parse(Settings, quantization)
    tensors = {suffix: value for suffix, value in stored.items() if suffix not in (*_INPUT_SCALES, "weight_scale")}
    if "weight_scale" in stored:
        if "weight_scale_inv" in stored:
            raise ValueError("has both weight_scale and weight_scale_inv")
        tensors["weight_scale_inv"] = stored["weight_scale"]
    size = settings.weight_block_size or (128, 128)
    scale, weight = tensors.get("weight_scale_inv"), tensors.get("weight")
    if scale is not None and weight is not None and weight.dim() == 2 and _is_whole(scale, settings):
        tensors["weight_scale_inv"], size = scale.reshape(1, 1), (weight.shape[0], weight.shape[1])
    fixed = [stored[name] for name in _INPUT_SCALES if name in stored]
    if settings.activation_scheme == "static":
        if not fixed:
            raise ValueError("input_scale is missing, and activation_scheme is static")
        tensors["input_scale"] = fixed[0]
    return BlockFloatLinear({**tensors, SIZE: torch.tensor(size, dtype=torch.int32)})


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the size of the blocks and how inputs are rounded, in words."""
    settings = parse(Settings, quantization)
    is_static = settings.activation_scheme == "static"
    if settings.weight_block_size is None:
        return f"FP8, inputs FP8 per {'tensor, static' if is_static else 'token'}"
    height, width = settings.weight_block_size
    inputs = "per tensor, static" if is_static else f"in groups of {width} per token"
    return f"fine-grained FP8, blocks of {height}x{width}, inputs FP8 {inputs}"


def _is_whole(scale: Tensor, settings: Settings) -> bool:
    """Return whether one scale is for all of a weight, as Mistral and AutoFP8 publish it."""
    return scale.numel() == 1 and (scale.dim() < 2 or settings.weight_block_size is None)


def check(stored: Mapping[str, Tensor]) -> None:
    """Raise ValueError where tensors are missing or surplus, or don't fit each other."""
    for surplus in sorted(set(stored) - {"weight", "weight_scale_inv", "input_scale", SIZE}):
        raise ValueError(f"unexpected tensor {surplus}")
    for missing in sorted({"weight", "weight_scale_inv", SIZE} - set(stored)):
        raise ValueError(f"{missing} is missing")
    weight, scale, size = (stored[name] for name in ("weight", "weight_scale_inv", SIZE))
    if weight.dtype != torch.float8_e4m3fn or weight.dim() != 2 or not weight.numel():
        raise ValueError(f"weight of type {weight.dtype} and shape {list(weight.shape)} can't be read as FP8")
    if size.dtype.is_floating_point or size.numel() != 2 or bool((size <= 0).any()):
        raise ValueError(f"{SIZE} {size.tolist()} is not two positive numbers")
    (rows, columns), (height, width) = weight.shape, size.tolist()
    expected = (-(-rows // height), -(-columns // width))
    if tuple(scale.shape) != expected:
        raise ValueError(f"weight_scale_inv has the shape {list(scale.shape)}, and {list(expected)} fits the weight")
    if scale.dtype not in (*small_floats.REAL, torch.uint8, torch.float8_e8m0fnu):
        raise ValueError(f"weight_scale_inv of type {scale.dtype} can't be read")
    if not bool(_scales(scale).isfinite().all()):
        raise ValueError("weight_scale_inv is not finite")
    if has_nan(weight):
        raise ValueError("weight has a NaN")
    if "input_scale" in stored and not small_floats.is_scale(stored["input_scale"]):
        raise ValueError("input_scale is not one finite number above 0")


def _scales(scale: Tensor) -> Tensor:
    return small_floats.powers_of_two(scale) if scale.dtype == torch.uint8 else scale.float()


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> BlockFloatLinear:
    """Return the layer that a checkpoint's tensors ``stored`` describe."""
    return BlockFloatLinear(stored)
