"""OWL (Yin et al., arXiv 2310.05175): blocks with more outliers are pruned less.

With Wanda's score ``S = |W| · norm2(X)`` of all linear layers of a decoder block, the share of its outliers
is ``D = |{S > threshold · mean(S)}| / |S|``. The shares of all blocks are rescaled to [0, 2 · spread] and
centred, and block l gets the sparsity ``s - D_l``; inside a block all layers have the same. Then ``method``
prunes: Wanda, SparseGPT or magnitude.

The sparsity of the whole is exact: the layers' numbers of zeros add up to ``s`` times the weights (a layer's
rows differ by at most one zero with Wanda; SparseGPT's blocks of columns round each their own, and the next
layer makes up for it). Where a block would be more than nine tenths of the way from s to 0 or to 1, all
``D_l`` are shrunk by one factor; the authors' code cuts such a sparsity off at 1 % and misses s. Statistics
are the dense model's: those of all blocks are needed before the first is pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from tqdm import tqdm

from hemorrhage.compress.info import LAYERWISE, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.methods.unstructured_pruning import sparsegpt
from hemorrhage.compress.solvers.shuffle import shuffle, shuffler
from hemorrhage.compress.solvers.sparsity import SHARES, SparsitySettings, lowest
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(SparsitySettings):
    """Settings of OWL; the defaults are the paper's."""

    words: ClassVar[Mapping[str, Wording]] = {**SparsitySettings.words, "by": "{}"}
    always_named: ClassVar[tuple[str, ...]] = ("by",)

    by: Literal["wanda", "sparsegpt", "magnitude"] = "wanda"
    threshold: Annotated[float, Field(gt=0)] = 5.0
    """An outlier's score over the block's mean."""
    spread: Annotated[float, Field(ge=0, lt=0.5)] = 0.08
    """Half the distance between the sparsities of the least and the most pruned block; 0: all the same."""

    @field_validator("sparsity")
    @classmethod
    def _no_pattern(cls, value: float | str) -> float | str:
        if isinstance(value, str):
            text = "OWL varies the share from block to block: a share between 0 and 1, no pattern"
            raise ValueError(text)  # noqa: TRY004 pydantic reports ValueError alone
        return value

    shuffled: bool = False
    """The control: the blocks' shares of outliers in random places."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """The norms of the layers' input features, and their second moments for SparseGPT."""
        return ("hessian", "activations") if self.by == "sparsegpt" else ("activations",)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place. Raises ValueError where the zeros are not as many as they were to be."""
    linears, statistics = linears_of(model), context.calibration
    groups = statistics.shared()
    with torch.inference_mode():
        norms = {first: statistics.norms(first) for first in groups}
        owner = {module: index for index, block in enumerate(blocks(model)) for module in block.modules()}
        inside: list[dict[str, list[str]]] = [{} for _ in blocks(model)]
        for first, names in groups.items():
            inside[owner[linears[first]]][first] = names
        outliers, sizes = [], []
        for group in inside:
            pairs = [(linears[name].weight, norms[first]) for first, names in group.items() for name in names]
            outliers.append(outlier_share(pairs, settings.threshold))
            sizes.append(sum(weight.numel() for weight, _ in pairs))
        outliers = shuffle(
            torch.tensor(outliers, dtype=torch.float64), shuffler(settings.shuffled, context.seed)
        ).tolist()
        ratios = sparsities(outliers, sizes, settings.severity, settings.spread)

        # What is due in total less what is done is each layer's number, so that nothing rounds away.
        due, done, before, slack = 0.0, 0, 0, 0.0
        for group, ratio in zip(
            tqdm(inside, desc="owl", unit="block", mininterval=5, leave=False), ratios, strict=True
        ):
            for first, names in group.items():
                for together in [names] if settings.by == "sparsegpt" else [[name] for name in names]:
                    weights = [linears[name].weight for name in together]
                    number = sum(weight.numel() for weight in weights)
                    before += number - sum(int(weight.count_nonzero()) for weight in weights)
                    due += ratio * number
                    count = min(max(round(due) - done, 0), number)
                    if settings.by == "sparsegpt":
                        slack = _sparsegpt(weights, statistics.second_moment(first), count / number, first)
                    else:
                        _zero(weights[0], norms[first], count, settings.by)
                    done += number - sum(int(weight.count_nonzero()) for weight in weights)
    wanted, slack = settings.severity * sum(sizes), slack + 0.501
    if not wanted - slack <= done <= wanted + slack + before:
        raise ValueError(f"{wanted:.1f} weights were to become zero; {done} are")


def outlier_share(weights: Sequence[tuple[Tensor, Tensor]], threshold: float) -> float:
    """Return the share of the scores that are above ``threshold`` times their mean.

    ``weights``: each layer's weight [rows, columns] and its inputs' norms [columns].
    """
    number = sum(weight.numel() for weight, _ in weights)
    # Twice, so that the scores of one layer are in memory and not of a block.
    total = sum((weight.float().abs() * norms).double().sum().item() for weight, norms in weights)
    limit = threshold * total / number
    return sum(int((weight.float().abs() * norms > limit).sum()) for weight, norms in weights) / number


def sparsities(outliers: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float) -> list[float]:
    """Return the sparsity of each block, given the share of its outliers.

    Their mean, weighted by the blocks' ``sizes``, is ``sparsity``. The same for all where the shares are.
    """
    low, high = min(outliers), max(outliers)
    if low == high:
        return [sparsity] * len(sizes)
    scaled = [2 * spread * (share - low) / (high - low) for share in outliers]
    mean = sum(value * size for value, size in zip(scaled, sizes, strict=True)) / sum(sizes)
    offsets = [value - mean for value in scaled]
    # At most nine tenths of the way to nothing, and to everything.
    room = [(sparsity if offset > 0 else 1 - sparsity) / abs(offset) for offset in offsets if offset]
    factor = min([1.0, *(0.9 * most for most in room)])
    return [sparsity - factor * offset for offset in offsets]


def lowest_over_rows(scores: Tensor, count: int) -> Tensor:
    """Return the boolean mask of ``count`` low ``scores`` [rows, columns], as evenly over the rows as can be.

    The lowest of each row; what is left over goes to the rows whose next score is lowest, one each.
    """
    each, more = divmod(count, len(scores))
    values, columns = scores.topk(min(each + 1, scores.shape[1]), dim=1, largest=False, sorted=True)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, columns[:, :each], True)
    if more:
        rows = values[:, each].topk(more, largest=False).indices
        mask[rows, columns[rows, each]] = True
    return mask


def _zero(weight: Tensor, norms: Tensor, count: int, method: str) -> None:
    """Return ``count`` of ``weight`` become zero by Wanda's score, or by magnitude over the layer."""
    scores = weight.float().abs()
    if method == "wanda":
        weight.masked_fill_(lowest_over_rows(scores * norms, count), 0)
    else:
        weight.masked_fill_(lowest(scores, count / weight.numel()), 0)


def _sparsegpt(weights: list[Tensor], moment: Tensor, share: float, first: str) -> float:
    """Prune ``weights`` by SparseGPT; returns by how many zeros its rounding can miss ``share``."""
    chosen = sparsegpt.Settings(sparsity=share)
    for weight, new in zip(weights, sparsegpt.prune(weights, moment, chosen, first), strict=True):
        weight.copy_(new)
    return 0.5 * len(weights) * -(-len(moment) // chosen.block_size)


METHOD = Method(
    MethodInfo(
        title="OWL",
        summary="less pruning where outliers are, by Wanda, SparseGPT or magnitude",
        papers=(Paper("Yin et al.", "2310.05175"),),
        examples=({"sparsity": 0.5}, {"sparsity": 0.5, "by": "sparsegpt"}),
        improves_on=tuple(
            Comparison(LAYERWISE, by, ("sparsity",), treated={"by": (by,)}, untreated={"sequential": (False,)})
            for by in ("wanda", "sparsegpt", "magnitude")
        ),
        values=SHARES,
    ),
    Settings,
    alter,
)
