"""Disturbing the routing of a model with experts: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, or one made by a parent.

``alteration``, with what ``amount`` and the severity are:

- ``noise``: Gaussian noise on the router's weights, of ``amount`` times their root mean square; severity ``amount``.
- ``top_k``: each token takes ``amount`` experts; severity 1 / ``amount``, the mean weight of an expert that is taken.
  The unaltered model lies at one over its own number.
- ``quantize``: the routers alone, rounded to nearest to ``amount`` bits with a scale and a zero point per expert, and
  stored as plain weights; severity 2^-``amount``, half a step over the range of a row.
- ``drop``: the share ``amount`` of every layer's experts, rounded to whole ones, goes, with its rows of the router;
  severity ``amount``. ``choose`` says which: at random (``random``), those that the fewest calibration tokens are
  routed to (``usage``), or those without which the layer's output on the calibration tokens changes least
  (``reconstruction``: all subsets are tried, min ‖F(x) - F'(x)‖ on the unaltered model's inputs x; NAEE, Lu et al.,
  arXiv 2402.14800).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator, model_validator
from tqdm import tqdm

from hemorrhage.calibrate.expert_usage import mlp_inputs, usage
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import ConfigJson, Context, Method, Wording, number, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.methods.weight_quantization.rtn import quantize
from hemorrhage.compress.solvers.experts import number_of_experts
from hemorrhage.compress.solvers.grid import GridSettings
from hemorrhage.compress.solvers.stack import count
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SUBSETS = 2000
"""Sets of experts that ``reconstruction`` tries in a layer; 6 of 12 are 924, 4 of 16 are 1820."""

BATCH_TOKENS = 2048


class Settings(Base):
    """What is done to the routing, and how much of it."""

    axis: ClassVar[str] = "routing"
    severity_field: ClassVar[str] = "amount"
    words: ClassVar[Mapping[str, Wording]] = {"alteration": "{}", "choose": "{}"}
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {"choose": ("random",)}

    alteration: Literal["noise", "top_k", "drop", "quantize"]
    amount: int | float
    choose: Literal["random", "usage", "reconstruction"] | None = None

    @field_validator("amount", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("a number")  # noqa: TRY004 pydantic reports ValueError alone
        return value

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        whole = isinstance(self.amount, int)
        allowed = {
            "noise": (self.amount > 0, "above 0, times the router weights' root mean square"),
            "top_k": (whole and self.amount >= 1, "a number of experts, 1 or more"),
            "drop": (0 < self.amount < 1, "a share of experts between 0 and 1"),
            "quantize": (whole and 2 <= self.amount <= 8, "a number of bits from 2 to 8"),
        }
        right, what = allowed[self.alteration]
        if not right:
            raise ValueError(f"amount {self.amount}: for {self.alteration} it is {what}")
        if (self.alteration == "drop") != (self.choose is not None):
            raise ValueError("choose: random, usage or reconstruction for alteration drop, and for no other")
        return self

    @property
    def severity(self) -> float:
        """How much of the routing is disturbed; see the module's docstring."""
        return {
            "noise": float(self.amount),
            "top_k": 1 / self.amount,
            "drop": float(self.amount),
            "quantize": 2.0**-self.amount,
        }[self.alteration]

    @property
    def label(self) -> str:
        """The variant for people."""
        return {
            "noise": f"router noise {number(self.amount)}",
            "top_k": f"top {self.amount}",
            "drop": f"{percent(self.amount)} of experts dropped, {self.choose}",
            "quantize": f"router of {self.amount} bit",
        }[self.alteration]

    @property
    def statistics(self) -> tuple[str, ...]:
        """The calibration tokens, where the choice of experts depends on them."""
        return ("tokens",) if self.choose in ("usage", "reconstruction") else ()

    @property
    def changes_weights(self) -> bool:
        """True where a weight has to change: the number of experts a token takes lies in the configuration alone."""
        return self.alteration != "top_k"

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        number = number_of_experts(config)
        if not number:
            return "routing needs a model with experts: config.json has neither num_local_experts nor num_experts"
        chosen = config["num_experts_per_tok"]
        if self.alteration == "top_k" and (self.amount > number or self.amount == chosen):
            return f"top_k {self.amount}: from 1 to the model's {number} experts, and not the {chosen} that it takes"
        if self.alteration == "drop":
            gone = count(float(self.amount), number)
            if not 0 < gone <= number - chosen:
                return (
                    f"drop {self.amount} of {number} experts takes out {gone}; at least 1 must go and "
                    f"{chosen} must stay, as many as a token takes"
                )
            if self.choose == "reconstruction" and math.comb(number, gone) > SUBSETS:
                return (
                    f"reconstruction: {gone} of {number} experts can be dropped in {math.comb(number, gone)} ways, and "
                    f"at most {SUBSETS} are tried; choose usage"
                )
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Disturb the routing of ``model`` in place."""
    from hemorrhage.models.experts import mixtures

    problem = settings.check(model.config.to_dict())
    if problem:
        raise ValueError(problem)
    by_name = mixtures(model)
    with torch.no_grad():
        if settings.alteration == "noise":
            generator = torch.Generator().manual_seed(context.seed)
            for mixture in by_name.values():
                weight = mixture.gate.weight
                drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
                exact = weight.float()
                weight.copy_(exact + settings.amount * exact.square().mean().sqrt() * drawn)
        elif settings.alteration == "quantize":
            grid = GridSettings(bits=int(settings.amount), group_size="channel")
            for mixture in by_name.values():
                weight = mixture.gate.weight
                weight.copy_(quantize(weight.float(), weight.shape[1], grid, torch.float32).dense())
        elif settings.alteration == "top_k":
            _take(model, int(settings.amount))
        else:
            for name, kept in choose(model, settings, context.statistics, context.seed).items():
                _keep(by_name[name], kept)
            model.config.num_experts = min(len(mixture.experts) for mixture in by_name.values())


def choose(
    model: PreTrainedModel, settings: Settings, statistics: Statistics | None, seed: int
) -> dict[str, list[int]]:
    """Return ``{mixture: experts that stay, in their order}``."""
    from hemorrhage.models.experts import mixtures

    by_name = mixtures(model)
    number = len(next(iter(by_name.values())).experts)
    kept = number - count(float(settings.amount), number)
    if settings.choose == "random":
        numbers = random.Random(seed)
        return {name: sorted(numbers.sample(range(number), kept)) for name in by_name}
    assert statistics is not None
    if settings.choose == "usage":
        seen = usage(model, statistics.tokens())
        ranks = {
            name: sorted(range(number), key=lambda e: (-of_mixture["tokens"][e], e))
            for name, of_mixture in seen.items()
        }
        return {name: sorted(rank[:kept]) for name, rank in ranks.items()}
    names = {mixture: name for name, mixture in by_name.items()}
    progress = tqdm(total=len(by_name), desc="experts", unit="layer", mininterval=5, leave=False)
    result = {}
    for _, mixture, x in mlp_inputs(model, statistics.tokens()):
        if mixture in names:
            losses = reconstruction(mixture, x, kept)
            subset, _ = min(losses.items(), key=lambda item: item[1])
            result[names[mixture]] = list(subset)
            progress.update()
    return result


def reconstruction(mixture: Any, x: Tensor, kept: int) -> dict[tuple[int, ...], float]:
    """Return ``{experts that stay: ‖F(x) - F'(x)‖²}`` for all subsets of ``kept`` experts of a float32 ``mixture``.

    ``x`` float32 [tokens, hidden]. Both outputs are sums of the same experts' outputs with other weights, so that
    their inner products, experts² a token, are all that is needed.
    """
    subsets: list[tuple[int, ...]] = list(itertools.combinations(range(len(mixture.experts)), kept))
    losses = dict.fromkeys(subsets, 0.0)
    with torch.no_grad():
        for batch in x.split(BATCH_TOKENS):
            given = torch.stack([expert(batch) for expert in mixture.experts], dim=1)
            inner = given @ given.transpose(1, 2)
            logits = batch @ mixture.gate.weight.T
            whole = weights(logits, mixture.gate)
            for subset in subsets:
                masked = torch.full_like(logits, -torch.inf)
                masked[:, subset] = logits[:, subset]
                change = whole - weights(masked, mixture.gate)
                losses[subset] += torch.einsum("te,tef,tf->", change, inner, change).item()
    return losses


def weights(logits: Tensor, gate: Any) -> Tensor:
    """Return weight of every expert, float32 [tokens, experts]: that of the router ``gate`` for ``logits``, else 0."""
    value, index = logits.float().softmax(-1).topk(gate.top_k, dim=-1)
    if getattr(gate, "norm_topk_prob", True):
        value = value / value.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter_(1, index, value)


def _take(model: PreTrainedModel, number: int) -> None:
    from hemorrhage.models.experts import mixtures

    model.config.num_experts_per_tok = number
    for mixture in mixtures(model).values():
        for module in (mixture, mixture.gate):
            if hasattr(module, "top_k"):
                module.top_k = number


def _keep(mixture: Any, kept: list[int]) -> None:
    from hemorrhage.models.experts import Experts

    mixture.experts = Experts([mixture.experts[index] for index in kept])
    mixture.gate.weight = torch.nn.Parameter(mixture.gate.weight[kept].clone())
    mixture.gate.num_experts = len(kept)


METHOD = Method(
    MethodInfo(
        title="Disturbed routing (NAEE)",
        summary="router noise, other top-k, dropped experts, a quantized router; also on a native Mixtral or Qwen-MoE",
        papers=(Paper("Lu et al.", "2402.14800"),),
        examples=(
            {"alteration": "top_k", "amount": 1},
            {"alteration": "noise", "amount": 0.1},
            {"alteration": "drop", "amount": 0.25, "choose": "usage"},
            {"alteration": "quantize", "amount": 4},
        ),
    ),
    Settings,
    alter,
)
