"""Where a block's attention hands on what a linear layer gives: the values of its heads. Found by trying.

Over a single token attention gives each head its value as it is, so that the input of the layer behind it is made of
outputs of the layer that makes values: which of them shows whatever the layout of fused layers and of shared heads is.
That a basis of a head's values can be changed, which gates, clamps or norms between both layers would not allow, is
tried over several tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.solvers.basis import SEED, TOKENS, Stream, constant_outputs, record_inputs, stream_basis
from hemorrhage.models.blocks import blocks
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.models.blockwise import BlockArguments

CLOSE = 1e-4
LOUD = 1e3
"""Factor of values that a clamp, which rarely acts, acts on."""


@dataclass(frozen=True)
class Values:
    """The values of a block's attention: ``rows`` [heads, n] of the layer ``maker`` are what ``reader`` reads.

    A head is one of values, which several heads of queries may share; ``columns`` [heads, queries, n] are those of the
    reader. ``maker`` and ``reader`` are names in the block.
    """

    maker: str
    reader: str
    rows: Tensor
    columns: Tensor

    @property
    def width(self) -> int:
        """Features of a head."""
        return self.rows.shape[1]


def find_values(model: PreTrainedModel, stream: Stream) -> list[Values | None]:
    """Return the values of each block's attention whose basis can be changed, None where it has none.

    Tried on one block of each structure.
    """
    from hemorrhage.models.blockwise import embed, in_float32

    heads = getattr(model.config.get_text_config(decoder=True), "num_attention_heads", None)
    of_blocks: list[Values | None] = []
    known: dict[Any, Values | None] = {}
    with torch.no_grad():
        single, several = (
            embed(model, (torch.arange(1, number + 1, device=model.device)[None],))[1] for number in (1, TOKENS)
        )
        for index, block in enumerate(blocks(model)):
            structure = tuple((name, type(module)) for name, module in block.named_modules())
            if structure not in known:
                writers = [name for stage in stream.stages[index] for name in stage.writers]
                with in_float32(block):
                    tried = observe_values(block, writers, single[index], stream.width, heads)
                    turning = (each for each in tried if _turns(block, each, several[index], stream.width))
                    known[structure] = next(turning, None)
            of_blocks.append(known[structure])
    return of_blocks


def observe_values(
    block: nn.Module, writers: Sequence[str], single: BlockArguments, width: int, heads: int | None
) -> list[Values]:
    """Return what one of ``writers`` of a block in float32 may read of another layer, as it is, likeliest first.

    ``single``: the arguments for one token; ``heads``: of queries, as the configuration has them. Blocks may have
    fewer, which the width of their heads tells.
    """
    from hemorrhage.models.blockwise import run_block

    generator = torch.Generator().manual_seed(SEED)
    linears: dict[str, Any] = {
        name: module for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)
    }
    # Drawn, so that no two of them are equal whatever the weights are.
    given = {name: torch.randn(module.out_features, generator=generator) for name, module in linears.items()}
    read: dict[str, Tensor] = {}
    with record_inputs(linears, read), constant_outputs(linears, given):
        run_block(block, torch.randn(1, 1, width, generator=generator), single)
    observed = []
    for writer in writers:
        columns = linears[writer].in_features
        if writer not in read or read[writer].numel() != columns:
            continue
        attention = block.get_submodule(writer.rpartition(".")[0])
        of_head = [getattr(attention, key, None) for key in ("head_dim", "head_size")]
        widths = [columns // heads if heads and columns % heads == 0 else None, *of_head]
        for maker, output in given.items():
            rows = None if maker == writer else _copied(read[writer].flatten(), output)
            for each in dict.fromkeys(widths):
                if rows is None or not each or columns % each:
                    continue
                values = _by_head(maker, writer, rows.unflatten(0, (-1, each)))
                observed += [values] if values is not None else []
    return observed


def _copied(read: Tensor, output: Tensor) -> Tensor | None:
    """Return for each number of ``read`` its place in ``output``; None where one is not there."""
    ordered, order = output.sort()
    above = torch.searchsorted(ordered, read).clamp(1, len(ordered) - 1)
    nearer = torch.where((read - ordered[above - 1]).abs() < (ordered[above] - read).abs(), above - 1, above)
    off = (ordered[nearer] - read).abs().max()
    return order[nearer] if bool(off <= 1e-6 * read.abs().max()) and bool(read.any()) else None


def _by_head(maker: str, reader: str, rows: Tensor) -> Values | None:
    """Return the values of heads that read ``rows`` [queries, n]; None where heads share some of a head's rows only."""
    queries: dict[tuple[int, ...], list[int]] = {}
    for head, of_head in enumerate(rows.tolist()):
        queries.setdefault(tuple(of_head), []).append(head)
    used = [row for of_head in queries for row in of_head]
    if len(set(used)) < len(used) or len({len(each) for each in queries.values()}) > 1:
        return None
    width = rows.shape[1]
    columns = torch.tensor([[[head * width + at for at in range(width)] for head in each] for each in queries.values()])
    return Values(maker, reader, torch.tensor(list(queries)), columns)


def _turns(block: nn.Module, values: Values, arguments: BlockArguments, width: int) -> bool:
    """Return whether a block computes what it did where the values of its heads are in another basis."""
    from hemorrhage.models.blockwise import run_block

    basis = stream_basis(values.width, False, SEED)
    states = torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(SEED))
    for factor in (1.0, LOUD):
        usual, twin = copy.deepcopy(block), copy.deepcopy(block)
        _scale(usual, values, factor)
        _scale(twin, values, factor)
        parameters = _parameters(twin, values)
        for parameter in parameters["maker"]:
            turned = basis.rotate(parameter.data[values.rows].transpose(1, -1)).transpose(1, -1)
            parameter.data[values.rows] = turned
        reader = parameters["reader"][0]
        for of_head in values.columns.flatten(0, 1):
            reader.data[:, of_head] = basis.rotate(reader.data[:, of_head])
        expected = run_block(usual, states, arguments)
        added = (expected - states).abs().max()
        if not bool((run_block(twin, states, arguments) - expected).abs().max() <= CLOSE * added):
            return False
    return True


def _parameters(block: nn.Module, values: Values) -> Mapping[str, list[nn.Parameter]]:
    maker: Any = block.get_submodule(values.maker)
    reader: Any = block.get_submodule(values.reader)
    return {"maker": [each for each in (maker.weight, maker.bias) if each is not None], "reader": [reader.weight]}


def _scale(block: nn.Module, values: Values, factor: float) -> None:
    parameters = _parameters(block, values)
    for parameter in parameters["maker"]:
        parameter.data[values.rows] *= factor
    parameters["reader"][0].data /= factor
