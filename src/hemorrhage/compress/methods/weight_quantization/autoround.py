"""AutoRound, SignRound's algorithm (Cheng et al., arXiv 2309.05516): learn which way each weight is rounded.

Block by block, for every weight an offset V in [-0.5, 0.5] of its rounding, and for every group two shares alpha and
beta in [0, 1] of its range: ``s = (alpha · max - beta · min) / (2^b - 1)``, ``q = clamp(round(w / s + z + V))``. V
begins at 0, the shares at 1, which is round to nearest; ``iterations`` steps of signed gradient descent on the mean
squared error of the block's output follow, the gradient passing through every rounding as if it were not there, with a
step that falls from ``1 / iterations`` to 0. The best parameters that a step saw are kept. As in the authors' library
a block is tuned on what the quantized blocks before it give, towards the output the dense block has in the dense model.

In a floating-point format V counts the distance of the numbers around ``w / Δ``, which grows with them, and one share
in [0.5, 1] of a group's largest weight sets Δ; the gradient passes through the rounding of Δ as a share of it. The
layers that read one input keep one scale of NVFP4, that of their largest weight.

That library, auto-round, is what the test compares with. It is not the engine here because it leaves every layer
unquantized whose rows or columns are no multiple of 32, and because it changes the global state of torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator
from tqdm import tqdm

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.compress.solvers.grid import WIDTHS, GridSettings, Quantized, code_dtype, group_width
from hemorrhage.compress.solvers.number_formats import (
    FloatFormat,
    FormatSettings,
    QuantizedFloats,
    fit_steps,
    layer_total,
    nearest_,
    stored_scales,
)
from hemorrhage.compress.solvers.packing import store
from hemorrhage.compress.solvers.vocabulary import VocabularySettings, quantize_vocabulary
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.models.blockwise import BlockArguments


class Settings(VocabularySettings, FormatSettings):
    """Settings of AutoRound.

    ``samples``: the calibration windows that are tuned on, all where nothing is said; ``batch`` of them make a step.
    """

    words: ClassVar[Mapping[str, Wording]] = {
        **FormatSettings.words,
        "iterations": "{} steps",
        "samples": "{} windows",
        "batch": "batches of {}",
    }
    always_named: ClassVar[tuple[str, ...]] = (*GridSettings.always_named, "iterations")

    iterations: Annotated[int, Field(ge=1, strict=True)] = 200
    samples: Annotated[int, Field(ge=1, strict=True)] | None = None
    batch: Annotated[int, Field(ge=1, strict=True)] = 8

    @model_validator(mode="after")
    def _learned(self) -> Settings:
        if self.inputs is not None or self.block_scales != "max":
            raise ValueError(
                "AutoRound learns with exact inputs and finds scales itself: inputs null, block_scales max"
            )
        if self.number is not None and self.number.height != 1:
            raise ValueError(
                f"format {self.format}: AutoRound learns a scale for each row or group; this one has wider"
            )
        return self

    @model_validator(mode="after")
    def _enough(self) -> Settings:
        if self.samples is not None and self.samples < self.batch:
            raise ValueError(f"samples {self.samples} must be at least the batch of {self.batch}")
        return self

    @property
    def second_order(self) -> bool:
        """The roundings of a block's weights are learned together."""
        return True

    @property
    def statistics(self) -> tuple[str, ...]:
        """The calibration windows."""
        return ("tokens",)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place.

    Raises ValueError where the calibration set has too few windows, and for a block whose output is not finite.
    """
    from hemorrhage.models.blockwise import embed, in_float32

    tokens, current = context.calibration.tokens(), context.progress
    totals = _totals(model, settings, tokens)
    samples = settings.samples or max(len(tokens), settings.batch)
    if len(tokens) < samples:
        raise ValueError(f"wants {samples} calibration windows; the calibration set has {len(tokens)}")
    names = {linear: name for name, linear in linears_of(model).items()}
    generator = torch.Generator().manual_seed(context.seed)
    with torch.no_grad():
        # Windows enter one by one, so that masks and positions are those of a batch of any size.
        states, arguments = embed(model, tokens[:samples].to(model.device).split(1))
        dense = torch.cat(states)
        tuned = dense.clone()
        stack = tqdm(blocks(model), desc="autoround", unit="block", mininterval=5, leave=False)
        for index, block in enumerate(stack):
            linears = {name: linear for name, linear in block.named_modules() if linear in names}
            widths = {name: group_width(names[x], x.in_features, settings) for name, x in linears.items()}
            dtypes = {name: linear.weight.dtype for name, linear in linears.items()}
            with in_float32(block):
                target = run(block, {}, dense, arguments[index], settings.batch)
                if current is None or not current.done(index):
                    layers = {
                        name: _rounding(linear, widths[name], settings, dtypes[name], totals.get(names[linear]))
                        for name, linear in linears.items()
                    }
                    if not tune(block, layers, tuned, target, arguments[index], settings, generator):
                        raise ValueError(f"block {index}: its output is not finite")
                    quantized_layers = {name: layer.quantized() for name, layer in layers.items()}
                    weights = {f"{name}.weight": quantized.dense() for name, quantized in quantized_layers.items()}
                    tuned = run(block, weights, tuned, arguments[index], settings.batch)
            dense = target
            if current is not None and current.done(index):
                # What tuning would have drawn is drawn, so that the blocks behind see the same samples.
                list(itertools.islice(draws(samples, settings.batch, generator), settings.iterations))
                current.restore(model, index)
                with in_float32(block):
                    tuned = run(block, {}, tuned, arguments[index], settings.batch)
                continue
            for name, quantized in quantized_layers.items():
                store(model, names[linears[name]], quantized, settings)
            if current is not None:
                current.finish(model, index)
        quantize_vocabulary(model, settings.embeddings, settings.group_size, rtn.quantize)


def _totals(model: PreTrainedModel, settings: Settings, tokens: Tensor) -> dict[str, Tensor]:
    """Return the scale of each linear layer that divides those of its groups; empty where the format has none."""
    number = settings.number
    if number is None or number.scales != "e4m3":
        return {}
    from hemorrhage.calibrate.statistics import shared_inputs

    linears = linears_of(model)
    with torch.no_grad():
        shared = shared_inputs(model, tokens[:1, :8])
        totals = {
            first: layer_total([linears[name].weight for name in names], number) for first, names in shared.items()
        }
    return {name: total for first, total in totals.items() if total is not None for name in shared[first]}


def _rounding(
    linear: nn.Linear, width: int, settings: Settings, dtype: torch.dtype, total: Tensor | None
) -> Rounding | FloatRounding:
    """Return the roundings of a layer's float32 weights, with parameters to learn."""
    if settings.number is None:
        return Rounding(linear.weight.data, width, settings, dtype)
    return FloatRounding(linear.weight.data, width, settings.number, dtype, total)


class FloatRounding:
    """A layer's weights, and the parameters that say how they are rounded to numbers of a floating-point format."""

    def __init__(
        self, weight: Tensor, width: int, number: FloatFormat, dtype: torch.dtype, total: Tensor | None
    ) -> None:
        """``weight`` float32 [rows, columns], ``width`` columns to a group; scales are stored in ``dtype``."""
        from hemorrhage.models.formats import small_floats

        self._groups = weight.unflatten(1, (-1, width))
        self._largest = self._groups.abs().amax(2)
        self._number, self._dtype, self._total = number, dtype, total
        # The first binade whose numbers lie further apart than those before, and the bits of a mantissa.
        self._finest, self._mantissa, self._top = (
            (0, 1, small_floats.E2M1_MAX) if number.number == "e2m1" else (-6, 3, small_floats.E4M3_MAX)
        )
        self.offset = torch.zeros_like(self._groups, requires_grad=True)
        """V: float32 [rows, groups, width]."""
        self.shares = torch.ones_like(self._largest, requires_grad=True)
        """Of the largest weight: float32 [rows, groups]."""

    def values(self) -> Tensor:
        """Return the rounded weights float32 [rows, columns], differentiable in ``offset`` and ``shares``."""
        numbers, Δ, _ = self._rounded()
        return (numbers * Δ.unsqueeze(2)).flatten(1)

    def quantized(self) -> QuantizedFloats:
        """Return the rounded weights as they are stored."""
        numbers, _, scale = self._rounded()
        codes = numbers.detach().flatten(1).to(torch.float8_e4m3fn)
        return QuantizedFloats(codes, stored_scales(scale, self._number, self._dtype), self._total, self._number)

    def bound(self) -> None:
        """Keep the parameters in their ranges: half a distance leaves zeros what they are."""
        self.offset.clamp_(-0.5, 0.5)
        self.shares.clamp_(0.5, 1)

    def _rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers [rows, groups, width], Δ and the scales as they are stored [rows, groups]."""
        steps = fit_steps(self._largest * self.shares.detach(), self._number, self._dtype, self._total)
        Δ = steps.Δ * (self.shares / self.shares.detach())
        x = self._groups / Δ.unsqueeze(2)
        # The binade of zero is the lowest; frexp takes another.
        binade = torch.where(x.detach() == 0, self._finest, torch.frexp(x.detach()).exponent - 1)
        apart = torch.ldexp(torch.ones_like(x), binade.clamp(min=self._finest) - self._mantissa)
        moved = x + apart * self.offset
        nearest = nearest_(moved.detach().clone(), self._number)
        # Numbers at the ends count as clipped, so that the gradient sees them move with the range.
        inside = nearest.abs() < self._top
        return torch.where(inside, nearest + (moved - moved.detach()), nearest), Δ, steps.scale


class Rounding:
    """A layer's weights, and the parameters that say how they are rounded to integers."""

    def __init__(self, weight: Tensor, width: int, settings: GridSettings, dtype: torch.dtype) -> None:
        """``weight`` float32 [rows, columns], ``width`` columns to a group; scales are stored in ``dtype``."""
        self._groups = weight.unflatten(1, (-1, width))
        self._low = self._groups.amin(2).clamp(max=0)
        self._high = self._groups.amax(2).clamp(min=0)
        self._settings = settings
        self._dtype = dtype
        self.offset = torch.zeros_like(self._groups, requires_grad=True)
        """V: float32 [rows, groups, width]."""
        self.shares = torch.ones(2, *self._low.shape, device=weight.device, requires_grad=True)
        """beta and alpha: float32 [2, rows, groups]."""

    def values(self) -> Tensor:
        """Return the rounded weights float32 [rows, columns], differentiable in ``offset`` and ``shares``."""
        codes, scale, zero = self._rounded()
        return ((codes - zero) * scale).flatten(1)

    def quantized(self) -> Quantized:
        """Return the rounded weights as they are stored."""
        codes, scale, zero = self._rounded()
        integer = code_dtype(self._settings.bits)
        return Quantized(
            codes.detach().flatten(1).to(integer),
            scale.detach().squeeze(2).to(self._dtype),
            None if self._settings.symmetric else zero.detach().squeeze(2).to(integer),
        )

    def bound(self) -> None:
        """Keep the parameters in their ranges: half a step at most leaves zeros what they are."""
        self.offset.clamp_(-0.5, 0.5)
        self.shares.clamp_(0, 1)

    def _rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the codes [rows, groups, width], scales and zero points [rows, groups, 1], all float32."""
        half, steps = 2 ** (self._settings.bits - 1), 2**self._settings.bits - 1
        low, high = self._low * self.shares[0], self._high * self.shares[1]
        symmetric = self._settings.symmetric
        scale = (2 * torch.maximum(-low, high) if symmetric else high - low) / steps
        stored = scale.detach().to(self._dtype)
        # A group of zeros has no span; any scale reads its zeros back as zeros.
        stored = torch.where(stored == 0, torch.finfo(self._dtype).eps, stored).float()
        scale = stored + (scale - scale.detach())
        zero = torch.zeros_like(scale) if symmetric else straight(-half - low / scale)
        scale, zero = scale.unsqueeze(2), zero.unsqueeze(2)
        codes = straight(self._groups / scale + self.offset) + zero
        # Codes at the ends of the grid count as clipped, so that the gradient sees them move with the range; torch's
        # own clamp has been of both minds about that. On a tiny model this leaves a third less damage.
        inside = (codes > -half) & (codes < half - 1)
        return torch.where(inside, codes, codes.detach().clamp(-half, half - 1)), scale, zero


def straight(x: Tensor) -> Tensor:
    """Return ``x`` rounded, with the gradient of ``x`` itself.

    What is added is exactly zero, so that the result is whole and ends of the grid are not taken for outside.
    """
    return x.detach().round() + (x - x.detach())


def tune(
    block: nn.Module,
    layers: Mapping[str, Rounding | FloatRounding],
    states: Tensor,
    target: Tensor,
    arguments: BlockArguments,
    settings: Settings,
    generator: torch.Generator,
) -> bool:
    """Give ``layers`` of the float32 ``block`` the best parameters of all steps; False where no output was finite.

    ``states`` float32 [samples, length, hidden] enter the block, ``target`` of the same shape should leave it.
    """
    parameters = [parameter for layer in layers.values() for parameter in (layer.offset, layer.shares)]
    best: list[Tensor] = []
    least = math.inf
    chosen = draws(len(states), settings.batch, generator)
    for step in range(settings.iterations):
        picked = next(chosen).to(states.device)
        with torch.enable_grad():
            weights = {f"{name}.weight": layer.values() for name, layer in layers.items()}
            loss = torch.nn.functional.mse_loss(_through(block, weights, states[picked], arguments), target[picked])
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        if loss.item() < least:
            least, best = loss.item(), [parameter.detach().clone() for parameter in parameters]
        rate = (1 - step / settings.iterations) / settings.iterations
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # A layer that no token reaches, an expert say, stays rounded to nearest.
            if gradient is not None:
                parameter.sub_(gradient.sign_(), alpha=rate)
        for layer in layers.values():
            layer.bound()
    for parameter, value in zip(parameters, best, strict=bool(best)):
        parameter.copy_(value)
    return bool(best)


def draws(samples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices of ``batch`` samples without end: all in random order, a smaller rest dropped, and again."""
    while True:
        order = torch.randperm(samples, generator=generator)
        yield from order[: samples - samples % batch].split(batch)


def run(block: nn.Module, weights: dict[str, Tensor], states: Tensor, arguments: BlockArguments, batch: int) -> Tensor:
    """Run ``block`` with ``weights`` instead of its own on ``states``, in batches; return what leaves it."""
    return torch.cat([_through(block, weights, rows, arguments) for rows in states.split(batch)])


def _through(block: nn.Module, weights: dict[str, Tensor], states: Tensor, arguments: BlockArguments) -> Tensor:
    after: Any = torch.func.functional_call(block, weights, (states,), arguments)
    leaving: Tensor = after[0] if isinstance(after, tuple) else after
    return leaving


METHOD = Method(
    MethodInfo(
        title="AutoRound",
        summary="learned rounding and ranges, block by block",
        papers=(Paper("Cheng et al.", "2309.05516"),),
        examples=(
            {"bits": 3, "group_size": 64},
            {"bits": 3, "group_size": 64, "samples": 16},
            {"format": "nvfp4"},
        ),
        storage=("packed", "floats"),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
