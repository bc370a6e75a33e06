"""FLAP (An et al., arXiv 2312.11983): heads and channels whose inputs fluctuate least go, their means become a bias.

What a head or a channel of an MLP hands on is a column of the layer that reads it (o, down). On the calibration tokens
the column j of its input X has a mean and a variance. Of little variance it is almost a constant, which a bias of the
reader can stand for. Importance of a column, of the reader's weight W, by ``metric``:

    wifv    Var(X_j) ‖W_:j‖²               weighted input feature variance
    ifv     Var(X_j)                       input feature variance
    wifn    mean_i |W_ij| · norm2(X_j)     weighted input feature norm

Columns of a layer are standardized, ``(s - mean) / deviation``, those of attention squared before, as in the authors'
program; a head has the mean of its columns. Then all heads and channels of all blocks are ranked together, each with as
many weights as it has, and those of the lowest go until ``removed`` of the blocks' weights have gone, give or take half
of the last. So blocks end up of different widths. A head with its query heads, and a channel, stay in each.

``compensate`` adds to the reader's bias what the columns gave on average: ``b += W_:gone mean(X_gone)``. Layers without
a bias get one, which no config.json of most families can say: such checkpoints are this bench's alone.

Groups are those of width pruning, found by trying (hemorrhage.compress.solvers.coupled). Heads that can't be taken out
one by one stay. Statistics are the dense model's, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.info import COMPENSATION, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.methods.structured_pruning.width import shapes_of, weights_removed
from hemorrhage.compress.solvers.coupled import find_parts
from hemorrhage.compress.solvers.stack import FEWER
from hemorrhage.models.blocks import blocks
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.compress.solvers.coupled import Coupled, Parts


class Settings(Base):
    """The share of the blocks' weights to take out, how columns are ranked, and whether a bias stands for them."""

    axis: ClassVar[str] = "removed"
    severity_field: ClassVar[str] = "removed"
    words: ClassVar[Mapping[str, Wording]] = {
        "removed": weights_removed,
        "metric": str.upper,
        "compensate": "bias for what goes",
    }
    always_named: ClassVar[tuple[str, ...]] = ("metric", "compensate")

    removed: Annotated[float, Field(gt=0, lt=1)]
    metric: Literal["wifv", "ifv", "wifn"] = "wifv"
    compensate: bool = True

    @property
    def statistics(self) -> tuple[str, ...]:
        """Means, variances and norms of inputs."""
        return ("activations",)

    @property
    def second_order(self) -> bool:
        """A bias makes up for what goes."""
        return self.compensate

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where a block has no MLP whose channels can be taken out, or too little can go."""
        parts = find_parts(model)
        names = {module: name for name, module in model.named_modules()}
        for block, part in zip(blocks(model), parts, strict=True):
            if part.channels is None:
                raise RefusedError(f"flap takes channels out of MLPs, and {names[block]} has no plain one")
        whole = sum(shape.weights for shape in shapes_of(model, parts))
        most = sum(group.weights for group in groups_of(model, parts)) / whole
        if self.removed >= most:
            raise RefusedError(f"removed {self.removed}: a head and a channel stay in each block, so {most:.3g} can go")
        return None


@dataclass(frozen=True)
class Groups:
    """Groups of a block that can go: all but one of its heads, or of its channels; ``each``: weights of one."""

    block: int
    coupled: Coupled
    is_attention: bool
    each: int

    @property
    def weights(self) -> int:
        """Weights of all that can go."""
        return self.each * (len(self.coupled) - 1)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Make the blocks of ``model`` narrower in place."""
    parts, statistics = find_parts(model), context.calibration
    groups = groups_of(model, parts)
    names = {module: name for name, module in model.named_modules()}
    firsts = {name: first for first, readers in statistics.shared().items() for name in readers}
    whole = sum(shape.weights for shape in shapes_of(model, parts))
    with torch.no_grad():
        scores = []
        for each in groups:
            reader: Any = blocks(model)[each.block].get_submodule(each.coupled.reader)
            columns = column_scores(reader.weight.float(), statistics, firsts[names[reader]], settings.metric)
            scores.append(group_scores(columns, each.coupled, each.is_attention))
        kept = choose(scores, [each.each for each in groups], settings.removed * whole)
        for each, mask in zip(groups, kept, strict=True):
            block = blocks(model)[each.block]
            reader = block.get_submodule(each.coupled.reader)
            if settings.compensate:
                gone = each.coupled.columns[~mask].flatten()
                add_bias(reader, gone, statistics.mean(firsts[names[reader]]))
            each.coupled.keep(block, mask.nonzero()[:, 0])


def groups_of(model: PreTrainedModel, parts: list[Parts]) -> list[Groups]:
    """Return the groups of all blocks of which some can go."""
    groups = []
    for index, (block, part) in enumerate(zip(blocks(model), parts, strict=True)):
        for coupled, is_attention in ((part.heads, True), (part.channels, False)):
            if coupled is not None and len(coupled) > 1:
                groups.append(Groups(index, coupled, is_attention, coupled.weights(block)))
    return groups


def column_scores(W: Tensor, statistics: Statistics, first: str, metric: str) -> Tensor:
    """Return the importance of the columns of ``W`` float32 [rows, columns], which read the input of ``first``."""
    if metric == "wifn":
        return W.abs().mean(0) * statistics.norms(first)
    variance = statistics.variance(first)
    return variance * W.square().sum(0) if metric == "wifv" else variance


def group_scores(columns: Tensor, coupled: Coupled, is_attention: bool) -> Tensor:
    """Return the standardized importance of each group [groups] of the ``columns`` [columns] of its reader."""
    scores = columns.double().square() if is_attention else columns.double()
    # Where all are alike nothing tells them apart.
    standard = (scores - scores.mean()) / scores.std().clamp(min=torch.finfo(torch.float64).tiny)
    return standard[coupled.columns].mean(1)


def choose(scores: list[Tensor], weights: list[int], goal: float) -> list[Tensor]:
    """Return which groups stay: bool [groups] for each of ``scores`` [groups], of as many ``weights`` each.

    Those of the lowest scores go, the best of each aside, until the weights that went are nearest to ``goal``.
    """
    entries = sorted(
        (score, place, group)
        for place, each in enumerate(scores)
        for group, score in enumerate(each.tolist())
        if group != int(each.argmax())
    )
    kept = [torch.ones(len(each), dtype=torch.bool) for each in scores]
    gone = 0.0
    for _, place, group in entries:
        if gone + weights[place] / 2 > goal:
            break
        kept[place][group] = False
        gone += weights[place]
    return kept


def add_bias(reader: nn.Linear, gone: Tensor, mean: Tensor) -> None:
    """Add to the bias of ``reader`` what its columns ``gone`` int64 [n] give for inputs of this ``mean`` [columns]."""
    constant = reader.weight[:, gone].float() @ mean[gone].to(reader.weight.device)
    if reader.bias is not None:
        constant += reader.bias.float()
    reader.bias = torch.nn.Parameter(constant.to(reader.weight.dtype), requires_grad=False)


METHOD = Method(
    MethodInfo(
        title="FLAP",
        summary="heads and MLP channels of the least fluctuation, ranked over all blocks; a bias for their means",
        papers=(Paper("An et al.", "2312.11983"),),
        examples=({"removed": 0.2}, {"removed": 0.2, "metric": "wifn", "compensate": False}),
        storage=("pruned_width",),
        improves_on=(
            Comparison(
                COMPENSATION,
                "flap",
                ("removed", "metric"),
                treated={"compensate": (True,)},
                untreated={"compensate": (False,)},
                changed=("compensate",),
            ),
        ),
        values=FEWER,
        spares_blocks=True,
    ),
    Settings,
    alter,
)
