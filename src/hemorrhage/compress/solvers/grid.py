"""Uniform quantization grids of integer codes, and the settings that all of their methods share.

A weight w of a group becomes the code ``q = clamp(round(w / s + z), -2^(b-1), 2^(b-1) - 1)`` and reads back
as ``(q - z) s``. Asymmetric: ``s = (max - min) / (2^b - 1)``, ``z = round(-2^(b-1) - min / s)``. Symmetric:
``s = 2 max|w| / (2^b - 1)``, ``z = 0``, which is the grid of the GPTQ code and of compressed-tensors; AWQ's
``s = max|w| / (2^(b-1) - 1)`` leaves one code unused. Zero is always on the grid: min is at most 0 and max
at least 0. The scale is rounded to the dtype of the checkpoint before it is used, so what is stored is
what was computed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hemorrhage.compress.info import Spacing
from hemorrhage.compress.method import ConfigJson, Settings, Wording
from hemorrhage.compress.solvers.widths import input_widths
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


GRID = ("bits", "group_size", "symmetric", "keep_zeros", "embeddings")
"""Settings of a grid: what a method has in common with the rounding that it improves on."""

WIDTHS = Spacing(2, 8, 1, whole=True)
"""Bits worth running next."""


def grouping(group_size: int | str) -> str:
    """Return how many weights share a scale, in words."""
    return "per channel" if group_size == "channel" else f"groups of {group_size}"


class GroupSettings(Settings):
    """Bits per code, and weights per scale.

    The severity is the bits of a code; scales and zero points are counted in the manifest's effective bits.
    """

    axis: ClassVar[str] = "bits"
    severity_field: ClassVar[str] = "bits"
    words: ClassVar[Mapping[str, Wording]] = {
        "bits": "{} bit",
        "group_size": grouping,
        "embeddings": "embedding and head {} bit",
    }
    always_named: ClassVar[tuple[str, ...]] = ("group_size",)

    bits: Annotated[int, Field(ge=2, le=8, strict=True)]
    group_size: Annotated[int, Field(ge=2, strict=True)] | Literal["channel"] = 128

    @property
    def code_bits(self) -> float:
        """Bits of a code."""
        return float(self.bits)

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        if self.group_size == "channel":
            return None
        for dimension, width in input_widths(config).items():
            if width % self.group_size:
                return f"group_size {self.group_size} does not divide the model's {dimension} of {width}"
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide a layer's inputs."""
        for name, linear in linears_of(model).items():
            group_width(name, linear.in_features, self)
        return None


class GridSettings(GroupSettings):
    """Settings of groups, and whether the grid is centred on zero."""

    words: ClassVar[Mapping[str, Wording]] = {**GroupSettings.words, "keep_zeros": "zeros kept"}

    symmetric: bool = False
    keep_zeros: bool = False
    """Weights that are zero before stay zero, as a pruned model's should."""


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of groups: float32 tensors of one shape; ``zero`` is whole-numbered."""

    scale: Tensor
    zero: Tensor
    bits: int

    def round(self, weights: Tensor, codes: Tensor, values: Tensor) -> None:
        """Write the ``codes`` of ``weights`` and the ``values`` they read back as, all float32 of one shape.

        ``weights`` are the elements of groups: [..., groups], one for each scale.
        """
        half = 2 ** (self.bits - 1)
        torch.div(weights, self.scale, out=codes).add_(self.zero).round_().clamp_(-half, half - 1)
        torch.sub(codes, self.zero, out=values).mul_(self.scale)


@dataclass(frozen=True)
class Quantized:
    """A layer's codes [rows, columns] and scales [rows, groups] in the checkpoint's dtype.

    Codes are of ``code_dtype``. The zero points are [rows, groups], None for a symmetric grid; of ``code_dtype`` where
    they are whole numbers, else of the checkpoint's dtype.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def cpu(self) -> Quantized:
        """Return the same in the processor's memory."""
        return Quantized(self.codes.cpu(), self.scale.cpu(), None if self.zero is None else self.zero.cpu())

    def dense(self) -> Tensor:
        """Return the weights that a reader of the checkpoint sees: float32 [rows, columns]."""
        groups: Tensor = self.codes.unflatten(1, (self.scale.shape[1], -1)).float()
        if self.zero is not None:
            groups = groups - self.zero.unsqueeze(2)
        return (groups * self.scale.float().unsqueeze(2)).flatten(1)


def code_dtype(bits: int) -> torch.dtype:
    """Return the type of codes of ``bits``: int8, or int16 above 8 bits, which no checkpoint here has."""
    return torch.int8 if bits <= 8 else torch.int16


def fit(weights: Tensor, dim: int, settings: GridSettings, dtype: torch.dtype) -> Grid:
    """Return the grid of the groups of float32 ``weights`` that lie along ``dim``, which the result has not."""
    low = weights.amin(dim).clamp_(max=0)
    high = weights.amax(dim).clamp_(min=0)
    steps = 2**settings.bits - 1
    span = 2 * torch.maximum(-low, high) if settings.symmetric else high - low
    scale = (span / steps).to(dtype)
    # A group of zeros has no span; any scale reads its zeros back as zeros.
    scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale).float()
    if settings.symmetric:
        return Grid(scale, torch.zeros_like(scale), settings.bits)
    half = 2 ** (settings.bits - 1)
    return Grid(scale, (-half - low / scale).round_().clamp_(-half, half - 1), settings.bits)


def group_width(name: str, columns: int, settings: GroupSettings) -> int:
    """Return weights per scale in a layer of ``columns`` inputs. Raises RefusedError where groups don't divide it."""
    if settings.group_size == "channel":
        return columns
    if columns % settings.group_size:
        raise RefusedError(f"group_size {settings.group_size} does not divide the {columns} inputs of {name}")
    return settings.group_size
