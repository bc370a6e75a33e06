"""Mixed precision: bits where they are worth most, under a budget of stored bits.

Rounding the weights of a linear layer by dW changes its outputs by dW x, and the model's prediction by about ``KL
≈ 1/2 Σ_i G_ii (dW H dWᵀ)_ii`` nats per token: H is the second moment of the layer's inputs, G_ii the mean squared
gradient of the per-token loss with respect to output i. That is K-FAC's Fisher matrix (Martens and Grosse, arXiv
1503.05671) with a diagonal output factor, and the use of curvature to give bits that of HAWQ (Dong et al., arXiv
1905.03696). Every layer is rounded at every width and in every format; then one is chosen for each group of layers that
engines compute as one (hemorrhage.compress.solvers.fused), so that the estimates add up to the least under the budget,
exactly on a grid of bytes. The estimates are added, over layers and groups: layers are taken to err on their own.

``shuffled`` is the control: each group gets the estimates of another one, drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.info import SCALES, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording, number
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.methods.weight_quantization import gptq, rtn
from hemorrhage.compress.solvers.checkpoint_size import checkpoint_bytes, layer_bits
from hemorrhage.compress.solvers.columns import Layers
from hemorrhage.compress.solvers.fused import fused_groups
from hemorrhage.compress.solvers.grid import GridSettings, grouping
from hemorrhage.compress.solvers.number_formats import AnyQuantized, FormatSettings
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


DENSE = "dense"
"""The format of a layer that is left as it is."""

Format = Literal["fp8", "fp8_tensor", "fp8_block", "nvfp4", "mxfp4", "mxfp8", "dense"]


def _budget_wording(budget: float | str) -> str:
    return f"at most {budget}" if isinstance(budget, str) else f"{number(budget)} bits on average"


def _listed(names: tuple[object, ...]) -> str:
    return "_".join(map(str, names))


class Settings(Base):
    """The budget and what it can be spent on.

    ``budget``: stored bits per weight of the decoder blocks' linear layers, scales and zero points counted; or bytes of
    the whole checkpoint, such as ``90 MB``.
    ``widths``: bits of integers that a layer can have; where nothing is said and there are ``formats``, none.
    ``formats``: floating-point formats that a layer can have, and ``dense``, which leaves it as it is.
    ``rounding`` with ``gptq`` reads second moments twice.
    ``embeddings``: bits of the embedding and the head, which are chosen by hand.
    """

    axis: ClassVar[str] = "bits"
    severity_field: ClassVar[str] = "budget"
    words: ClassVar[Mapping[str, Wording]] = {
        "budget": _budget_wording,
        "widths": lambda widths: f"mixed {number(widths)}".strip(),
        "formats": "{}",
        "group_size": grouping,
        "rounding": "{}",
        "embeddings": "embedding and head {} bit",
    }
    always_named: ClassVar[tuple[str, ...]] = ("widths", "group_size", "rounding")
    in_names: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "budget": lambda budget: str(budget).replace(" ", "").lower(),
        "widths": _listed,
        "formats": _listed,
    }

    budget: Annotated[float, Field(gt=2, le=32)] | Bytes
    widths: tuple[Width, ...] = (2, 3, 4, 5, 6, 8)
    formats: tuple[Format, ...] = ()
    group_size: Annotated[int, Field(ge=2, strict=True)] | Literal["channel"] = 128
    symmetric: bool = False
    rounding: Literal["rtn", "gptq"] = "rtn"
    shuffled: bool = False
    embeddings: VocabularyBits = None

    @model_validator(mode="before")
    @classmethod
    def _formats_alone(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("formats") and "widths" not in values:
            return {**values, "widths": ()}
        return values

    @field_validator("widths")
    @classmethod
    def _rising(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if list(widths) != sorted(set(widths)):
            raise ValueError(f"widths {list(widths)} must rise")
        return widths

    @model_validator(mode="after")
    def _something_to_choose(self) -> Settings:
        if len(set(self.formats)) < len(self.formats):
            raise ValueError(f"formats {list(self.formats)} name one twice")
        if len(self.widths) + len(self.formats) < 2:
            raise ValueError("widths and formats must name two together, or there is nothing to choose")
        return self

    @property
    def options(self) -> list[FormatSettings | None]:
        """What a layer can become: the grids of ``widths`` and the ``formats``; None leaves it as it is."""
        rounding = gptq.Settings if self.rounding == "gptq" else rtn.Settings
        integers = [rounding(bits=bits, group_size=self.group_size, symmetric=self.symmetric) for bits in self.widths]
        floats = [None if name == DENSE else rounding.model_validate({"format": name}) for name in self.formats]
        return [*integers, *floats]

    @property
    def common(self) -> list[str]:
        """Names of the settings that the points of one damage curve share; a format has its own groups."""
        is_implied = not self.widths and self.embeddings is None
        return [name for name in super().common if not (is_implied and name in ("group_size", "symmetric"))]

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
        for option in filter(None, self.options):
            problem = option.check(config)
            if problem:
                return problem
        if isinstance(self.budget, str):
            return None
        scale = 32 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 16
        costs = [_cost(option, columns, scale) for option in self.options for columns in input_widths(config).values()]
        # What the layers' shapes cost in detail is known when the model is there.
        if not min(costs) < self.budget < max(costs):
            return f"budget {self.budget:g} must lie between {min(costs):.3g} and {max(costs):.3g} for {self.choice}"
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide a layer's inputs, or no choice fits the bytes."""
        for option in filter(None, self.options):
            option.check_model(model)
        check_vocabulary(model, self.embeddings, self.group_size)
        if self.budget_bytes is not None:
            sizes = [
                checkpoint_bytes(model, {**dict.fromkeys(linears_of(model), option), **self.of_vocabulary(model)})
                for option in self.options
            ]
            if not min(sizes) <= self.budget_bytes < max(sizes):
                low, high = (f"{number(round(size / 1e6, 3))} MB" for size in (min(sizes), max(sizes)))
                raise RefusedError(f"budget {self.budget} must lie between {low} and {high} for {self.choice}")
        return None

    def of_vocabulary(self, model: PreTrainedModel) -> dict[str, GridSettings | None]:
        """Return the grid of the embedding and the head by name; empty where they stay as they are."""
        if self.embeddings is None:
            return {}
        return dict.fromkeys(vocabulary_matrices(model), vocabulary_grid(self.embeddings, self.group_size))

    @property
    def choice(self) -> str:
        """What there is to choose from, in a sentence."""
        return "these formats" if self.formats else "these widths"


def _cost(option: FormatSettings | None, columns: int, real: int) -> float:
    """Return about how many bits a weight takes; ``real``: those of a number of the checkpoint's dtype."""
    if option is None:
        return real
    width = columns if option.group_size == "channel" else option.group_size
    if option.number is not None:
        return option.bits + {"dtype": real, "e4m3": 8, "power": 8}[option.number.scales] / width
    return option.bits + (real + (0 if option.symmetric else option.bits)) / width


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Quantize ``model`` in place. Raises ValueError where the budget is less than the least choices take."""
    linears, statistics = linears_of(model), context.calibration
    shared, options = statistics.shared(), settings.options
    groups = fused_groups(model, shared)
    sizes = [[sum(layer_bits(linears[name], option) for name in names) for option in options] for names in groups]
    weights = sum(linear.weight.numel() for linear in linears.values())
    # Of the layers that read one input, those that engines compute as one: a scale of all is one number.
    parts = [(first, [name for name in names if name in shared[first]]) for names in groups for first in shared]
    parts = [(first, names) for first, names in parts if names]
    with torch.no_grad():
        estimates = sensitivities(linears, parts, settings, statistics)
        order = shuffle(torch.arange(len(groups)), shuffler(settings.shuffled, context.seed))
        losses = [[sum(of_option) for of_option in zip(*map(estimates.get, names), strict=True)] for names in groups]
        chosen = choose(model, settings, groups, [losses[index] for index in order.tolist()], sizes)
        option_of = {name: options[index] for names, index in zip(groups, chosen, strict=True) for name in names}
        for first, names in tqdm(parts, desc=settings.rounding, unit="input", mininterval=5, leave=False):
            option = option_of[names[0]]
            if option is None:
                continue
            H = statistics.second_moment(first) if settings.rounding == "gptq" else None
            for name, quantized in zip(names, quantize(names, linears, H, option), strict=True):
                store(model, name, quantized, option)
        quantize_vocabulary(model, settings.embeddings, settings.group_size, rtn.quantize)
    spent = sum(size[index] for size, index in zip(sizes, chosen, strict=True))
    return Alteration(entries={"severity": spent / weights} if isinstance(settings.budget, str) else {})


def choose(
    model: PreTrainedModel,
    settings: Settings,
    groups: list[list[str]],
    losses: list[list[float]],
    sizes: list[list[int]],
) -> list[int]:
    """Return for each of the ``groups`` the index of its option: the least ``losses`` under the budget."""
    linears, budget = linears_of(model), settings.budget_bytes
    if budget is None:
        return allocate(losses, sizes, int(float(settings.budget) * sum(x.weight.numel() for x in linears.values())))
    vocabulary = settings.of_vocabulary(model)
    limit = 8 * budget
    while True:
        chosen = allocate(losses, sizes, limit)
        of_layer = {
            name: settings.options[index] for names, index in zip(groups, chosen, strict=True) for name in names
        }
        # The header's length depends on what is chosen.
        surplus = checkpoint_bytes(model, {**of_layer, **vocabulary}) - budget
        if surplus <= 0:
            return chosen
        spent = sum(size[index] for size, index in zip(sizes, chosen, strict=True))
        limit = spent - 8 * surplus


def sensitivities(
    linears: dict[str, nn.Linear], parts: list[tuple[str, list[str]]], settings: Settings, statistics: Statistics
) -> dict[str, list[float]]:
    """Return the estimated KL, nats per token, of each option for each of ``linears`` alone.

    ``parts``: the first layer that reads an input, and layers that read it and are rounded together.
    """
    estimates: dict[str, list[float]] = {name: [] for name in linears}
    for first, names in tqdm(parts, desc="sensitivity", unit="input", mininterval=5, leave=False):
        H = statistics.second_moment(first)
        outputs = [statistics.output_gradient(name) for name in names]
        rounded = iter(quantize_all(names, linears, H, [option for option in settings.options if option is not None]))
        for option in settings.options:
            if option is None:
                for name in names:
                    estimates[name].append(0.0)
                continue
            for name, quantized, output in zip(names, next(rounded), outputs, strict=True):
                change = quantized.dense().sub_(linears[name].weight)
                estimates[name].append(divergence(change, H, output))
    return estimates


def quantize(
    names: list[str], linears: dict[str, nn.Linear], H: Tensor | None, settings: FormatSettings
) -> Sequence[AnyQuantized]:
    """Return the layers ``names``, which read one input with second moment ``H``, rounded by ``settings``."""
    return quantize_all(names, linears, H, [settings])[0]


def quantize_all(
    names: list[str], linears: dict[str, nn.Linear], H: Tensor | None, options: Sequence[FormatSettings]
) -> list[Sequence[AnyQuantized]]:
    """Do as ``quantize`` by each of ``options``; GPTQ sweeps them together."""
    weights = [linears[name].weight.detach() for name in names]
    of_gptq = [option for option in options if isinstance(option, gptq.Settings)]
    if not of_gptq:
        return [rtn.quantize_shared(weights, names[0], option, weights[0].dtype) for option in options]
    assert H is not None
    layers = Layers.of(names, weights, H, of_gptq[0].damp)
    swept = gptq.quantize_variants([layers], of_gptq, weights[0].dtype)
    return [[each.cpu() for each in of_input] for (of_input,) in swept]


def divergence(dW: Tensor, H: Tensor, G_ii: Tensor) -> float:
    """Return the estimated KL, nats per token, of adding ``dW`` float32 [rows, columns] to a layer's weights.

    ``H`` float32 [columns, columns]: second moment of its inputs; ``G_ii`` float32 [rows]: mean squared gradient
    of the per-token loss with respect to its outputs.
    """
    return 0.5 * torch.dot((dW @ H).mul_(dW).sum(1), G_ii).item()


def allocate(losses: list[list[float]], sizes: list[list[int]], limit: int) -> list[int]:
    """For each item the index of its choice, so that the sum of ``losses`` is least with ``sizes`` at most ``limit``.

    The multiple-choice knapsack, by dynamic programming over how much of ``limit`` is spent, in steps of ``limit /
    CELLS`` or of the sizes' common divisor where that is larger; sizes are rounded up to steps. Raises ValueError where
    even the smallest choices take more than ``limit``.
    """
    least = sum(map(min, sizes))
    if least > limit:
        raise ValueError(f"the smallest choices take {least} bits, the budget allows {limit}")
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
        summary="bits or formats per group of layers that engines fuse, from a measured sensitivity, under a budget",
        papers=(Paper("Martens and Grosse", "1503.05671"), Paper("Dong et al.", "1905.03696")),
        examples=(
            {"budget": 4.5, "group_size": 64},
            {"budget": 4.5, "group_size": 64, "rounding": "gptq"},
            {"budget": 9.0, "widths": (4,), "group_size": 64, "formats": ("fp8", "dense")},
        ),
        storage=("packed", "floats"),
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
