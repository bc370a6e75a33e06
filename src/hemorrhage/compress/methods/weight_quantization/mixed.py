"""Mixed precision: bits where they are worth most, under a budget of stored bits.

Rounding the weights of a linear layer by dW changes its outputs by dW x, and the model's prediction by about ``KL
≈ 1/2 Σ_i G_ii (dW H dWᵀ)_ii`` nats per token: H is the second moment of the layer's inputs, G_ii the mean squared
gradient of the per-token loss with respect to output i. That is K-FAC's Fisher matrix (Martens and Grosse, arXiv
1503.05671) with a diagonal output factor, and the use of curvature to give bits that of HAWQ (Dong et al., arXiv
1905.03696). Every layer is rounded at every width; then a width is chosen for each group of layers that engines
compute as one (hemorrhage.compress.solvers.fused), so that the estimates add up to the least under the budget, exactly
on a grid of bytes. The estimates are added, over layers and groups: layers are taken to err on their own.

``shuffled`` is the control: each group gets the estimates of another one, drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator
from tqdm import tqdm

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.info import SCALES, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording, number
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.compress.solvers.fused import fused_groups
from hemorrhage.compress.solvers.grid import GridSettings, Quantized, group_width, grouping
from hemorrhage.compress.solvers.packing import store
from hemorrhage.compress.solvers.shuffle import shuffle, shuffler
from hemorrhage.compress.solvers.vocabulary import (
    VocabularyBits,
    check_vocabulary,
    quantize_vocabulary,
    vocabulary_grid,
    vocabulary_matrices,
)
from hemorrhage.compress.solvers.widths import input_widths
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.stream import header
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

CELLS = 1 << 17
"""Steps of the budget that the allocation distinguishes, where the sizes have no larger common divisor."""

Width = Annotated[int, Field(ge=2, le=8, strict=True)]

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

Bytes = Annotated[str, Field(pattern=rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(UNITS)})$")]
"""A number of bytes with its unit, such as 90 MB."""


def _budget_wording(budget: float | str) -> str:
    return f"at most {budget}" if isinstance(budget, str) else f"{number(budget)} bits on average"


class Settings(Base):
    """The budget and what it can be spent on.

    ``budget``: stored bits per weight of the decoder blocks' linear layers, scales and zero points counted; or bytes of
    the whole checkpoint, such as ``90 MB``.
    ``widths``: bits of a code that a layer can have. ``rounding`` with ``gptq`` reads second moments twice.
    ``embeddings``: bits of the embedding and the head, which are chosen by hand.
    """

    axis: ClassVar[str] = "bits"
    severity_field: ClassVar[str] = "budget"
    words: ClassVar[Mapping[str, Wording]] = {
        "budget": _budget_wording,
        "widths": "mixed {}",
        "group_size": grouping,
        "rounding": "{}",
        "embeddings": "embedding and head {} bit",
    }
    always_named: ClassVar[tuple[str, ...]] = ("widths", "group_size", "rounding")
    in_names: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "budget": lambda budget: str(budget).replace(" ", "").lower()
    }

    budget: Annotated[float, Field(gt=2, le=16)] | Bytes
    widths: Annotated[tuple[Width, ...], Field(min_length=2)] = (2, 3, 4, 5, 6, 8)
    group_size: Annotated[int, Field(ge=2, strict=True)] | Literal["channel"] = 128
    symmetric: bool = False
    rounding: Literal["rtn", "gptq"] = "rtn"
    shuffled: bool = False
    embeddings: VocabularyBits = None

    @field_validator("widths")
    @classmethod
    def _rising(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if list(widths) != sorted(set(widths)):
            raise ValueError(f"widths {list(widths)} must rise")
        return widths

    def grid(self, bits: int) -> GridSettings:
        """Return the settings of the grid of a layer with ``bits``."""
        settings = gptq.Settings if self.rounding == "gptq" else rtn.Settings
        return settings(bits=bits, group_size=self.group_size, symmetric=self.symmetric)

    @property
    def budget_bytes(self) -> int | None:
        """Bytes that the checkpoint may have; None where the budget is bits per weight."""
        if not isinstance(self.budget, str):
            return None
        amount = self.budget.rstrip("kKMGiB ")
        return int(float(amount) * UNITS[self.budget.removeprefix(amount).strip()])

    @property
    def severity(self) -> float:
        """Bits per weight; of a budget in bytes 0, for which the manifest has what was spent."""
        return 0.0 if isinstance(self.budget, str) else self.budget

    @property
    def point(self) -> object:
        """The budget as it was given."""
        return self.budget

    @property
    def second_order(self) -> bool:
        """Where GPTQ rounds, columns make up for each other."""
        return self.rounding == "gptq"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments of the layers' inputs and the gradients at their outputs."""
        return ("hessian", "gradients")

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        problem = self.grid(self.widths[0]).check(config)
        if problem or isinstance(self.budget, str):
            return problem
        scale = 32 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 16
        costs = [
            bits + (scale + (0 if self.symmetric else bits)) / self._width(columns)
            for bits in (self.widths[0], self.widths[-1])
            for columns in input_widths(config).values()
        ]
        # What the layers' shapes cost in detail is known when the model is there.
        if not min(costs) < self.budget < max(costs):
            return f"budget {self.budget:g} must lie between {min(costs):.3g} and {max(costs):.3g} for these widths"
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide a layer's inputs, or no choice of widths fits the bytes."""
        self.grid(self.widths[0]).check_model(model)
        check_vocabulary(model, self.embeddings, self.group_size)
        if self.budget_bytes is not None:
            of_widths = [checkpoint_bytes(model, self, bits) for bits in (self.widths[0], self.widths[-1])]
            if not of_widths[0] <= self.budget_bytes < of_widths[1]:
                low, high = (f"{number(round(size / 1e6, 3))} MB" for size in of_widths)
                raise RefusedError(f"budget {self.budget} must lie between {low} and {high} for these widths")
        return None

    def _width(self, columns: int) -> int:
        return columns if self.group_size == "channel" else self.group_size


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Quantize ``model`` in place. Raises ValueError where the budget is less than the least widths take."""
    linears, statistics = linears_of(model), context.calibration
    shared = statistics.shared()
    groups = fused_groups(model, shared)
    sizes = [
        [sum(stored_bits(linears[name], settings.grid(bits)) for name in names) for bits in settings.widths]
        for names in groups
    ]
    weights = sum(linear.weight.numel() for linear in linears.values())
    limit = bit_limit(model, settings, weights)
    with torch.no_grad():
        estimates = sensitivities(linears, settings, statistics)
        order = shuffle(torch.arange(len(groups)), shuffler(settings.shuffled, context.seed))
        losses = [[sum(of_width) for of_width in zip(*map(estimates.get, names), strict=True)] for names in groups]
        chosen = allocate([losses[index] for index in order.tolist()], sizes, limit)
        width_of = {name: settings.widths[index] for names, index in zip(groups, chosen, strict=True) for name in names}
        for first, names in tqdm(shared.items(), desc=settings.rounding, unit="input", mininterval=5, leave=False):
            H = statistics.second_moment(first) if settings.rounding == "gptq" else None
            for name in names:
                grid = settings.grid(width_of[name])
                (quantized,) = quantize([name], linears, H, grid)
                store(model, name, quantized, grid)
        quantize_vocabulary(model, settings.embeddings, settings.group_size, rtn.quantize)
    spent = sum(size[index] for size, index in zip(sizes, chosen, strict=True))
    return Alteration(entries={"severity": spent / weights} if isinstance(settings.budget, str) else {})


def bit_limit(model: PreTrainedModel, settings: Settings, weights: int) -> int:
    """Return the bits that the layers, which have so many ``weights``, may take together."""
    if settings.budget_bytes is None:
        return int(float(settings.budget) * weights)
    widest = settings.widths[-1]
    of_layers = sum(stored_bits(linear, settings.grid(widest)) for linear in linears_of(model).values())
    return of_layers - 8 * (checkpoint_bytes(model, settings, widest) - settings.budget_bytes)


def sensitivities(linears: dict[str, nn.Linear], settings: Settings, statistics: Statistics) -> dict[str, list[float]]:
    """Return the estimated KL, nats per token, of rounding each of ``linears`` alone, for every one of the widths."""
    estimates: dict[str, list[float]] = {name: [] for name in linears}
    inputs = statistics.shared().items()
    for first, names in tqdm(inputs, desc="sensitivity", unit="input", mininterval=5, leave=False):
        H = statistics.second_moment(first)
        outputs = [statistics.output_gradient(name) for name in names]
        for bits in settings.widths:
            layers = quantize(names, linears, H, settings.grid(bits))
            for name, quantized, output in zip(names, layers, outputs, strict=True):
                change = quantized.dense().sub_(linears[name].weight)
                estimates[name].append(divergence(change, H, output))
    return estimates


def quantize(
    names: list[str], linears: dict[str, nn.Linear], H: Tensor | None, settings: GridSettings
) -> list[Quantized]:
    """Return the layers ``names``, which read one input with second moment ``H``, on the grid of ``settings``."""
    weights = [linears[name].weight.detach() for name in names]
    width, dtype = group_width(names[0], weights[0].shape[1], settings), weights[0].dtype
    if isinstance(settings, gptq.Settings):
        assert H is not None
        try:
            return gptq.quantize(weights, H, width, settings, dtype)
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}") from None
    return [rtn.quantize(weight, width, settings, dtype) for weight in weights]


def divergence(dW: Tensor, H: Tensor, G_ii: Tensor) -> float:
    """Return the estimated KL, nats per token, of adding ``dW`` float32 [rows, columns] to a layer's weights.

    ``H`` float32 [columns, columns]: second moment of its inputs; ``G_ii`` float32 [rows]: mean squared gradient
    of the per-token loss with respect to its outputs.
    """
    return 0.5 * torch.dot((dW @ H).mul_(dW).sum(1), G_ii).item()


def stored_bits(linear: nn.Linear, settings: GridSettings) -> int:
    """Return the bits that a packed layer takes: codes, scales, zero points, its shape."""
    return sum(8 * dtype.itemsize * math.prod(shape) for shape, dtype in packed_tensors(linear, settings).values())


def packed_tensors(
    layer: nn.Linear | nn.Embedding, settings: GridSettings
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of what is stored of a packed layer, by suffix."""
    rows, columns = layer.weight.shape
    groups = 1 if settings.group_size == "channel" else columns // settings.group_size
    tensors = {
        "weight_packed": ((rows, math.ceil(columns * settings.bits / 32)), torch.int32),
        "weight_scale": ((rows, groups), layer.weight.dtype),
        "weight_shape": ((2,), torch.int64),
    }
    if not settings.symmetric:
        tensors["weight_zero_point"] = ((math.ceil(rows * settings.bits / 32), groups), torch.int32)
    return tensors


def checkpoint_bytes(model: PreTrainedModel, settings: Settings, bits: int) -> int:
    """Return the bytes of a checkpoint of ``model`` with all linear layers of its blocks of one width.

    The header of the file is that of this width, which is no shorter than that of a narrower one.
    """
    from hemorrhage.models.formats.storage import distinct

    packed = {name: packed_tensors(linear, settings.grid(bits)) for name, linear in linears_of(model).items()}
    if settings.embeddings is not None:
        grid = vocabulary_grid(settings.embeddings, settings.group_size)
        packed |= {name: packed_tensors(module, grid) for name, module in vocabulary_matrices(model).items()}
    tensors = {
        name: (tuple(value.shape), value.dtype)
        for name, value in distinct(model).items()
        if not name.endswith(".weight") or name.removesuffix(".weight") not in packed
    }
    for name, parts in packed.items():
        tensors |= {f"{name}.{suffix}": part for suffix, part in parts.items()}
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    dtypes = {name: dtype for name, (_, dtype) in tensors.items()}
    content = sum(dtypes[name].itemsize * math.prod(shape) for name, shape in shapes.items())
    return len(header(shapes, dtypes, {"format": "pt"})) + content


def allocate(losses: list[list[float]], sizes: list[list[int]], limit: int) -> list[int]:
    """For each item the index of its choice, so that the sum of ``losses`` is least with ``sizes`` at most ``limit``.

    The multiple-choice knapsack, by dynamic programming over how much of ``limit`` is spent, in steps of ``limit /
    CELLS`` or of the sizes' common divisor where that is larger; sizes are rounded up to steps. Raises ValueError where
    even the smallest choices take more than ``limit``.
    """
    least = sum(map(min, sizes))
    if least > limit:
        raise ValueError(f"the smallest widths take {least} bits, the budget allows {limit}")
    # What every item takes in any case is not counted, so that all steps distinguish choices.
    extra = [[size - min(item) for size in item] for item in sizes]
    step = max(math.gcd(*(size for item in extra for size in item)), -(-(limit - least) // CELLS), 1)
    cells = (limit - least) // step + 1
    # total[c]: least loss of the items so far with at most c steps spent.
    total = torch.zeros(cells, dtype=torch.float64)
    picks = []
    for item, cost in zip(losses, extra, strict=True):
        tried = torch.full((len(item), cells), math.inf, dtype=torch.float64)
        for row, loss, size in zip(tried, item, cost, strict=True):
            taken = -(-size // step)
            row[taken:] = total[: max(cells - taken, 0)] + loss
        total, pick = tried.min(0)
        picks.append(pick.to(torch.int8))
    left = cells - 1
    chosen = []
    for pick, cost in zip(reversed(picks), reversed(extra), strict=True):
        chosen.append(int(pick[left]))
        left -= -(-cost[chosen[-1]] // step)
    return chosen[::-1]


METHOD = Method(
    MethodInfo(
        title="Mixed precision by sensitivity",
        summary="bits per group of layers that engines fuse, from a measured sensitivity, under a budget",
        papers=(Paper("Martens and Grosse", "1503.05671"), Paper("Dong et al.", "1905.03696")),
        examples=({"budget": 4.5, "group_size": 64}, {"budget": 4.5, "group_size": 64, "rounding": "gptq"}),
        storage=("packed",),
        improves_on=tuple(
            Comparison(
                SCALES,
                rounding,
                ("group_size", "symmetric", "embeddings"),
                treated={"rounding": (rounding,)},
                untreated={"sequential": (False,)},
                equal_bytes=True,
            )
            for rounding in ("rtn", "gptq")
        ),
    ),
    Settings,
    alter,
)
