"""Disturbing the routing of a model with experts, of any family whose experts are taken apart, or one made by a parent.

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

What a family's router does not go with is refused by trying it on a mixture: a number of experts that is not to be set
(PhiMoE's is always two), experts in groups (DeepSeek), and, for ``reconstruction``, a router that is no softmax over
all experts of which the largest are taken.
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
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording, number, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.methods.weight_quantization.rtn import quantize
from hemorrhage.compress.solvers.experts import keep_experts, number_of_experts, set_number_of_experts
from hemorrhage.compress.solvers.grid import GridSettings
from hemorrhage.compress.solvers.stack import count
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
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
        if not isinstance(number, int) or not isinstance(chosen, int):
            return f"routing needs the same number of experts in all blocks, and they have {number}, of which {chosen}"
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

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where the model's router does not go with what is to be done to it."""
        from hemorrhage.models.experts import mixtures

        mixture = next(iter(mixtures(model).values()), None)
        kind = type(mixture).__name__
        if mixture is None:
            raise RefusedError(f"no block of {type(model).__name__} has experts that a router chooses")
        if self.alteration == "top_k" and not _takes(mixture, int(self.amount)):
            raise RefusedError(f"how many experts a token takes is no number that can be set in a {kind}")
        groups = model.config.get_text_config(decoder=True).to_dict().get("n_group") or 1
        if self.alteration == "drop" and groups > 1:
            raise RefusedError(f"the experts of a {kind} are in {groups} groups of one size, and none can be dropped")
        if self.choose == "reconstruction" and not _is_softmax(mixture):
            raise RefusedError(
                f"reconstruction is for routers that take the largest of a softmax over all experts; a {kind}'s is "
                "another; choose usage"
            )
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Disturb the routing of ``model`` in place."""
    from hemorrhage.models.architecture import entries
    from hemorrhage.models.experts import mixtures, routing_layer

    problem = settings.check(entries(model.config))
    if problem:
        raise ValueError(problem)
    by_name = mixtures(model)
    with torch.no_grad():
        if settings.alteration == "noise":
            generator = torch.Generator().manual_seed(context.seed)
            for mixture in by_name.values():
                weight = routing_layer(mixture).weight
                drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
                exact = weight.float()
                _set(mixture, weight, exact + settings.amount * exact.square().mean().sqrt() * drawn)
        elif settings.alteration == "quantize":
            grid = GridSettings(bits=int(settings.amount), group_size="channel")
            for mixture in by_name.values():
                weight = routing_layer(mixture).weight
                _set(mixture, weight, quantize(weight.float(), weight.shape[1], grid, torch.float32).dense())
        elif settings.alteration == "top_k":
            _take(model, int(settings.amount))
        else:
            chosen = choose(model, settings, context.statistics, context.seed)
            for name, kept in chosen.items():
                keep_experts(by_name[name], kept)
            set_number_of_experts(model.config, min(len(mixture.experts) for mixture in by_name.values()))
            return Alteration(experts=chosen)
    return Alteration()


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
    from hemorrhage.models.experts import router, routing_logits

    subsets: list[tuple[int, ...]] = list(itertools.combinations(range(len(mixture.experts)), kept))
    losses = dict.fromkeys(subsets, 0.0)
    with torch.no_grad():
        for batch in x.split(BATCH_TOKENS):
            given = torch.stack([expert(batch) for expert in mixture.experts], dim=1)
            inner = given @ given.transpose(1, 2)
            logits = routing_logits(mixture, batch)
            whole = weights(logits, router(mixture))
            for subset in subsets:
                masked = torch.full_like(logits, -torch.inf)
                masked[:, subset] = logits[:, subset]
                change = whole - weights(masked, router(mixture))
                losses[subset] += torch.einsum("te,tef,tf->", change, inner, change).item()
    return losses


def weights(logits: Tensor, gate: Any) -> Tensor:
    """Return weight of every expert, float32 [tokens, experts]: that of the router ``gate`` for ``logits``, else 0."""
    value, index = logits.float().softmax(-1).topk(gate.top_k, dim=-1)
    if getattr(gate, "norm_topk_prob", True):
        value = value / value.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter_(1, index, value)


def _set(mixture: Any, weight: Tensor, value: Tensor) -> None:
    """Make ``value`` the router's ``weight``, in numbers of the experts' dtype: any checkpoint can hold these."""
    weight.copy_(value.to(next(mixture.experts.parameters()).dtype))


def _take(model: PreTrainedModel, number: int) -> None:
    from hemorrhage.models.experts import mixtures

    model.config.get_text_config(decoder=True).num_experts_per_tok = number
    for mixture in mixtures(model).values():
        _set_taken(mixture, number)


def _set_taken(mixture: Any, number: int) -> None:
    from hemorrhage.models.experts import router

    for module in (mixture, router(mixture)):
        if hasattr(module, "top_k"):
            module.top_k = number


def _takes(mixture: Any, number: int) -> bool:
    """Return whether each token takes ``number`` experts of ``mixture`` where it is told so; it stays as it is."""
    from hemorrhage.models.blockwise import in_float32
    from hemorrhage.models.experts import record_choices, router

    before = getattr(mixture, "top_k", None) or getattr(router(mixture), "top_k", None)
    if before is None:
        return False
    _set_taken(mixture, number)
    try:
        with torch.no_grad(), in_float32(mixture), record_choices(mixture) as taken:
            mixture(_trial(mixture)[None])
    finally:
        _set_taken(mixture, before)
    return bool(taken[0].shape[-1] == number)


def _is_softmax(mixture: Any) -> bool:
    """Return whether ``weights`` has the weight that each expert of ``mixture`` gets."""
    from hemorrhage.models.blockwise import in_float32
    from hemorrhage.models.experts import router, routing_logits

    given: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if len(arguments) == 3:
            given.append(torch.zeros(len(arguments[1]), len(mixture.experts)).scatter(1, *_cpu(arguments[1:])))

    hook = mixture.experts.register_forward_pre_hook(keep)
    try:
        with torch.no_grad(), in_float32(mixture):
            x = _trial(mixture)
            mixture(x[None])
            logits = routing_logits(mixture, x)
    finally:
        hook.remove()
    if not given or not hasattr(router(mixture), "top_k"):
        return False
    return bool(torch.allclose(given[0], weights(logits, router(mixture)).cpu(), rtol=1e-4, atol=1e-6))


def _cpu(choice: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    index, weight = choice
    return index.cpu(), weight.float().cpu()


def _trial(mixture: Any) -> Tensor:
    """Return inputs [tokens, hidden] that a mixture is tried with."""
    from hemorrhage.models.experts import routing_layer

    expert = next(mixture.experts.parameters())
    hidden = routing_layer(mixture).weight.shape[1]
    drawn = torch.randn(8, hidden, generator=torch.Generator().manual_seed(0))
    return drawn.to(expert.device, expert.dtype)


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
