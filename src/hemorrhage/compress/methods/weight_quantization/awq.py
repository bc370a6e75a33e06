"""AWQ (Lin et al., arXiv 2306.00978): scale the inputs that matter up before rounding, then clip.

Round to nearest errs by a share of the group's largest weight, whatever the input is worth. So the weights of
an input feature are multiplied by a scale s and the feature is divided by it, which changes nothing before
rounding: the layer that makes the feature (a norm, or the linear layer before) takes the division. ``s =
mean|X_j|^alpha / sqrt(max · min)``, and alpha in {0, 0.05, ... 0.95} is the one with the least ``||Q(W
diag(s)) diag(s)⁻¹ X - W X||²``, summed over the linear layers that read the input. With the stored second
moment H of X that is exactly ``tr(dW H dWᵀ)`` per token, so the search needs no forward passes. Then the
largest weight of every group is clipped to the best of ten shares of it, again by the error of the group's
own output; not for queries and keys, as in the paper's code. That code scales by the error of the whole
attention or MLP output; the formula above is the paper's equation 4.

Q is rounding in any format of hemorrhage.compress.solvers.number_formats. Where rows share a scale (FP8 per tensor and
in blocks) nothing is clipped: a row's own largest weight says nothing of it there. Inputs that are rounded are those
after the division, and so are their fixed ranges; neither search knows of their rounding.

    W   weights [rows, columns] of a layer, Q(W) rounded to nearest
    X   inputs; H = XᵀX / n, their second moment [columns, columns]
    s   scale of each input feature [columns]
    Δ   scale of a group's grid: rounding errs by about a quarter of it

``shuffled`` is the control: the results of both searches are shuffled, the scales of an input among its features and
the clipped shares of a layer among its groups.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator
from tqdm import tqdm

from hemorrhage.calibrate import triangle
from hemorrhage.compress.info import SCALES, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.compress.solvers import folding
from hemorrhage.compress.solvers.grid import WIDTHS, Grid, fit
from hemorrhage.compress.solvers.number_formats import (
    FORMAT,
    FormatSettings,
    columns_of_scale,
    layer_total,
    nearest_in_groups,
    round_to_nearest,
)
from hemorrhage.compress.solvers.packing import rounded_inputs, store
from hemorrhage.compress.solvers.shuffle import shuffle, shuffler
from hemorrhage.compress.solvers.vocabulary import VocabularySettings, quantize_vocabulary
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import EquivalentTransform

ALPHAS = 20
"""Steps of the search over alpha; the paper's."""

CLIPS = 10
"""Shares of the largest weight tried: 1, 0.95, ... 0.55; those of the paper's code."""

CACHED = 2**17
"""Weights that are rounded at once: 0.5 MB in float32."""

UNCLIPPED = ("q_", "k_"), ("qkv", "query", "c_attn")
"""How the names of the layers begin that make queries and keys, and what is in the names of fused ones."""


class Settings(VocabularySettings, FormatSettings):
    """Settings of AWQ. ``scale`` and ``clip`` can be taken away to see what each is worth."""

    words: ClassVar[Mapping[str, Wording]] = {
        **FormatSettings.words,
        "scale": {False: "without scales"},
        "clip": {False: "without clipping"},
    }

    scale: bool = True
    clip: bool = True
    shuffled: bool = False

    @model_validator(mode="after")
    def _something_to_shuffle(self) -> Settings:
        if self.shuffled and not (self.scale or self.clip):
            raise ValueError("shuffled: scales and clipping are what is shuffled, and both are taken away")
        return self

    @property
    def equivalent_transform(self) -> EquivalentTransform:
        """Scales are folded into the layers before."""
        return "scaled"

    @property
    def clips(self) -> bool:
        """Whether weights are clipped: where rows share a scale they are not."""
        return self.clip and (self.number is None or self.number.height == 1)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments and the mean magnitudes of the layers' inputs."""
        return ("hessian", "activations")

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide a layer's inputs, or no norm takes a factor."""
        super().check_model(model)
        if self.scale:
            from hemorrhage.calibrate.statistics import shared_inputs

            factor_makers(model, shared_inputs(model, torch.ones(1, 1)))
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place.

    Raises ValueError where groups don't divide a layer's inputs, and RefusedError where no norm takes a factor.
    """
    linears, statistics = linears_of(model), context.calibration
    makers = factor_makers(model, statistics.shared()) if settings.scale else {}
    generator = shuffler(settings.shuffled, context.seed)
    with torch.no_grad():
        for shared in tqdm(by_block(statistics.shared()), desc="awq", unit="block", mininterval=5, leave=False):
            dtype = linears[next(iter(shared))].weight.dtype
            scales = {}
            if settings.scale:
                scales = {
                    first: shuffle(
                        best_scale(
                            [linears[name].weight for name in names],
                            statistics.second_moment(first),
                            statistics.mean_abs(first),
                            columns_of_scale(first, linears[first].in_features, settings),
                            settings,
                            dtype,
                        ),
                        generator,
                    )
                    for first, names in shared.items()
                    if first in makers
                }
            for name in (name for names in shared.values() for name in names):
                # A layer takes up to two scales, and is rounded once after both.
                linears[name].weight.data = linears[name].weight.data.float()
            for first, names in shared.items():
                if first in scales:
                    scales[first] = fold(model, makers[first], names, scales[first])
            for first, names in shared.items():
                H = statistics.second_moment(first)
                if first in scales:
                    H = H / torch.outer(scales[first], scales[first])
                width = columns_of_scale(first, linears[first].in_features, settings)
                weights = [linears[name].weight.data for name in names]
                if settings.clips:
                    total = layer_total(weights, settings.number, settings.block_scales) if settings.number else None
                    weights = [
                        weight if _attends(name) else clipped(weight, H, width, settings, dtype, generator, total)
                        for name, weight in zip(names, weights, strict=True)
                    ]
                # What the layers read is divided by the scales.
                inputs = rounded_inputs(settings, statistics.max_abs(first) / scales.get(first, 1.0), dtype)
                for name, layer in zip(names, rtn.quantize_shared(weights, first, settings, dtype), strict=True):
                    store(model, name, layer, settings, inputs)
        quantize_vocabulary(model, settings.embeddings, settings.group_size, rtn.quantize)


def factor_makers(model: PreTrainedModel, inputs: dict[str, list[str]]) -> dict[str, str]:
    """Return ``folding.makers`` of the ``inputs``. Raises RefusedError where no norm is among them."""
    makers = folding.find_makers(model, inputs)
    if not any(_is_norm(model, maker) for maker in makers.values()):
        raise RefusedError(
            f"awq moves factors into the norm before a layer, and {type(model).__name__} has none that takes any"
        )
    return makers


def by_block(shared: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """Return the inputs ``{first linear: [linears]}`` of each decoder block."""
    by_prefix: dict[str, dict[str, list[str]]] = {}
    for first, names in shared.items():
        # Up to the first number, which is the block's; experts have one behind it.
        block = re.match(r".*?\.\d+\.", first)
        by_prefix.setdefault(block[0] if block else "", {})[first] = names
    return list(by_prefix.values())


def _is_norm(model: PreTrainedModel, name: str) -> bool:
    layer: Any = model.get_submodule(name)
    return bool(layer.weight.dim() == 1)


def _attends(name: str) -> bool:
    """Return whether a layer makes queries or keys, whose products suffer from clipping."""
    last = name.rpartition(".")[2].lower()
    return last.startswith(UNCLIPPED[0]) or any(fragment in last for fragment in UNCLIPPED[1])


def best_scale(
    weights: list[Tensor],
    H: Tensor,
    magnitude: Tensor,
    width: int,
    settings: Settings,
    dtype: torch.dtype,
) -> Tensor:
    """Return the scales float32 [columns] of the input that ``weights`` [rows_i, columns] read.

    ``H`` float32 [columns, columns] is the second moment of the input, ``magnitude`` float32 [columns] the
    mean of its absolute values; ``width`` columns share a grid, whose scales are stored in ``dtype``.
    """
    best, least = torch.ones_like(magnitude), math.inf
    # Σ dw H dwᵀ over the rows is the sum of the products of dwᵀ dw and H, both symmetric: a triangle of them is enough.
    across = torch.triu(2 * H, 1).add_(torch.diag(H.diagonal()))
    changes = torch.zeros_like(across)
    for step in range(ALPHAS):
        scale = magnitude.pow(step / ALPHAS).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        changes.zero_()
        for change in _changes(weights, scale, width, settings, dtype):
            triangle.add_square(changes, change)
        error = changes.mul_(across).sum().item()
        if error < least:
            best, least = scale, error
    return best


def _changes(
    weights: list[Tensor], scale: Tensor, width: int, settings: Settings, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Yield what rounding each of ``weights`` times ``scale`` changes of the weight: float32 [rows_i, columns]."""
    if settings.number is not None:
        scaled = [weight.float() * scale for weight in weights]
        for weight, layer in zip(
            weights, round_to_nearest(scaled, settings.number, dtype, settings.block_scales), strict=True
        ):
            yield layer.dense().div_(scale).sub_(weight)
        return
    for weight in weights:
        change, rows = torch.empty(weight.shape, device=weight.device), max(1, CACHED // weight.shape[1])
        # Rows are rounded on their own, and some of them stay in the cache from one operation to the next.
        for some, into in zip(weight.split(rows), change.split(rows), strict=True):
            rounded = _rounded((some.float() * scale).unflatten(1, (-1, width)), settings, dtype).flatten(1)
            torch.sub(rounded.div_(scale), some, out=into)
        yield change


def fold(model: PreTrainedModel, name: str, names: list[str], scale: Tensor) -> Tensor:
    """Multiply the columns of the layers ``names`` by ``scale`` [columns], and divide what ``name`` gives by it.

    Returns the scale that was applied: a norm's weight is rounded to the dtype it is stored in, and the layers
    take the factor that this leaves, so that folding is exact. Linear layers must be float32.
    """
    maker: Any = model.get_submodule(name)
    if maker.weight.dim() == 1:
        divided = (maker.weight.float() / scale).to(maker.weight.dtype)
        scale = torch.where(divided == 0, scale, maker.weight.float() / divided.float())
        maker.weight.copy_(divided)
        if getattr(maker, "bias", None) is not None:
            maker.bias.copy_(maker.bias.float() / scale)
    else:
        maker.weight.div_(scale.unsqueeze(1))
        if maker.bias is not None:
            maker.bias.copy_(maker.bias.float() / scale)
    linears = linears_of(model)
    for reader in names:
        linears[reader].weight.mul_(scale)
    return scale


def clipped(
    weight: Tensor,
    H: Tensor,
    width: int,
    settings: Settings,
    dtype: torch.dtype,
    generator: torch.Generator | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """Clip every group of ``width`` columns of ``weight`` float32 [rows, columns] to the best share of its largest.

    The error of a group is that of its own part of the output: ``dw H_g dwᵀ`` with the group's block of ``H``
    [columns, columns]. A ``generator`` shuffles the shares. ``total``: G of a format that has it.
    """
    groups = weight.unflatten(1, (-1, width))
    blocks = H.unflatten(1, (-1, width)).unflatten(0, (-1, width)).diagonal(dim1=0, dim2=2).movedim(2, 0)
    largest = groups.abs().amax(2)
    best, least = largest.clone(), torch.full_like(largest, math.inf)
    for step in range(CLIPS):
        limit = largest * (1 - step / (2 * CLIPS))
        kept = groups.clamp(-limit.unsqueeze(2), limit.unsqueeze(2))
        change = _rounded(kept, settings, dtype, total).sub_(groups).transpose(0, 1)
        error = torch.bmm(change, blocks).mul_(change).sum(2).T
        best = torch.where(error < least, limit, best)
        least = torch.minimum(error, least)
    if generator is not None:
        best = largest * shuffle(torch.where(largest > 0, best / largest, 1.0), generator)
    return torch.clamp(groups, -best.unsqueeze(2), best.unsqueeze(2)).flatten(1)


def _rounded(groups: Tensor, settings: Settings, dtype: torch.dtype, total: Tensor | None = None) -> Tensor:
    """Return ``groups`` [rows, groups, width], rounded to nearest on their grids; ``total``: G of a format with it."""
    if settings.number is not None:
        return nearest_in_groups(groups, settings.number, dtype, total, settings.block_scales)
    grid = fit(groups, 2, settings, dtype)
    values = torch.empty_like(groups)
    Grid(grid.scale.unsqueeze(2), grid.zero.unsqueeze(2), grid.bits).round(groups, torch.empty_like(groups), values)
    return values


METHOD = Method(
    MethodInfo(
        title="AWQ",
        summary="input scales folded into the layer before, and clipping (Llama, Mistral, Qwen2)",
        papers=(Paper("Lin et al.", "2306.00978"),),
        examples=(
            {"bits": 4, "group_size": 64},
            {"bits": 4, "group_size": 64, "shuffled": True},
            {"bits": 4, "group_size": 64, "inputs": "fp8_token"},
            {"format": "nvfp4"},
        ),
        storage=("packed", "int8", "floats"),
        improves_on=(Comparison(SCALES, "rtn", FORMAT),),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
