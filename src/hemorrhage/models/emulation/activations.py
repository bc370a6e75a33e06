"""Emulation of rounded inputs of linear layers in a loaded model.

The inputs of a linear layer are rounded to a grid of integers and back, in float32, before the layer
computes: ``s · clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)`` with ``s = 2 max|x| / (2^b - 1)``, the symmetric
grid of compressed-tensors and of this bench's weights. The maximum is taken over each token (the last
dimension), over the whole tensor that enters the layer, or it was fixed when the checkpoint was written.
The products of integers that an engine would compute are thereby computed in float: the numbers are those of
the integer kernels up to float rounding, their speed is not.

Checkpoints that others published ask for more, in the arithmetic of compressed-tensors: asymmetric integers
(``q = clamp(round(x / s + z))``, read back as ``(q - z) s``), and numbers of E4M3 or E2M1 times a scale, over a token,
the whole tensor or groups of neighbouring features. The scale is ``max|x| / 448``, or ``/ 6``, and of three kinds: a
float; a number of E4M3 over a global scale that was fixed when the checkpoint was written (NVFP4); a power of two (MX),
of the binade of ``max|x|``, counted up by one from 1.75 times the power on.

A scale over the whole tensor depends on what is computed together: a longer prompt, another sequence in the
batch or padding changes it, and a token that is decoded alone has a scale of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hemorrhage.models.formats import small_floats
from hemorrhage.models.formats.config import QuantizationArgs

STRATEGIES = {"static": ("tensor", False), "tensor": ("tensor", True), "token": ("token", True)}
"""Range of a scale -> compressed-tensors' ``strategy`` and ``dynamic``."""

INPUT_TENSORS = ("input_scale", "input_zero_point", "input_global_scale", "input_scale_ub", "input_spared")
"""Suffixes of a layer's tensors that say how its inputs are rounded."""

_exact: list[bool] = [False]


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Keep all models from rounding inputs, keys or values inside the block.

    Rounding is not continuous: where float sums are taken in another order, on another processor, some values
    fall to the other side of a step. What a checkpoint holds can be compared between machines only without
    it.
    """
    _exact.append(True)
    try:
        yield
    finally:
        _exact.pop()


def is_exact() -> bool:
    """Return whether this is inside of ``exact()``."""
    return _exact[-1]


class RoundingHook:
    """A hook before a linear layer that rounds its input."""

    def __call__(self, _module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of the layer, the first of them rounded."""
        if is_exact() or not arguments[0].numel():
            return arguments
        return (self.round(arguments[0]), *arguments[1:])

    def round(self, x: Tensor) -> Tensor:
        """Round ``x`` [..., features] to its grid, in the dtype of ``x``."""
        raise NotImplementedError


@dataclass(frozen=True)
class InputRounding(RoundingHook):
    """Rounding to a symmetric grid of integers of ``bits`` bits.

    ``over`` is a key of STRATEGIES; ``scale`` is the fixed one of ``static``, else None.
    """

    bits: int
    over: str
    scale: float | None = None

    def round(self, x: Tensor) -> Tensor:
        """Round ``x`` [..., features] to its grid, in the dtype of ``x``."""
        if not x.numel():
            return x
        wide = x.float()
        if self.scale is not None:
            scale = torch.tensor(self.scale, device=x.device)
        else:
            largest = wide.abs().amax(-1, keepdim=True) if self.over == "token" else wide.abs().amax()
            scale = scale_of(largest, self.bits)
        half = 2 ** (self.bits - 1)
        return (wide / scale).round_().clamp_(-half, half - 1).mul_(scale).to(x.dtype)


@dataclass(frozen=True)
class SparingRounding(RoundingHook):
    """LLM.int8's: each token's input to 8 bits by its largest value, but for the features ``spared`` int64 [k].

    ``q = round(127 x / max|x|)``, the maximum without the spared ones.
    """

    spared: Tensor

    def round(self, x: Tensor) -> Tensor:
        """Round ``x`` [..., features] to its grid, in the dtype of ``x``."""
        spared = self.spared.to(x.device)
        wide = x.float().index_fill(-1, spared, 0)
        scale = wide.abs().amax(-1, keepdim=True) / 127
        scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
        rounded = (wide / scale).round_().mul_(scale).to(x.dtype)
        return rounded.index_copy(-1, spared, x.index_select(-1, spared))


@dataclass(frozen=True)
class AsymmetricRounding(RoundingHook):
    """Rounding to an asymmetric grid of integers of ``bits`` bits.

    ``over`` is a key of STRATEGIES; ``scale`` and ``zero`` are the fixed ones of ``static``, else None.
    """

    bits: int
    over: str
    scale: float | None = None
    zero: float | None = None

    def round(self, x: Tensor) -> Tensor:
        """Round ``x`` [..., features] to its grid, in the dtype of ``x``."""
        wide, half = x.float(), 2 ** (self.bits - 1)
        if self.scale is not None and self.zero is not None:
            scale, zero = torch.tensor(self.scale, device=x.device), torch.tensor(self.zero, device=x.device)
        else:
            low, high = wide.aminmax(dim=-1, keepdim=True) if self.over == "token" else wide.aminmax()
            # Zero is always on the grid.
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = (high - low) / (2**self.bits - 1)
            zero = torch.where(scale == 0, 0, (-half - low / scale).clamp(-half, half - 1)).round()
            scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
        codes = (wide / scale).add_(zero).clamp_(-half, half - 1).round_()
        return codes.sub_(zero).mul_(scale).to(x.dtype)


@dataclass(frozen=True)
class FloatRounding(RoundingHook):
    """Rounding to numbers of E4M3 (``bits`` 8) or E2M1 (4) times a scale.

    ``over`` is a key of STRATEGIES or ``group``, of ``group_size`` neighbouring features; ``scale`` is the fixed one of
    ``static``; ``total`` is NVFP4's global scale; ``is_power`` says that scales are powers of two; what is larger than
    ``limit`` is cut to it (FBGEMM).
    """

    bits: int
    over: str
    group_size: int = 0
    scale: float | None = None
    total: float | None = None
    is_e4m3: bool = False
    is_power: bool = False
    limit: float | None = None

    def round(self, x: Tensor) -> Tensor:
        """Round ``x`` [..., features] to its grid, in the dtype of ``x``."""
        wide = x.float()
        if self.over == "group":
            # The last group may be smaller.
            wide = nn.functional.pad(wide, (0, -wide.shape[-1] % self.group_size)).unflatten(-1, (-1, self.group_size))
        scale = self._scale(wide)
        ratio = wide / scale
        codes = small_floats.round_e4m3(ratio) if self.bits == 8 else small_floats.round_e2m1(ratio)
        rounded = codes.mul_(scale)
        if self.over == "group":
            rounded = rounded.flatten(-2)[..., : x.shape[-1]]
        return rounded.to(x.dtype)

    def _scale(self, wide: Tensor) -> Tensor:
        if self.scale is not None:
            return torch.tensor(self.scale, device=wide.device)
        largest = wide.abs().amax() if self.over == "tensor" else wide.abs().amax(-1, keepdim=True)
        if self.limit is not None:
            largest = largest.clamp(max=self.limit)
        if self.is_power:
            return small_floats.power_of_two(largest, self.bits)
        scale = largest / (small_floats.E4M3_MAX if self.bits == 8 else small_floats.E2M1_MAX)
        if not self.is_e4m3:
            return torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
        scale = small_floats.round_e4m3(scale if self.total is None else self.total * scale)
        # The smallest scale that the library lets a group of zeros have.
        scale = torch.where(scale == 0, 0.125, scale)
        return scale if self.total is None else scale / self.total


def scale_of(largest: Tensor, bits: int) -> Tensor:
    """Return the scale of the symmetric grid of ``bits`` bits that reaches ``largest`` >= 0, float32 of any shape."""
    scale = largest / ((2**bits - 1) / 2)
    # Zeros read back as zeros with any scale.
    return torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)


def quantization_args(rounding: InputRounding) -> QuantizationArgs:
    """Return the rounding as compressed-tensors' configuration has it (``input_activations``)."""
    strategy, dynamic = STRATEGIES[rounding.over]
    return {
        "num_bits": rounding.bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "dynamic": dynamic,
    }


def rounding_of(name: str, arguments: QuantizationArgs, stored: Mapping[str, Tensor]) -> RoundingHook:
    """Return the rounding that the configuration's ``arguments`` and the layer's tensors ``stored`` describe.

    Of these INPUT_TENSORS are read. Raises ValueError with the
    layer's ``name`` for what can't be emulated.
    """
    if "input_spared" in stored:
        return SparingRounding(stored["input_spared"])
    scale, zero = _number(name, stored, "input_scale"), _number(name, stored, "input_zero_point")
    wanted = (arguments.get("strategy"), arguments.get("dynamic"))
    over = next((over for over, strategy in STRATEGIES.items() if strategy == wanted), None)
    fixed = scale if over == "static" else None
    if (over == "static") == (scale is not None) and over is not None:
        match arguments.get("type"), arguments.get("symmetric"):
            case "int", True:
                return InputRounding(arguments["num_bits"], over, fixed)
            case "int", False:
                return AsymmetricRounding(arguments["num_bits"], over, fixed, zero if over == "static" else None)
            case "float", True if arguments["num_bits"] == 8:
                return FloatRounding(8, over, scale=fixed, limit=_number(name, stored, "input_scale_ub"))
    size = arguments.get("group_size") or 0
    is_group = wanted[0] in ("group", "tensor_group") and wanted[1] in (True, "local") and size > 0
    if is_group and arguments.get("type") == "float" and arguments["num_bits"] in (4, 8) and arguments.get("symmetric"):
        return _group_rounding(name, arguments, stored)
    raise ValueError(f"{name}: inputs quantized as {arguments} can't be emulated")


def _group_rounding(name: str, arguments: QuantizationArgs, stored: Mapping[str, Tensor]) -> FloatRounding:
    bits, size, dtype = arguments["num_bits"], arguments.get("group_size") or 0, str(arguments.get("scale_dtype"))
    if arguments["strategy"] != "tensor_group":
        # What the library takes for MX.
        return FloatRounding(bits, "group", size, is_power=size == 32 and "uint8" in dtype)
    total = _number(name, stored, "input_global_scale")
    direct = _number(name, stored, "input_scale")
    if total is None and direct is not None:
        # ModelOpt's multiplies the scales.
        total = float(1 / torch.tensor(direct))
    if arguments.get("dynamic") == "local" and total is None:
        raise ValueError(f"{name}: input_global_scale is missing, and inputs are quantized as {arguments}")
    return FloatRounding(bits, "group", size, total=total, is_e4m3="e4m3" in dtype)


def _number(name: str, stored: Mapping[str, Tensor], suffix: str) -> float | None:
    value = stored.get(suffix)
    if value is None:
        return None
    if value.numel() != 1 or not bool(value.float().isfinite().all()):
        raise ValueError(f"{name}: {suffix} is not one finite number")
    return float(value)
