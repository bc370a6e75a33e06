"""HQQ (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023). No data.

A group of weights W becomes ``W_q = clamp(round(W / s + z))`` and reads back as ``W_r = s (W_q - z)``. The scale s is
that of round to nearest on [min, max]. The zero point z is a float: the one of least error in the lp norm, p < 1, which
lets a few outliers have large errors. Half-quadratic splitting makes the error a variable of its own, W_e,

    argmin over z, W_e of  φ(W_e) + β/2 ‖W_e - (W - W_r)‖²,    φ(x) = Σ |x|^p

and solves for W_e and z by turns, while β grows by the factor κ:

    W_e = shrink(W - W_r, β, p)           shrink(x, β, p) = sign(x) relu(|x| - |x|^(p-1) / β)
    z   = mean of W_q - (W - W_e) / s     over the group

until the mean of |W - W_r| no longer falls. So does the authors' program, which holds 1 / s for s and, in its release
0.2.8, leaves β as it is. The rows of a large layer are solved some at a time, and stop for themselves. s is rounded to
the checkpoint's dtype before the turns, z after them and before the last W_q: what is stored is what was computed with.
Codes are signed, and z counts from their middle. Zero need not be on the grid, so a pruned model's zeros do not stay.

W, W_q, W_r and W_e are [rows, groups, width]; s and z are [rows, groups, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.info import SCALES, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.grid import WIDTHS, GroupSettings, Quantized, group_width
from hemorrhage.compress.solvers.packing import store
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(GroupSettings):
    """The norm and the schedule of the turns; the defaults are those of the authors' program."""

    words: ClassVar[Mapping[str, Wording]] = {**GroupSettings.words, "p": "l{} norm", "beta": "β {}", "kappa": "κ {}"}

    p: Annotated[float, Field(gt=0, le=1)] = 0.7
    beta: Annotated[float, Field(gt=0)] = 10.0
    kappa: Annotated[float, Field(ge=1)] = 1.01
    iterations: Annotated[int, Field(ge=1, strict=True)] = 20


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place. Raises RefusedError where groups don't divide a layer's inputs."""
    with torch.no_grad():
        for name, linear in remaining(model, linears_of(model), context.progress):
            width = group_width(name, linear.in_features, settings)
            store(model, name, quantize(linear.weight, width, settings), settings)


def quantize(weight: Tensor, width: int, settings: Settings) -> Quantized:
    """Quantize ``weight`` [rows, columns] in groups of ``width`` columns."""
    W = weight.unflatten(1, (-1, width))
    pieces = [solve(rows, settings) for rows in W.split(rows_at_once(weight.shape[1]))]
    W_q, s, z = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
    return Quantized(W_q.flatten(1), s.squeeze(2), z.squeeze(2))


def solve(weights: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_q int8, s and z of groups of ``weights``, in whose dtype s and z are; see the module's docstring."""
    W, dtype, beta = weights.float(), weights.dtype, settings.beta
    half = 2 ** (settings.bits - 1)
    s = fit_scale(W, 2 * half - 1, dtype)
    z = -half - W.amin(2, keepdim=True) / s
    error = torch.inf
    for _ in range(settings.iterations):
        W_q = (W / s + z).round_().clamp_(-half, half - 1)
        W_r = s * (W_q - z)
        W_e = shrink(W - W_r, beta, settings.p)
        z = (W_q - (W - W_e) / s).mean(2, keepdim=True)
        beta *= settings.kappa
        before, error = error, (W - W_r).abs().mean().item()
        if error >= before:
            break
    z = z.to(dtype).float()
    W_q = (W / s + z).round_().clamp_(-half, half - 1)
    return W_q.to(torch.int8), s.to(dtype), z.to(dtype)


def shrink(x: Tensor, beta: float, p: float) -> Tensor:
    """Return the proximal operator of the lp norm: ``sign(x) relu(|x| - |x|^(p-1) / β)``."""
    return x.sign() * (x.abs() - x.abs().pow(p - 1) / beta).relu()


def fit_scale(W: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Return the scale of each group, ``(max - min) / steps``, in float32, as ``dtype`` holds it.

    It is no finer than ``dtype`` tells the group's weights apart, or z of weights that are all alike had no bounds.
    """
    low, high = W.aminmax(dim=2, keepdim=True)
    finest = torch.finfo(dtype).eps * torch.maximum(-low, high)
    s = torch.maximum((high - low) / steps, finest).to(dtype)
    # A group of zeros reads back as zeros by any scale.
    return torch.where(s == 0, 1, s).float()


METHOD = Method(
    MethodInfo(
        title="Half-quadratic quantization (HQQ)",
        summary="float zero points of least error in the lp norm, p < 1, by half-quadratic splitting",
        papers=(Paper("Badri and Shaji 2023"),),
        examples=({"bits": 4, "group_size": 64}, {"bits": 3, "group_size": 64, "p": 0.5}),
        storage=("affine",),
        improves_on=(
            Comparison(
                SCALES,
                "rtn",
                same=("bits", "group_size"),
                untreated={"symmetric": (False,), "keep_zeros": (False,)},
            ),
        ),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
