"""Number formats of weights besides integers, and how the inputs of the layers are rounded.

A weight w becomes the nearest number of the format to ``w / Δ`` and reads back as that number times Δ. Numbers are of
E4M3 (FP8, up to 448) or E2M1 (FP4, up to 6), Δ is ``max|w| / 448`` or ``/ 6`` of the weights that share it:

    fp8         E4M3, a scale a row, in the dtype of the checkpoint
    fp8_tensor  E4M3, a scale a layer
    fp8_block   E4M3, a scale for 128 x 128 weights
    nvfp4       E2M1, a scale for 16 weights of a row, of E4M3 over one of the layer: ``G = 448 · 6 / max|W|``
    mxfp4       E2M1, a scale for 32 weights of a row, a power of two
    mxfp8       E4M3, a scale for 32 weights of a row, a power of two

These are the presets of compressed-tensors (FP8, FP8_DYNAMIC, FP8_BLOCK, NVFP4, MXFP4, MXFP8); MX is the OCP
specification, version 1.0. Layers that read one input share G and the scale of a layer: engines join them.

``block_scales`` chooses the scales of groups of E2M1 by the error that they leave, the sum of squares over the group:

    four_over_six  the largest weight becomes 6 or 4, whichever errs less (Cook et al., arXiv 2512.02010): above 4
                   numbers lie far apart
    mse            the best of the scales near that of the largest weight, as ScaleSearch and ModelOpt sweep them (Gupta
                   et al., arXiv 2605.12464): numbers of E4M3 from ``NEAR`` below to above, powers of two beside it

Both leave room above: ``G = 256 · 6 / max|W|``, as in the authors' code of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from hemorrhage.compress.info import SCALES, Comparison
from hemorrhage.compress.method import ConfigJson, Wording
from hemorrhage.compress.solvers.grid import GRID, GridSettings, Quantized, group_width
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme

BLOCK = 128
"""Rows and columns of a block of ``fp8_block``."""

Number = Literal["e2m1", "e4m3"]


@dataclass(frozen=True)
class FloatFormat:
    """A format of floating-point weights.

    ``width`` and ``height``: columns and rows that share a scale, None for all of a layer; ``scales``: what a scale is,
    a number of the checkpoint's dtype, of E4M3, or a power of two; ``stored``: compressed-tensors' name of the storage.
    """

    title: str
    number: Number
    width: int | None
    height: int | None
    scales: Literal["dtype", "e4m3", "power"]
    stored: str

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return 4 if self.number == "e2m1" else 8

    @property
    def weights(self) -> QuantizationArgs:
        """The format as compressed-tensors' configuration describes weights."""
        match self.width, self.height:
            case None, None:
                strategy = "tensor"
            case None, _:
                strategy = "channel"
            case _, 1:
                strategy = "tensor_group" if self.scales == "e4m3" else "group"
            case _:
                strategy = "block"
        arguments: QuantizationArgs = {
            "num_bits": self.bits,
            "type": "float",
            "symmetric": True,
            "strategy": strategy,
            "group_size": self.width if self.height == 1 else None,
            "dynamic": False,
        }
        return {**arguments, "block_structure": [BLOCK, BLOCK]} if strategy == "block" else arguments


FLOATS: Mapping[str, FloatFormat] = {
    "fp8": FloatFormat("FP8 per channel", "e4m3", None, 1, "dtype", "float-quantized"),
    "fp8_tensor": FloatFormat("FP8 per tensor", "e4m3", None, None, "dtype", "float-quantized"),
    "fp8_block": FloatFormat(f"FP8 in blocks of {BLOCK} x {BLOCK}", "e4m3", BLOCK, BLOCK, "dtype", "float-quantized"),
    "nvfp4": FloatFormat("NVFP4", "e2m1", 16, 1, "e4m3", "nvfp4-pack-quantized"),
    "mxfp4": FloatFormat("MXFP4", "e2m1", 32, 1, "power", "mxfp4-pack-quantized"),
    "mxfp8": FloatFormat("MXFP8", "e4m3", 32, 1, "power", "mxfp8-quantized"),
}
"""Name in params.yaml -> format. The names of settings are those of FormatSettings."""


@dataclass(frozen=True)
class InputFormat:
    """How the inputs of a layer are rounded: in words, and as compressed-tensors' ``input_activations`` say it.

    ``fixed``: the tensor of a range that a calibration has found, empty where there is none.
    """

    title: str
    arguments: QuantizationArgs
    fixed: str = ""


def _inputs(
    bits: int, kind: str, strategy: str, size: int | None = None, dynamic: bool | str = True, scale: str | None = None
) -> QuantizationArgs:
    arguments: QuantizationArgs = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy}
    if size is not None:
        arguments["group_size"] = size
    if scale is not None:
        arguments["scale_dtype"] = scale
    return {**arguments, "dynamic": dynamic}


INPUTS: Mapping[str, InputFormat] = {
    "int8_token": InputFormat("INT8 inputs per token", _inputs(8, "int", "token")),
    "int8_tensor": InputFormat("INT8 inputs per tensor", _inputs(8, "int", "tensor")),
    "int8_static": InputFormat("static INT8 inputs", _inputs(8, "int", "tensor", dynamic=False), "input_scale"),
    "int4_token": InputFormat("INT4 inputs per token", _inputs(4, "int", "token")),
    "fp8_token": InputFormat("FP8 inputs per token", _inputs(8, "float", "token")),
    "fp8_static": InputFormat("static FP8 inputs", _inputs(8, "float", "tensor", dynamic=False), "input_scale"),
    "fp8_group": InputFormat(f"FP8 inputs in groups of {BLOCK}", _inputs(8, "float", "group", BLOCK)),
    "nvfp4": InputFormat(
        "NVFP4 inputs",
        _inputs(4, "float", "tensor_group", 16, "local", "torch.float8_e4m3fn"),
        "input_global_scale",
    ),
    "mxfp4": InputFormat("MXFP4 inputs", _inputs(4, "float", "group", 32, scale="torch.uint8")),
    "mxfp8": InputFormat("MXFP8 inputs", _inputs(8, "float", "group", 32, scale="torch.uint8")),
}
"""Name in params.yaml -> how inputs are rounded. Engines combine them with weights as the table of engines says."""

ROOM = 256.0
"""What the scale of the largest weight is in E4M3 where scales are chosen: 1.5 times it is 384, a number of it, too."""

NEAR = (-5, 8)
"""How many numbers of E4M3 below and above the scale of the largest weight are tried."""

SEARCHED = {"four_over_six": ("nvfp4",), "mse": ("nvfp4", "mxfp4")}
"""Way to choose scales of groups -> the formats it is for."""

BlockScales = Literal["max", "four_over_six", "mse"]

FORMAT = (*GRID, "format", "inputs", "block_scales")
"""Settings of a number format: what a method has in common with the rounding that it improves on."""

CHOSEN = Comparison(
    SCALES,
    same=tuple(name for name in FORMAT if name != "block_scales"),
    untreated={"block_scales": ("max",)},
    changed=("block_scales",),
)
"""Scales that are chosen, against those of the largest weight."""


class FormatSettings(GridSettings):
    """Settings of a grid of integers or of a floating-point format, and of the inputs of the layers.

    ``bits`` and ``group_size`` follow from a floating-point ``format``. Where inputs are rounded, integers are
    symmetric: engines multiply them without zero points.
    """

    words: ClassVar[Mapping[str, Wording]] = {
        **GridSettings.words,
        "format": {name: each.title for name, each in FLOATS.items()},
        "inputs": {name: each.title for name, each in INPUTS.items()},
        "block_scales": {"four_over_six": "4/6 scales", "mse": "searched scales"},
    }

    format: Literal["int", "fp8", "fp8_tensor", "fp8_block", "nvfp4", "mxfp4", "mxfp8"] = "int"
    inputs: (
        Literal[
            "int8_token",
            "int8_tensor",
            "int8_static",
            "int4_token",
            "fp8_token",
            "fp8_static",
            "fp8_group",
            "nvfp4",
            "mxfp4",
            "mxfp8",
        ]
        | None
    ) = None
    block_scales: BlockScales = "max"

    @model_validator(mode="after")
    def _searched(self) -> FormatSettings:
        allowed = SEARCHED.get(self.block_scales)
        if allowed is not None and self.format not in allowed:
            raise ValueError(f"block_scales {self.block_scales} is for format {' and '.join(allowed)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("format", "int") not in ("int", *FLOATS):
            raise ValueError(f"format must be int, {', '.join(FLOATS)} (got {values['format']!r})")
        of_format: dict[str, object] = {}
        number = FLOATS.get(str(values.get("format")))
        if number is not None:
            of_format = {"bits": number.bits, "group_size": number.width or "channel", "symmetric": True}
        elif values.get("inputs") is not None:
            of_format = {"symmetric": True}
        for key, value in of_format.items():
            if values.get(key, value) != value:
                what = values["format"] if number is not None else "rounded inputs"
                raise ValueError(f"{key} {values[key]} does not go with {what}, which has {key} {value}")
        return {**values, **of_format}

    @property
    def number(self) -> FloatFormat | None:
        """The floating-point format; None for integers."""
        return FLOATS.get(self.format)

    @property
    def common(self) -> list[str]:
        """Names of the settings that the points of one damage curve share; a format says its groups by its name."""
        implied = {"group_size", "symmetric"} if self.number else set()
        return [name for name in super().common if name not in implied]

    @property
    def statistics(self) -> tuple[str, ...]:
        """The inputs' ranges, where their scale is fixed."""
        return ("activations",) if self.inputs and INPUTS[self.inputs].fixed else ()

    @property
    def theoretical(self) -> str:
        """Speed, where inputs are rounded: the arithmetic is emulated."""
        return "speed: the arithmetic of rounded inputs is emulated in floating point" if self.inputs else ""

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        return None if self.format == "fp8_block" else super().check(config)

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide a layer's inputs; the last block of a row may be smaller."""
        return None if self.format == "fp8_block" else super().check_model(model)


@dataclass(frozen=True)
class QuantizedFloats:
    """A layer's numbers float8_e4m3fn [rows, columns], which holds those of E2M1 too, and its scales as stored.

    ``scale``: see hemorrhage.models.formats.floats; ``total`` float32 [1] divides it, None without one.
    """

    numbers: Tensor
    scale: Tensor
    total: Tensor | None
    format: FloatFormat

    def cpu(self) -> QuantizedFloats:
        """Return the same in the processor's memory."""
        total = None if self.total is None else self.total.cpu()
        return QuantizedFloats(self.numbers.cpu(), self.scale.cpu(), total, self.format)

    def dense(self) -> Tensor:
        """Return the weights that a reader of the checkpoint sees: float32 [rows, columns]."""
        from hemorrhage.models.formats import small_floats

        rows, columns = self.numbers.shape
        steps = small_floats.step_sizes(self.scale, self.total)
        area = self.format.height or rows, self.format.width or columns
        return small_floats.multiplied(self.numbers.float(), steps, area)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store, by suffix."""
        from hemorrhage.models.formats import small_floats

        is_packed = self.format.number == "e2m1"
        codes = {"weight_packed": small_floats.pack_e2m1(self.numbers)} if is_packed else {"weight": self.numbers}
        total = {} if self.total is None else {"weight_global_scale": self.total}
        return {**codes, "weight_scale": self.scale, **total}


@dataclass(frozen=True)
class Steps:
    """Scales of groups: float32 of one shape.

    ``scale`` is the number that is stored, ``Δ`` what numbers are multiplied with.
    """

    scale: Tensor
    Δ: Tensor


def layer_total(weights: list[Tensor], number: FloatFormat, block_scales: BlockScales = "max") -> Tensor | None:
    """Return G float32 [1] of the layers ``weights`` that read one input; None for formats without."""
    if number.scales != "e4m3":
        return None
    from hemorrhage.models.formats.small_floats import E4M3_MAX

    largest = torch.stack([weight.abs().amax().float() for weight in weights]).amax()
    return _total(largest, E4M3_MAX if block_scales == "max" else ROOM)


def _total(largest: Tensor, top: float) -> Tensor:
    """Return float32 [1] that brings the scales of numbers of E2M1 up to ``largest`` to ``top``."""
    from hemorrhage.models.formats.small_floats import E2M1_MAX

    total = top * E2M1_MAX / largest.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(total.isfinite(), total, 1.0).reshape(1)


def fit_steps(largest: Tensor, number: FloatFormat, dtype: torch.dtype, total: Tensor | None) -> Steps:
    """Return the scales of groups whose largest magnitude is ``largest``, float32 of any shape.

    ``dtype`` is that of stored scales, ``total`` broadcasts to them.
    """
    from hemorrhage.models.formats import small_floats

    if number.scales == "power":
        powers = small_floats.power_of_two(largest, number.bits)
        return Steps(powers, powers)
    scale = largest / (small_floats.E4M3_MAX if number.number == "e4m3" else small_floats.E2M1_MAX)
    if total is None:
        # A group of zeros reads back as zeros by any scale.
        scale = scale.to(dtype)
        scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale).float()
        return Steps(scale, scale)
    scale = small_floats.round_e4m3(scale * total)
    scale = torch.where(scale == 0, torch.finfo(torch.float8_e4m3fn).eps, scale)
    return Steps(scale, scale / total)


def search_steps(
    groups: Tensor,
    dim: int,
    number: FloatFormat,
    total: Tensor | None,
    block_scales: BlockScales,
    importance: Tensor | None = None,
) -> Steps:
    """Return the scales of ``groups`` float32, whose weights lie along ``dim``, that leave the least error.

    ``total`` broadcasts to the scales, ``importance`` of squared errors to the groups. Of scales that are equally good
    it is that of the largest weight.
    """
    tried = _candidates(groups.abs().amax(dim), number, total, block_scales)
    best = next(tried)
    least = _squares(groups, best.Δ.unsqueeze(dim), number, importance).sum(dim)
    for steps in tried:
        error = _squares(groups, steps.Δ.unsqueeze(dim), number, importance).sum(dim)
        is_better = error < least
        least = torch.where(is_better, error, least)
        best = Steps(torch.where(is_better, steps.scale, best.scale), torch.where(is_better, steps.Δ, best.Δ))
    return best


def nearest_in_groups(
    groups: Tensor, number: FloatFormat, dtype: torch.dtype, total: Tensor | None, block_scales: BlockScales
) -> Tensor:
    """Return ``groups`` float32 [..., width], each with a scale of its own, as they read back."""
    if block_scales == "max":
        Δ = fit_steps(groups.abs().amax(-1), number, dtype, total).Δ.unsqueeze(-1)
    else:
        Δ = search_steps(groups, -1, number, total, block_scales).Δ.unsqueeze(-1)
    return nearest_(groups / Δ, number).mul_(Δ)


def _candidates(
    largest: Tensor, number: FloatFormat, total: Tensor | None, block_scales: BlockScales
) -> Iterator[Steps]:
    """Yield the scales to try of groups with the ``largest`` magnitudes, first those that bring these to the end."""
    first = fit_steps(largest, number, largest.dtype, total)
    yield first
    if block_scales == "four_over_six":
        yield fit_steps(1.5 * largest, number, largest.dtype, total)
    elif total is None:
        for factor in (0.5, 2.0):
            powers = (first.scale * factor).clamp(2.0**-127, 2.0**127)
            yield Steps(powers, powers)
    else:
        # Positive numbers of E4M3 are in the order of their bytes, from the least to 448.
        octets = first.scale.to(torch.float8_e4m3fn).view(torch.uint8).int()
        for distance in range(NEAR[0], NEAR[1] + 1):
            near = (octets + distance).clamp(1, 126).to(torch.uint8).view(torch.float8_e4m3fn).float()
            yield Steps(near, near / total)


def _squares(groups: Tensor, Δ: Tensor, number: FloatFormat, importance: Tensor | None) -> Tensor:
    """Return the squared errors of ``groups``, rounded in steps ``Δ``, times their ``importance``."""
    squares = nearest_(groups / Δ, number).mul_(Δ).sub_(groups).square_()
    return squares if importance is None else squares.mul_(importance)


def nearest_(x: Tensor, number: FloatFormat) -> Tensor:
    """Round float32 ``x``, counted in steps, to the numbers of the format in place."""
    from hemorrhage.models.formats import small_floats

    return small_floats.nearest_e2m1_(x) if number.number == "e2m1" else small_floats.nearest_e4m3_(x)


def spread_largest(largest: Tensor, number: FloatFormat, heights: list[int]) -> Tensor:
    """Return ``largest`` [..., rows] of each row as that of all rows with which it shares a scale.

    ``heights`` are the rows of the layers, one after the other; the scale of a layer is that of all of them.
    """
    if number.height == 1:
        return largest
    if number.height is None:
        return largest.amax(-1, keepdim=True).expand_as(largest)
    blocks = [
        rows.amax(-1, keepdim=True).expand_as(rows)
        for layer in largest.split(heights, dim=-1)
        for rows in layer.split(number.height, dim=-1)
    ]
    return torch.cat(blocks, dim=-1)


def stored_scales(scale: Tensor, number: FloatFormat, dtype: torch.dtype) -> Tensor:
    """Return the scales float32 [rows, groups] of a layer's rows as they are stored."""
    from hemorrhage.models.formats import small_floats

    if number.height is None:
        return scale[0, 0].to(dtype).reshape(1)
    # A column alone counts as contiguous, whatever lies between its numbers.
    scale = scale[:: number.height].clone(memory_format=torch.contiguous_format)
    match number.scales:
        case "power":
            return small_floats.exponent_bytes(scale)
        case "e4m3":
            return scale.to(torch.float8_e4m3fn)
        case _:
            return scale.to(dtype)


def round_to_nearest(
    weights: list[Tensor], number: FloatFormat, dtype: torch.dtype, block_scales: BlockScales = "max"
) -> list[QuantizedFloats]:
    """Return the layers ``weights`` [rows_i, columns] that read one input, each number the nearest of the format.

    ``dtype`` is that of the checkpoint. Every format has a zero, so zeros stay.
    """
    total = layer_total(weights, number, block_scales)
    heights = [len(weight) for weight in weights]
    if block_scales == "max":
        rows = torch.cat([_largest(weight, number) for weight in weights])
        steps = fit_steps(spread_largest(rows.T, number, heights).T, number, dtype, total)
    else:
        steps = _searched_steps(weights, number, total, block_scales)
    return [
        QuantizedFloats(_numbers(weight, Δ, number), stored_scales(scale, number, dtype), total, number)
        for weight, scale, Δ in zip(weights, steps.scale.split(heights), steps.Δ.split(heights), strict=True)
    ]


def _searched_steps(
    weights: list[Tensor], number: FloatFormat, total: Tensor | None, block_scales: BlockScales
) -> Steps:
    """Return the scales [rows, groups] of all rows of ``weights``, chosen by their error."""
    from hemorrhage.models.stream import rows_at_once

    width = number.width or weights[0].shape[1]
    pieces = [
        search_steps(rows.float().unflatten(1, (-1, width)), 2, number, total, block_scales)
        for weight in weights
        for rows in weight.split(rows_at_once(weight.shape[1]))
    ]
    return Steps(torch.cat([each.scale for each in pieces]), torch.cat([each.Δ for each in pieces]))


def _largest(weight: Tensor, number: FloatFormat) -> Tensor:
    """Return the largest magnitudes float32 [rows, groups] of the groups of columns of ``weight``."""
    width = number.width or weight.shape[1]
    return torch.stack([group.abs().amax(1) for group in weight.split(width, dim=1)], dim=1).float()


def _numbers(weight: Tensor, Δ: Tensor, number: FloatFormat) -> Tensor:
    """Return ``weight`` [rows, columns] in steps ``Δ`` [rows, groups] as numbers of the format: float8_e4m3fn."""
    from hemorrhage.models.stream import rows_at_once

    column_of = torch.arange(weight.shape[1], device=weight.device) // (number.width or weight.shape[1])
    step = rows_at_once(weight.shape[1])
    pieces = [
        _signed_nearest(rows.float() / of[:, column_of], number).to(torch.float8_e4m3fn)
        for rows, of in zip(weight.split(step), Δ.split(step), strict=True)
    ]
    return torch.cat(pieces)


def _signed_nearest(x: Tensor, number: FloatFormat) -> Tensor:
    """Return ``x`` rounded; what becomes zero keeps its sign, as in compressed-tensors' files."""
    from hemorrhage.models.formats import small_floats

    return small_floats.round_e2m1(x) if number.number == "e2m1" else small_floats.round_e4m3(x)


def scheme_of_floats(number: FloatFormat) -> QuantizationScheme:
    """Return the group of compressed-tensors' configuration of layers in the format."""
    return {"weights": number.weights, "format": number.stored}


def fixed_input(inputs: str, largest: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors to store, by suffix, of inputs that reach up to ``largest``, of any shape.

    Empty where the range of inputs is not fixed. ``dtype`` is that of the checkpoint.
    """
    from hemorrhage.models.emulation.activations import scale_of
    from hemorrhage.models.formats import small_floats

    suffix = INPUTS[inputs].fixed
    if not suffix:
        return {}
    top = largest.amax().float()
    if suffix == "input_global_scale":
        return {suffix: _total(top, small_floats.E4M3_MAX)}
    if INPUTS[inputs].arguments["type"] == "int":
        return {suffix: scale_of(top, INPUTS[inputs].arguments["num_bits"]).to(dtype).reshape(1)}
    return {suffix: fit_steps(top, FLOATS["fp8_tensor"], dtype, None).scale.to(dtype).reshape(1)}


AnyQuantized = Quantized | QuantizedFloats


def columns_of_scale(name: str, columns: int, settings: FormatSettings) -> int:
    """Return how many of ``columns`` share a scale in the layer ``name``; of blocks the last may be smaller.

    Raises RefusedError where groups don't divide them.
    """
    return BLOCK if settings.format == "fp8_block" else group_width(name, columns, settings)
