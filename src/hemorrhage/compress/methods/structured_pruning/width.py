"""Width pruning: attention heads and MLP channels are taken out of the blocks (LLM-Pruner; arXiv 2305.11627).

What goes goes as a coupled group, so that every matrix still fits its neighbours: a head of keys and values
with the query heads that read it (rows of q, k and v, columns of o), or an MLP channel (a row of gate, a row
of up, a column of down). Each pruned block loses the same share of its heads, rounded to whole ones, and
channels make up the difference to that share of its weights; in each block the least important groups go.
Importance is summed over a group:

- ``taylor1``, element¹: ``|g w|`` of every weight;
- ``taylor2``, element²: ``|g w - ½ h w²|``, with h the mean square of the samples' gradients, the diagonal of
  the Fisher matrix in the place of the Hessian;
- ``vector``: ``|Σ g w|`` of every row (of q, k, v, gate, up) or column (of o, down) of the group;
- ``magnitude``: ``w²``; ``random``: at random; the controls.

Which rows and columns belong together is found by trying (compress.solvers.coupled), in fused layers too. Heads that
are of one group, or whose family's code knows their number (OPT, GPT-2), stay, and channels make up for all of it.
Blocks with experts are refused.

The gradients are the dense model's. As in the paper the first and the last blocks can be spared; what is not
taken out of them is taken out of the others. Where all blocks come out alike, config.json says how wide they
are and transformers alone loads the model; else the layers are narrower than config.json says. ``shuffled`` is
the control: the gradients of a matrix in random places.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from tqdm import tqdm

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.info import GRADIENTS, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import ConfigJson, Context, Method, Wording, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.coupled import find_parts
from hemorrhage.compress.solvers.stack import FEWER
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.compress.solvers.coupled import Coupled, Parts


OTHER_PARTS = ("expert", "moe", "mamba", "conv", "linear_num", "lora")
"""In names of settings of models with other parts than attention and MLPs, whose weights config.json does not tell."""


def weights_removed(share: float) -> str:
    """Return how much is taken out, in words."""
    return f"{percent(share)} of the blocks' weights"


class Settings(Base):
    """The share of the blocks' weights to take out, how groups are ranked, and the blocks that are spared.

    The share counts the weights of spared blocks, too. The paper spares the first 4 (or 3) and the last 2 (or 1)
    blocks; with 0 and 0 all blocks come out alike.
    """

    axis: ClassVar[str] = "removed"
    severity_field: ClassVar[str] = "removed"
    words: ClassVar[Mapping[str, Wording]] = {
        "removed": weights_removed,
        "importance": "{}",
        "protect_first": "first {} blocks spared",
        "protect_last": "last {} spared",
    }
    always_named: ClassVar[tuple[str, ...]] = ("importance", "protect_first", "protect_last")
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {"importance": ("random",)}

    removed: Annotated[float, Field(gt=0, lt=1)]
    importance: Literal["taylor1", "taylor2", "vector", "magnitude", "random"] = "taylor1"
    protect_first: Annotated[int, Field(ge=0, strict=True)] = 4
    protect_last: Annotated[int, Field(ge=0, strict=True)] = 2
    shuffled: bool = False

    @model_validator(mode="after")
    def _gradients_to_shuffle(self) -> Settings:
        if self.shuffled and not self.statistics:
            raise ValueError(f"shuffled: gradients are what is shuffled, and importance {self.importance} reads none")
        return self

    @property
    def statistics(self) -> tuple[str, ...]:
        """The gradients, unless groups are ranked by their weights or drawn at random."""
        return () if self.importance in ("magnitude", "random") else ("gradients",)

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        if any(config[key] for key in config if any(part in key for part in OTHER_PARTS)):
            return None
        names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        sizes = [config.get(name) for name in names]
        number, hidden, channels, heads = (size if isinstance(size, int) else 0 for size in sizes)
        if not number * hidden * channels * heads:
            return None
        groups = config.get("num_key_value_heads") or heads
        of_group = hidden * (config.get("head_dim") or hidden // heads) * (2 + 2 * heads // groups)
        # Gated MLPs have three matrices, others two: what is possible for neither is refused.
        of_channel = [matrices * hidden for matrices in (3, 2)]
        shapes = [Shape(groups, of_group, channels, one, groups * of_group + channels * one) for one in of_channel]
        problems = [_problem([shape] * number, self) for shape in shapes]
        return problems[0] if all(problems) else None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where a block has no MLP whose channels can be taken out, or is too narrow."""
        parts = find_parts(model)
        _refuse_other_blocks(model, parts, self)
        problem = _problem(shapes_of(model, parts), self)
        if problem:
            raise RefusedError(problem)
        return None


@dataclass(frozen=True)
class Shape:
    """How wide a block is: heads of keys and values that can be taken out (``groups``), MLP channels, and weights.

    ``groups`` is 1 where none can.
    """

    groups: int
    group_weights: int
    channels: int
    channel_weights: int
    weights: int

    def gone(self, share: float) -> tuple[int, int]:
        """Return groups and channels to take out for ``share`` of the weights.

        That share of the groups, rounded to whole ones, halves up, of which one stays; the channels make up
        the difference. Their number is beyond those there are where that can't be.
        """
        target = share * self.weights
        most = int(target / self.group_weights) if self.group_weights else 0
        groups = min(int(share * self.groups + 0.5), self.groups - 1, most)
        return groups, max(0, round((target - groups * self.group_weights) / self.channel_weights))


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Make the blocks of ``model`` narrower in place."""
    stack, parts = blocks(model), find_parts(model)
    _refuse_other_blocks(model, parts, settings)
    shapes = shapes_of(model, parts)
    problem = _problem(shapes, settings)
    if problem:
        raise ValueError(problem)
    share = pruned_share(shapes, settings)
    generator = torch.Generator().manual_seed(context.seed)
    chosen = [index for index in range(len(stack)) if is_pruned(index, len(stack), settings)]
    with torch.no_grad():
        for index in tqdm(chosen, desc="width", unit="block", mininterval=5, leave=False):
            groups, channels = shapes[index].gone(share)
            of_groups, of_channels = importances(model, index, parts[index], settings, context.statistics, generator)
            heads, mlp = parts[index].heads, parts[index].channels
            if heads is not None:
                heads.keep(stack[index], _kept(of_groups, groups))
            if mlp is not None:
                mlp.keep(stack[index], _kept(of_channels, channels))
    _write_config(model, parts, chosen)


def importances(
    model: PreTrainedModel,
    index: int,
    parts: Parts,
    settings: Settings,
    statistics: Statistics | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the importance of each group [groups] and channel [channels] of block ``index``: float32."""
    sizes = [len(coupled) if coupled is not None else 1 for coupled in (parts.heads, parts.channels)]
    if settings.importance == "random":
        drawn = torch.rand(sum(sizes), generator=generator)
        return drawn[: sizes[0]], drawn[sizes[0] :]
    block = blocks(model)[index]
    names = {module: name for name, module in model.named_modules()}

    def vectors(layer: str, axis: int) -> Tensor:
        linear: Any = block.get_submodule(layer)
        gradient = root = None
        if settings.importance != "magnitude":
            assert statistics is not None
            gradient = statistics.gradient(names[linear])
            if gradient.shape != linear.weight.shape:
                raise ValueError(f"{names[linear]}: the gradients are those of a model of another width")
            if settings.importance == "taylor2":
                root = statistics.gradient_rms(names[linear])
            if settings.shuffled:
                # Both in one order, so that they stay what belongs together.
                order = torch.randperm(gradient.numel(), generator=generator)
                gradient = gradient.flatten()[order].view_as(gradient)
                root = None if root is None else root.flatten()[order].view_as(root)
        return importance(linear.weight.float(), gradient, root, settings.importance, axis)

    def of(coupled: Coupled | None) -> Tensor:
        if coupled is None:
            return torch.zeros(1)
        total = vectors(coupled.reader, 0)[coupled.columns].sum(1)
        for layer, rows in coupled.rows.items():
            total += vectors(layer, 1)[rows].sum(1)
        return total

    return of(parts.heads), of(parts.channels)


def importance(weight: Tensor, gradient: Tensor | None, root: Tensor | None, measure: str, axis: int) -> Tensor:
    """Return the importance of the rows (``axis`` 1) or columns (``axis`` 0) of ``weight`` [out, in]: [out] or [in].

    ``gradient``: the loss's, [out, in]; ``root``: root of the approximation of the Hessian's diagonal, here of
    the mean square of the samples' gradients, [out, in].
    """
    if measure == "magnitude":
        return weight.square().sum(axis)
    assert gradient is not None
    first = gradient * weight
    if measure == "vector":
        return first.sum(axis).abs()
    if measure == "taylor2":
        assert root is not None
        return (first - 0.5 * (root * weight).square()).abs().sum(axis)
    return first.abs().sum(axis)


def _kept(importance: Tensor, gone: int) -> Tensor:
    """Return the places of all but the ``gone`` least important, in their order: int64."""
    return importance.argsort(stable=True)[gone:].sort().values


def shapes_of(model: PreTrainedModel, parts: list[Parts]) -> list[Shape]:
    """Return how wide the blocks are."""
    linears = linears_of(model)
    names = {module: name for name, module in model.named_modules()}
    shapes = []
    for block, part in zip(blocks(model), parts, strict=True):
        weights = sum(linear.weight.numel() for name, linear in linears.items() if name.startswith(f"{names[block]}."))
        shapes.append(Shape(*_size(part.heads, block), *_size(part.channels, block), weights))
    return shapes


def _refuse_other_blocks(model: PreTrainedModel, parts: list[Parts], settings: Settings) -> None:
    """Raise RefusedError where a block that is pruned has no MLP to take channels out of."""
    from hemorrhage.models.experts import mixtures

    names = {module: name for name, module in model.named_modules()}
    for index, (block, part) in enumerate(zip(blocks(model), parts, strict=True)):
        if part.channels is None and is_pruned(index, len(parts), settings):
            what = "experts" if mixtures(block) else "no plain MLP"
            raise RefusedError(f"width takes channels out of MLPs, and {names[block]} has {what}")


def _size(coupled: Coupled | None, block: nn.Module) -> tuple[int, int]:
    """Return the number of groups, and the weights of one."""
    return (1, 0) if coupled is None else (len(coupled), coupled.weights(block))


def is_pruned(index: int, number: int, settings: Settings) -> bool:
    """Return whether the block ``index`` of ``number`` is not spared."""
    return settings.protect_first <= index < number - settings.protect_last


def pruned_share(shapes: list[Shape], settings: Settings) -> float:
    """Return the share of the weights of the blocks that are not spared that has to go."""
    whole = sum(shape.weights for shape in shapes)
    pruned = sum(s.weights for index, s in enumerate(shapes) if is_pruned(index, len(shapes), settings))
    return settings.removed * whole / pruned


def _problem(shapes: list[Shape], settings: Settings) -> str | None:
    chosen = [s for index, s in enumerate(shapes) if is_pruned(index, len(shapes), settings)]
    spared = len(shapes) - len(chosen)
    if not chosen:
        return (
            f"protect_first {settings.protect_first} and protect_last {settings.protect_last} "
            f"spare all {len(shapes)} layers"
        )
    share = pruned_share(shapes, settings)
    for shape in chosen:
        groups, channels = shape.gone(share)
        if channels >= shape.channels:
            most = (shape.groups - 1) * shape.group_weights + (shape.channels - 1) * shape.channel_weights
            limit = most / shape.weights * len(chosen) / len(shapes)
            return (
                f"removed {settings.removed} with {spared} of {len(shapes)} layers spared is {share:.3g} of "
                f"the others; a head and a channel must stay in each, so at most {limit:.3g} is possible"
            )
        if groups == channels == 0:
            return f"removed {settings.removed} is less than one of {shape.channels} MLP channels"
    return None


def _write_config(model: PreTrainedModel, parts: list[Parts], chosen: list[int]) -> None:
    """Put the blocks' widths into the configuration where all are alike and it can say them.

    Tried: the model of a configuration has to have the shapes of this one. transformers refuses a Llama whose heads
    don't divide its hidden size, although head_dim says how wide they are; such a model's attention layers are narrower
    than its config.json says.
    """
    stack = blocks(model)
    if len(chosen) < len(stack):
        return
    config: Any = model.config
    for coupled, entries in [(part, _entries(model, part)) for part in (parts[0].channels, parts[0].heads) if part]:
        layers = [f"{name}.weight" for name in (*coupled.rows, coupled.reader)]
        for changes in entries:
            other = copy.deepcopy(config)
            if _set(other, changes) and _says(other, model, layers):
                _set(config, changes)
                break


def _set(config: Any, changes: dict[str, int]) -> bool:
    """Make ``changes`` in a configuration; return whether it takes them."""
    try:
        for key, value in changes.items():
            setattr(config.get_text_config(decoder=True), key, value)
    except AttributeError:
        # Some families compute an entry of others.
        return False
    return True


def _entries(model: PreTrainedModel, coupled: Coupled) -> list[dict[str, int]]:
    """Return the changes of config.json that may say how many groups of ``coupled`` are left."""
    text: Any = model.config.get_text_config(decoder=True)
    columns = blocks(model)[0].get_parameter(f"{coupled.reader}.weight").shape[1]
    if coupled.width > 1:
        heads = columns // coupled.width
        queries = coupled.columns.shape[1] // coupled.width
        changes = {"num_attention_heads": heads, "num_key_value_heads": heads // queries, "head_dim": coupled.width}
        return [changes, {"num_attention_heads": heads, "head_dim": coupled.width}]
    before = len(coupled)
    keys = [key for key, value in text.to_dict().items() if value == before and isinstance(value, int)]
    # The likeliest first, as other entries may be the same number.
    likeliest = sorted(keys, key=lambda key: not any(part in key for part in ("intermediate", "ffn", "inner")))
    return [{key: columns} for key in likeliest]


def _says(config: Any, model: PreTrainedModel, layers: list[str]) -> bool:
    """Return whether transformers takes ``config``, and ``layers`` of the blocks of its model are as wide as here."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        shapes = expected_shapes(type(config).from_dict(config.to_dict()))
    except (ValueError, StrictDataclassError):
        return False
    names = {module: name for name, module in model.named_modules()}
    return all(
        shapes.get(f"{names[block]}.{layer}") == block.get_parameter(layer).shape
        for block in blocks(model)
        for layer in layers
    )


METHOD = Method(
    MethodInfo(
        title="Width pruning (LLM-Pruner)",
        summary="heads with their query heads, and MLP channels, by Taylor importance, magnitude or at random",
        papers=(Paper("Ma et al.", "2305.11627"),),
        examples=({"removed": 0.2}, {"removed": 0.2, "importance": "random", "protect_first": 0, "protect_last": 0}),
        storage=("plain", "pruned_width"),
        improves_on=tuple(
            Comparison(
                GRADIENTS,
                "width",
                ("removed", "protect_first", "protect_last"),
                treated={"importance": ("taylor1", "taylor2", "vector")},
                untreated={"importance": (control,)},
            )
            for control in ("magnitude", "random")
        ),
        values=FEWER,
        spares_blocks=True,
    ),
    Settings,
    alter,
)
