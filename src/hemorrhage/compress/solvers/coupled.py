"""What of a block can only be taken out together: rows of layers and the columns that read them. Found by trying.

Gradients show it. What a head hands on depends on the rows of its own queries, keys and values; a number that leaves an
MLP's activation on the rows of its own channel. In the end one head, or one channel, is taken out of the block. It has
to compute what it does where nothing reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.solvers.values import Values, observe_values
from hemorrhage.models.blocks import blocks
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.models.blockwise import BlockArguments

TOKENS = 24
"""Enough for every channel of a rectified activation to be open at one of them."""

CLOSE = 1e-4
"""Of the largest number that the block adds."""

SEED = 5


@dataclass(frozen=True)
class Coupled:
    """Groups of rows and columns: ``rows`` layer -> int64 [groups, n]; ``columns`` int64 [groups, m] of ``reader``.

    ``width``: of a head; 1 of channels. Names are those in the block.
    """

    rows: Mapping[str, Tensor]
    reader: str
    columns: Tensor
    width: int = 1

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.columns)

    def keep(self, block: nn.Module, groups: Tensor) -> None:
        """Leave only ``groups`` in ``block``."""
        for name, rows in self.rows.items():
            linear: Any = block.get_submodule(name)
            places = rows[groups].flatten().sort().values
            linear.weight.data = linear.weight.data[places]
            if linear.bias is not None:
                linear.bias.data = linear.bias.data[places]
            linear.out_features = len(places)
        reader: Any = block.get_submodule(self.reader)
        reader.weight.data = reader.weight.data[:, self.columns[groups].flatten().sort().values].contiguous()
        reader.in_features = reader.weight.shape[1]

    def weights(self, block: nn.Module) -> int:
        """Return how many weights a group has."""
        inputs = sum(rows.shape[1] * block.get_parameter(f"{name}.weight").shape[1] for name, rows in self.rows.items())
        return inputs + self.columns.shape[1] * len(block.get_parameter(f"{self.reader}.weight"))


@dataclass(frozen=True)
class Parts:
    """The heads of a block, those of keys and values with the queries that read them, and the channels of its MLP.

    None is what can't be taken out.
    """

    heads: Coupled | None
    channels: Coupled | None


def find_parts(model: PreTrainedModel) -> list[Parts]:
    """Return the parts of each block. Tried on one block of each structure and shape."""
    from hemorrhage.models.blockwise import embed, in_float32

    heads = getattr(model.config.get_text_config(decoder=True), "num_attention_heads", None)
    known: dict[Any, Parts] = {}
    parts = []
    with torch.no_grad():
        single, several = (
            embed(model, (torch.arange(1, number + 1, device=model.device)[None],)) for number in (1, TOKENS)
        )
    width = single[0][0].shape[-1]
    for index, block in enumerate(blocks(model)):
        modules = tuple((name, type(module)) for name, module in block.named_modules())
        structure = (*modules, *(value.shape for value in block.parameters()))
        if structure not in known:
            with in_float32(block):
                trial = _Trial(block, single[1][index], several[1][index], width)
                known[structure] = Parts(trial.heads(heads), trial.channels())
        parts.append(known[structure])
    return parts


class _Trial:
    """A block in float32, what its linear layers give, and how that depends on each other."""

    def __init__(self, block: nn.Module, single: BlockArguments, several: BlockArguments, width: int) -> None:
        self.block, self.single, self.several, self.width = block, single, several, width
        self.linears: dict[str, Any] = {
            name: module
            for name, module in block.named_modules()
            if isinstance(module, torch.nn.Linear) and ".experts." not in name
        }
        self.generator = torch.Generator().manual_seed(SEED)
        self.states = torch.randn(1, TOKENS, width, generator=self.generator)
        self.read: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        hooks = [linear.register_forward_hook(self._note(name)) for name, linear in self.linears.items()]
        try:
            with torch.enable_grad():
                self._run(block)
        finally:
            for hook in hooks:
                hook.remove()
        self.writers = [name for name in self.read if self.linears[name].out_features == width]

    def _note(self, name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Any) -> Any:
            if not isinstance(output, torch.Tensor):
                return output
            # A leaf for each output: only what comes from one layer to the next counts, not what an earlier layer did.
            # Drawn, so that zeros in the weights hide nothing.
            self.read[name] = arguments[0]
            self.given[name] = torch.randn(output.shape, generator=self.generator).requires_grad_()
            # Some families go on in place.
            return self.given[name].clone()

        return hook

    def heads(self, queries: int | None) -> Coupled | None:
        """Return the heads of the block, by head of values; ``queries``: as many as the configuration has."""
        with torch.no_grad():
            observed = observe_values(self.block, self.writers, self.single, self.width, queries)
        return next((heads for values in observed if (heads := self._heads(values)) is not None), None)

    def _heads(self, values: Values) -> Coupled | None:
        columns = values.columns.flatten(1)
        rows: dict[str, list[list[int]]] = {}
        touched = [self._touched(values.reader, of_head) for of_head in columns]
        for name in self.given:
            masks = torch.stack([each[name] for each in touched])
            if not masks.any() or (masks.sum(0) > 1).all():
                # Not of the attention, or of all of its heads, as the latents of keys and values are.
                continue
            of_heads = [mask.nonzero()[:, 0].tolist() for mask in masks]
            if (masks.sum(0) != 1).any() or len({len(each) for each in of_heads}) > 1:
                return None
            rows[name] = of_heads
        coupled = Coupled(
            {name: torch.tensor(each) for name, each in rows.items()}, values.reader, columns, values.width
        )
        # A single group stays anyway.
        return coupled if len(coupled) == 1 or self._proves(coupled) else None

    def _touched(self, reader: str, columns: Tensor) -> dict[str, Tensor]:
        """Return for each layer which of its rows ``columns`` of what ``reader`` reads depend on: bool [rows]."""
        weights = torch.zeros(self.read[reader].shape[-1])
        weights[columns] = torch.rand(len(columns), generator=self.generator) + 0.5
        return {name: (gradient.abs().sum(0) > 0) for name, gradient in self._gradients(reader, weights)}

    def channels(self) -> Coupled | None:
        """Return the channels of the block's MLP; None where the block has experts, each with its own."""
        from hemorrhage.models.experts import mixtures

        if mixtures(self.block):
            return None
        for reader in self.writers:
            columns = self.read[reader].shape[-1]
            weights = [
                torch.ones(columns),
                torch.arange(1.0, columns + 1),
                torch.rand(columns, generator=self.generator),
            ]
            gradients = [dict(self._gradients(reader, each)) for each in weights]
            rows: dict[str, Tensor] = {}
            for name in self.given:
                ones, counting, drawn = (each[name] for each in gradients)
                places = _places(ones, counting, drawn, weights[2])
                if places is not None:
                    rows[name] = places
            touching = {name for name, gradient in gradients[2].items() if gradient.any()}
            if not rows or touching != set(rows):
                continue
            coupled = Coupled(rows, reader, torch.arange(columns)[:, None])
            if self._proves(coupled):
                return coupled
        return None

    def _gradients(self, reader: str, weights: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield layer and gradient [tokens, rows], by what it gives, of the weighted sum of what ``reader`` reads."""
        read = self.read[reader]
        names = list(self.given)
        gradients: Sequence[Tensor | None] = [None] * len(names)
        if read.requires_grad:
            with torch.enable_grad():
                total = (read * weights).sum()
            given = [self.given[name] for name in names]
            gradients = torch.autograd.grad(total, given, retain_graph=True, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            whole = torch.zeros_like(self.given[name]) if gradient is None else gradient
            yield name, whole.detach().flatten(0, -2)

    def _run(self, block: nn.Module) -> Tensor:
        from hemorrhage.models.blockwise import run_block

        return run_block(block, self.states, self.several)

    def _proves(self, coupled: Coupled) -> bool:
        """Return whether a block without one group computes what it does where nothing reads that group."""
        silent, narrow = copy.deepcopy(self.block), copy.deepcopy(self.block)
        reader: Any = silent.get_submodule(coupled.reader)
        gone = len(coupled) // 2
        coupled.keep(narrow, torch.tensor([group for group in range(len(coupled)) if group != gone]))
        with torch.no_grad():
            reader.weight[:, coupled.columns[gone]] = 0
            expected = self._run(silent)
            try:
                after = self._run(narrow)
            except (RuntimeError, ValueError, IndexError):
                # The family's code knows the number of heads.
                return False
        return bool((after - expected).abs().max() <= CLOSE * (expected - self.states).abs().max())


def _places(ones: Tensor, counting: Tensor, drawn: Tensor, weights: Tensor) -> Tensor | None:
    """Return the rows of a layer for each column [columns, n] that each depend on it alone; None where rows mix.

    ``ones``, ``counting``, ``drawn``: gradients [tokens, rows] of the sum of the columns, weighted by 1, by 1, 2, 3...,
    and by ``weights`` [columns]. Of a row that one column depends on they have the ratio of this column's weights.
    """
    best = ones.abs().argmax(0, keepdim=True)
    one, counted, weighted = (each.gather(0, best)[0].double() for each in (ones, counting, drawn))
    open_rows = one != 0
    if not open_rows.any():
        return None
    column = torch.where(open_rows, counted / torch.where(open_rows, one, 1), 1).round().long() - 1
    columns, rows = len(weights), len(one)
    if rows % columns:
        return None
    # Rows that are closed at all tokens are where the others' layout says.
    counts = torch.arange(rows)
    for layout in (counts % columns, counts // (rows // columns)):
        fits = torch.equal(layout[open_rows], column[open_rows]) and 2 * open_rows.sum() > rows
        expected = weights[layout].double() * one
        if fits and (weighted - expected)[open_rows].abs().max() <= 1e-3 * expected.abs().max():
            of_columns: Tensor = layout.argsort(stable=True).unflatten(0, (columns, -1))
            return of_columns
    return None
