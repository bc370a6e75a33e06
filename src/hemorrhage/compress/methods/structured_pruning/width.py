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

The gradients are the dense model's. As in the paper the first and the last blocks can be spared; what is not
taken out of them is taken out of the others. Where all blocks come out alike, config.json says how wide they
are and transformers alone loads the model; else the layers are narrower than config.json says. ``shuffled`` is
the control: the gradients of a matrix in random places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from tqdm import tqdm

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.info import GRADIENTS, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import ConfigJson, Context, Method, Wording, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.stack import FEWER
from hemorrhage.models.blocks import blocks
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""What config.json calls models whose blocks are the layers below and norms that no head is a part of."""

HEAD_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
HEAD_COLUMNS = "self_attn.o_proj"
CHANNEL_ROWS = ("mlp.gate_proj", "mlp.up_proj")
CHANNEL_COLUMNS = "mlp.down_proj"


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
        measure = config.get("model_type", "llama")
        if measure not in MODEL_TYPES:
            return f"width is for {', '.join(MODEL_TYPES)}; this model is a {measure}"
        heads = config["num_attention_heads"]
        shape = Shape(
            groups=config.get("num_key_value_heads") or heads,
            heads=heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            channels=config["intermediate_size"],
            hidden=config["hidden_size"],
        )
        return _problem([shape] * config["num_hidden_layers"], self)

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where a block isn't Llama-like, dense and unpacked, or too narrow."""
        problem = _problem([_shape(block) for block in blocks(model)], self)
        if problem:
            raise RefusedError(problem)
        return None


@dataclass(frozen=True)
class Shape:
    """How wide a block is: key-value heads (``groups``), query heads, head width, MLP channels, input."""

    groups: int
    heads: int
    head_dim: int
    channels: int
    hidden: int

    @property
    def group_weights(self) -> int:
        """Weights of a head of keys and values with its query heads."""
        return self.hidden * self.head_dim * (2 + 2 * self.heads // self.groups)

    @property
    def channel_weights(self) -> int:
        """Weights of an MLP channel."""
        return 3 * self.hidden

    @property
    def weights(self) -> int:
        """Weights of the block's linear layers."""
        return self.groups * self.group_weights + self.channels * self.channel_weights

    def gone(self, share: float) -> tuple[int, int]:
        """Return groups and channels to take out for ``share`` of the weights.

        That share of the groups, rounded to whole ones, halves up, of which one stays; the channels make up
        the difference. Their number is beyond those there are where that can't be.
        """
        target = share * self.weights
        groups = min(int(share * self.groups + 0.5), self.groups - 1, int(target / self.group_weights))
        return groups, max(0, round((target - groups * self.group_weights) / self.channel_weights))


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Make the blocks of ``model`` narrower in place."""
    stack = blocks(model)
    shapes = [_shape(block) for block in stack]
    problem = _problem(shapes, settings)
    if problem:
        raise ValueError(problem)
    share = _share(shapes, settings)
    generator = torch.Generator().manual_seed(context.seed)
    chosen = [index for index in range(len(stack)) if _pruned(index, len(stack), settings)]
    with torch.no_grad():
        for index in tqdm(chosen, desc="width", unit="block", mininterval=5, leave=False):
            shape = shapes[index]
            groups, channels = shape.gone(share)
            of_groups, of_channels = importances(model, index, shape, settings, context.statistics, generator)
            _narrow(stack[index], shape, _kept(of_groups, groups), _kept(of_channels, channels))
    _write_config(model.config, [_shape(block) for block in stack])


def importances(
    model: PreTrainedModel,
    index: int,
    shape: Shape,
    settings: Settings,
    statistics: Statistics | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the importance of each group [groups] and channel [channels] of block ``index``: float32."""
    if settings.importance == "random":
        drawn = torch.rand(shape.groups + shape.channels, generator=generator)
        return drawn[: shape.groups], drawn[shape.groups :]
    block = blocks(model)[index]
    names = {module: name for name, module in model.named_modules()}

    def vectors(layer: str, axis: int) -> Tensor:
        linear = _linear(block, layer)
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

    def by_group(rows: Tensor) -> Tensor:
        grouped: Tensor = rows.unflatten(0, (shape.groups, -1))
        return grouped.sum(1)

    heads = by_group(vectors(HEAD_COLUMNS, 0))
    for layer in HEAD_ROWS:
        heads += by_group(vectors(layer, 1))
    channels = vectors(CHANNEL_COLUMNS, 0)
    for layer in CHANNEL_ROWS:
        channels += vectors(layer, 1)
    return heads, channels


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


def _narrow(block: nn.Module, shape: Shape, groups: Tensor, channels: Tensor) -> None:
    """Leave only ``groups`` and ``channels`` in ``block``."""
    for name in HEAD_ROWS:
        layer = _linear(block, name)
        _keep_rows(layer, _members(groups, layer.out_features // shape.groups))
    layer = _linear(block, HEAD_COLUMNS)
    _keep_columns(layer, _members(groups, layer.in_features // shape.groups))
    for name in CHANNEL_ROWS:
        _keep_rows(_linear(block, name), channels)
    _keep_columns(_linear(block, CHANNEL_COLUMNS), channels)


def _members(groups: Tensor, width: int) -> Tensor:
    """Return the places of the rows of ``groups`` that have ``width`` neighbouring rows each."""
    return (groups[:, None] * width + torch.arange(width)).flatten()


def _keep_rows(linear: nn.Linear, places: Tensor) -> None:
    linear.weight.data = linear.weight.data[places]
    if linear.bias is not None:
        linear.bias.data = linear.bias.data[places]
    linear.out_features = len(places)


def _keep_columns(linear: nn.Linear, places: Tensor) -> None:
    linear.weight.data = linear.weight.data[:, places].contiguous()
    linear.in_features = len(places)


def _linear(block: nn.Module, name: str) -> nn.Linear:
    """Return the layer ``name`` of ``block``. Raises RefusedError where there is no plain linear layer."""
    try:
        layer = block.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, torch.nn.Linear):
        measure = "absent" if layer is None else f"a {type(layer).__name__}"
        raise RefusedError(f"width prunes plain linear layers; {name} of a {type(block).__name__} is {measure}")
    return layer


def _shape(block: nn.Module) -> Shape:
    """How wide ``block`` is. Raises RefusedError where it isn't Llama-like, dense and unpacked."""
    query, key, up = (_linear(block, name) for name in (HEAD_ROWS[0], HEAD_ROWS[1], CHANNEL_ROWS[1]))
    for name in (HEAD_ROWS[2], HEAD_COLUMNS, CHANNEL_ROWS[0], CHANNEL_COLUMNS):
        _linear(block, name)
    head_dim: Any = block.get_submodule("self_attn").head_dim
    return Shape(
        groups=key.out_features // head_dim,
        heads=query.out_features // head_dim,
        head_dim=head_dim,
        channels=up.out_features,
        hidden=up.in_features,
    )


def _pruned(index: int, number: int, settings: Settings) -> bool:
    return settings.protect_first <= index < number - settings.protect_last


def _share(shapes: list[Shape], settings: Settings) -> float:
    """Return the share of the weights of the blocks that are not spared that has to go."""
    whole = sum(shape.weights for shape in shapes)
    pruned = sum(s.weights for index, s in enumerate(shapes) if _pruned(index, len(shapes), settings))
    return settings.removed * whole / pruned


def _problem(shapes: list[Shape], settings: Settings) -> str | None:
    chosen = [s for index, s in enumerate(shapes) if _pruned(index, len(shapes), settings)]
    spared = len(shapes) - len(chosen)
    if not chosen:
        return (
            f"protect_first {settings.protect_first} and protect_last {settings.protect_last} "
            f"spare all {len(shapes)} layers"
        )
    share = _share(shapes, settings)
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


def _write_config(config: Any, shapes: list[Shape]) -> None:
    """Put the blocks' widths into ``config`` where all are alike and the configuration can say them."""
    shape = shapes[0]
    if any(other != shape for other in shapes):
        return
    config.intermediate_size = shape.channels
    # transformers refuses a Llama whose heads don't divide its hidden size, although head_dim says how wide
    # they are. Such a model's attention layers are narrower than its config.json says.
    if config.model_type != "llama" or shape.hidden % shape.heads == 0:
        config.num_attention_heads = shape.heads
        config.num_key_value_heads = shape.groups
        config.head_dim = shape.head_dim


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
