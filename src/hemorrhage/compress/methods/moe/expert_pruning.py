"""Expert pruning: the least important experts of every mixture go, with their rows of the router.

REAP (Lasby et al., arXiv 2510.13999) ranks the experts of a block by what they add to its output:

    S_j = mean over x in X_j of g_j(x) ‖f_j(x)‖₂

    X_j     calibration tokens that the router sends to expert j
    g_j(x)  the weight with which the block adds the expert's output, as its family computes it
    f_j(x)  the expert's output; of Llama 4, whose weight multiplies the expert's input, g f is f(g x)

The other values of ``importance``: ``frequency``, the number of tokens in X_j; ``random``, the control.

``merge`` does not drop a removed expert, but merges it into one that stays, as M-SMoE does (Li et al., arXiv
2310.01334): it joins the one whose router logits are most similar over the calibration tokens (cosine). Its channels
are permuted to fit that one's (the permutation with the largest sum of inner products, by linear assignment, which
takes minutes for experts of 14,336 channels). The weights of a group are averaged by frequency. M-SMoE itself keeps
all rows of the router and as many experts in each block as the block's routing needs; here the rows go, so that
the checkpoint is an ordinary one of its family.

All blocks lose the same number of experts, which config.json says. Of a router that chooses among groups of experts
(DeepSeek), each group loses the same number. Statistics are the unaltered model's.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from tqdm import tqdm

from hemorrhage.calibrate.expert_usage import mlp_inputs
from hemorrhage.compress.info import COMPENSATION, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.experts import keep_experts, number_of_experts, set_number_of_experts
from hemorrhage.compress.solvers.stack import FEWER, count
from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.calibrate.reader import Statistics

BATCH_TOKENS = 2048


def experts_removed(share: float) -> str:
    """Return how much is taken out, in words."""
    return f"{percent(share)} of experts removed"


class Settings(Base):
    """The share of each block's experts to take out, rounded to whole ones, how they are ranked, and merging."""

    axis: ClassVar[str] = "removed"
    severity_field: ClassVar[str] = "removed"
    words: ClassVar[Mapping[str, Wording]] = {
        "removed": experts_removed,
        "importance": {"reap": "REAP", "frequency": "by frequency", "random": "at random"},
        "merge": {True: "merged into others"},
    }
    always_named: ClassVar[tuple[str, ...]] = ("importance",)
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {"importance": ("random",)}

    removed: Annotated[float, Field(ge=0, lt=1)]
    importance: Literal["reap", "frequency", "random"] = "reap"
    merge: bool = False

    @property
    def statistics(self) -> tuple[str, ...]:
        """The calibration tokens, unless experts are drawn at random and dropped."""
        return () if self.importance == "random" and not self.merge else ("tokens",)

    @property
    def changes_weights(self) -> bool:
        """True where at least one expert goes."""
        return self.removed > 0

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        number = number_of_experts(config)
        if not number:
            return (
                "expert_pruning needs a model with experts: config.json has neither num_local_experts nor num_experts"
            )
        taken, groups = config.get("num_experts_per_tok"), config.get("n_group") or 1
        # Hunyuan has a number for each block.
        taken = max(taken) if isinstance(taken, list) else taken
        if not isinstance(number, int) or not isinstance(taken, int):
            return (
                f"expert_pruning needs the same number of experts in all blocks, and they have {number}, of which "
                f"{taken} are taken"
            )
        if self.removed == 0:
            return None
        gone = count(self.removed, number)
        open_groups = config.get("topk_group") or groups
        most = number - -(-taken // open_groups) * groups
        if not 0 < gone <= most:
            return (
                f"removed {self.removed} of {number} experts takes out {gone}; at least 1 must go, and a token takes "
                f"{taken}{f' from {open_groups} of {groups} groups' if groups > 1 else ''}, so at most {most} can"
            )
        if gone % groups:
            return (
                f"removed {self.removed} of {number} experts takes out {gone}; they are in {groups} groups, each of "
                f"which has to lose as many, so it must be a multiple of {groups}"
            )
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where the router or the configuration can't do with fewer experts; both are tried."""
        from hemorrhage.models.experts import mixtures

        by_name = mixtures(model)
        if not by_name:
            raise RefusedError(f"no block of {type(model).__name__} has experts that a router chooses")
        if self.removed == 0:
            return None
        name, mixture = next(iter(by_name.items()))
        number = len(mixture.experts)
        kept = _lowest_gone([0.0] * number, count(self.removed, number), _groups(model))
        if not _routes(mixture, kept):
            raise RefusedError(f"the router of a {type(mixture).__name__} can't choose from {len(kept)} experts")
        _check_config(model, name, len(kept))
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Take experts out of ``model`` in place."""
    from hemorrhage.models.architecture import entries
    from hemorrhage.models.experts import mixtures

    problem = settings.check(entries(model.config))
    if problem:
        raise ValueError(problem)
    if settings.removed == 0:
        return Alteration()
    by_name = mixtures(model)
    chosen = choose(model, settings, context.statistics, context.seed)
    with torch.no_grad():
        for name, groups in tqdm(chosen.items(), desc="experts", unit="layer", mininterval=5, leave=False):
            for kept, members in groups.items():
                if len(members) > 1:
                    merge(by_name[name].experts, kept, members)
            keep_experts(by_name[name], list(groups))
    set_number_of_experts(model.config, min(len(groups) for groups in chosen.values()))
    return Alteration(experts={name: list(groups) for name, groups in chosen.items()})


Merged = Mapping[int, Mapping[int, float]]
"""Expert that stays, ascending -> the experts that it becomes the mean of, itself among them, and their weights."""


def choose(model: PreTrainedModel, settings: Settings, statistics: Statistics | None, seed: int) -> dict[str, Merged]:
    """Return for each mixture which experts stay, and what is merged into them."""
    from hemorrhage.models.experts import mixtures, routing_logits

    names = {mixture: name for name, mixture in mixtures(model).items()}
    number = len(next(iter(names)).experts)
    gone, groups = count(settings.removed, number), _groups(model)
    numbers = random.Random(seed)
    drawn = {name: [numbers.random() for _ in range(number)] for name in names.values()}
    if not settings.statistics:
        return {name: _alone(_lowest_gone(scores, gone, groups)) for name, scores in drawn.items()}
    assert statistics is not None
    chosen: dict[str, Merged] = {}
    progress = tqdm(total=len(names), desc="saliency", unit="layer", mininterval=5, leave=False)
    for _, mixture, x in mlp_inputs(model, statistics.tokens()):
        if mixture not in names:
            continue
        with torch.no_grad():
            saliency, frequency = measure(mixture, x)
            scores = {"reap": saliency.tolist(), "frequency": frequency.tolist(), "random": drawn[names[mixture]]}
            kept = _lowest_gone(scores[settings.importance], gone, groups)
            joined = join(routing_logits(mixture, x), frequency, kept, groups) if settings.merge else _alone(kept)
        chosen[names[mixture]] = joined
        progress.update()
    return chosen


def measure(mixture: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return S of each expert, float64 [experts], 0 without tokens, and the tokens it gets, int64 [experts].

    ``x`` [tokens, hidden]: inputs of a float32 ``mixture``.
    """
    from hemorrhage.models.experts import contributions

    total = torch.zeros(len(mixture.experts), dtype=torch.float64)
    frequency = torch.zeros(len(mixture.experts), dtype=torch.int64)
    for batch in x.split(BATCH_TOKENS):
        for index, (tokens, added) in enumerate(contributions(mixture, batch)):
            total[index] += added.norm(dim=-1).double().sum().cpu()
            frequency[index] += len(tokens)
    return total / frequency.clamp_min(1), frequency


def join(logits: Tensor, frequency: Tensor, kept: list[int], groups: int) -> Merged:
    """Return what M-SMoE's grouping merges: each expert into the one of ``kept`` with the most similar ``logits``.

    ``logits`` [tokens, experts]; ``frequency`` int64 [experts]. Experts of another group of the router are no choice.
    """
    similar = torch.nn.functional.normalize(logits.double(), dim=0)
    similarity = similar.T @ similar
    size = logits.shape[1] // groups
    members: dict[int, list[int]] = {index: [index] for index in kept}
    for index in range(logits.shape[1]):
        if index not in members:
            choices = [stays for stays in kept if stays // size == index // size]
            members[max(choices, key=lambda stays: (similarity[index, stays].item(), -stays))].append(index)
    merged = {}
    for stays, group in members.items():
        tokens = {index: int(frequency[index]) for index in group if frequency[index]}
        merged[stays] = {stays: 0.0, **{index: each / sum(tokens.values()) for index, each in tokens.items()}}
        if not tokens:
            merged[stays] = {stays: 1.0}
    return merged


def merge(experts: nn.ModuleList, kept: int, members: Mapping[int, float]) -> None:
    """Make the expert ``kept`` the mean of ``members``, whose channels are permuted to fit its."""
    stays: Any = experts[kept]
    means = [members[kept] * value.float() for value in stays.parameters()]
    for index, weight in members.items():
        if index != kept:
            order = alignment(stays, experts[index])
            means = [mean + weight * value for mean, value in zip(means, permuted(experts[index], order), strict=True)]
    for value, mean in zip(stays.parameters(), means, strict=True):
        value.data = mean.to(value.dtype)


def alignment(stays: Any, other: Any) -> Tensor:
    """Return the permutation int64 [width] of the channels of ``other`` that fits those of ``stays`` best."""
    from scipy.optimize import linear_sum_assignment

    channels = [
        torch.cat([gate.weight, up.weight, down.weight.T], dim=1).detach().float()
        for gate, up, down in (expert.projections() for expert in (stays, other))
    ]
    _, order = linear_sum_assignment((channels[0] @ channels[1].T).cpu().numpy(), maximize=True)
    return torch.as_tensor(order)


def permuted(expert: Any, order: Tensor) -> list[Tensor]:
    """Return the parameters of an expert, its channels in another order: float32."""
    gate, up, down = expert.projections()
    reordered = {id(value): value.float()[order] for layer in (gate, up) for value in layer.parameters()}
    reordered[id(down.weight)] = down.weight.float()[:, order]
    return [reordered.get(id(value), value.float()) for value in expert.parameters()]


def _alone(kept: list[int]) -> Merged:
    return {index: {index: 1.0} for index in kept}


def _lowest_gone(scores: list[float], gone: int, groups: int) -> list[int]:
    """Return the experts that stay, in their order, when each group loses its lowest; of equal ones the last go."""
    size = len(scores) // groups
    kept: list[int] = []
    for first in range(0, len(scores), size):
        ranked = sorted(range(first, first + size), key=lambda index: (-scores[index], index))
        kept += sorted(ranked[: size - gone // groups])
    return kept


def _groups(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).to_dict().get("n_group") or 1)


def _routes(mixture: Any, kept: list[int]) -> bool:
    """Return whether each token takes as many different experts as before when only ``kept`` are left."""
    from hemorrhage.models.blockwise import in_float32
    from hemorrhage.models.experts import record_choices, routing_layer

    # All but the experts is copied.
    trial = copy.deepcopy(mixture, {id(expert): expert for expert in mixture.experts})
    weight = routing_layer(mixture).weight
    x = torch.randn(8, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device)
    numbers = []
    with torch.no_grad():
        for is_pruned in (False, True):
            if is_pruned:
                keep_experts(trial, kept)
            with in_float32(trial), record_choices(trial) as taken:
                try:
                    trial(x[None])
                except (RuntimeError, IndexError):
                    return False
            numbers.append(taken[0].shape[-1])
            if is_pruned and not 0 <= taken[0].min() <= taken[0].max() < len(kept):
                return False
    return numbers[0] == numbers[1] == len(taken[0][0].unique())


def _check_config(model: PreTrainedModel, name: str, number: int) -> None:
    """Raise RefusedError where transformers does not make mixtures of ``number`` experts of the configuration."""
    from hemorrhage.models.experts import routing_layer

    config = copy.deepcopy(model.config)
    set_number_of_experts(config, number)
    layer = routing_layer(model.get_submodule(name))
    router = next(each for each, module in model.named_modules() if module is layer)
    shape = expected_shapes(config).get(f"{router}.weight")
    if shape is None or shape[0] != number:
        raise RefusedError(f"config.json of a {type(model).__name__} can't say that a block has {number} experts")


METHOD = Method(
    MethodInfo(
        title="Expert pruning (REAP)",
        summary="the least important experts of each block dropped or merged into others: REAP, frequency, at random",
        papers=(Paper("Lasby et al.", "2510.13999"), Paper("Li et al.", "2310.01334")),
        examples=(
            {"removed": 0.25},
            {"removed": 0.25, "importance": "frequency", "merge": True},
            {"removed": 0.25, "importance": "random"},
        ),
        improves_on=(
            Comparison(
                COMPENSATION,
                "expert_pruning",
                same=("removed", "importance"),
                treated={"merge": (True,)},
                untreated={"merge": (False,)},
            ),
        ),
        values=FEWER,
    ),
    Settings,
    alter,
)
