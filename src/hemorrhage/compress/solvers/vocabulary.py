"""Embedding and head in few bits, as an option of methods that round the layers of the blocks.

Both are rounded to nearest on a symmetric grid, which is all that engines read of an embedding, with the group size of
the other layers. Where they are tied, one matrix is rounded, stored and read twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from hemorrhage.compress.solvers.grid import GridSettings, GroupSettings, Quantized, group_width
from hemorrhage.compress.solvers.packing import pack, scheme
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Rounding = Callable[["Tensor", int, GridSettings, "torch.dtype"], Quantized]
"""A weight, the columns that share a scale, the grid and the dtype of scales -> its codes."""

VocabularyBits = Annotated[int, Field(ge=2, le=8, strict=True)] | None


class VocabularySettings(GroupSettings):
    """``embeddings``: bits of the embedding and the head; as in the base model where nothing is said."""

    embeddings: VocabularyBits = None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where groups don't divide the rows of what is rounded."""
        check_vocabulary(model, self.embeddings, self.group_size)
        return super().check_model(model)


def check_vocabulary(model: PreTrainedModel, bits: int | None, group_size: int | Literal["channel"]) -> None:
    """Raise RefusedError where the embedding or the head of ``model`` can't be rounded in groups of that size."""
    if bits is not None:
        grid = vocabulary_grid(bits, group_size)
        for name, module in vocabulary_matrices(model).items():
            group_width(name, module.weight.shape[1], grid)


def vocabulary_grid(bits: int, group_size: int | Literal["channel"]) -> GridSettings:
    """Return the grid of the embedding and the head."""
    return GridSettings(bits=bits, group_size=group_size, symmetric=True)


def quantize_vocabulary(
    model: PreTrainedModel, bits: int | None, group_size: int | Literal["channel"], round_to_nearest: Rounding
) -> None:
    """Round the embedding and the head of ``model`` in place to ``bits``, if any."""
    if bits is None:
        return
    from hemorrhage.models.formats.packed import PackedLinear
    from hemorrhage.models.formats.storage import store_vocabulary

    grid = vocabulary_grid(bits, group_size)
    for name, module in vocabulary_matrices(model).items():
        weight = module.weight.detach()
        quantized = round_to_nearest(weight, group_width(name, weight.shape[1], grid), grid, weight.dtype)
        packed = pack(name, quantized, grid.bits)
        store_vocabulary(model, name, PackedLinear(packed, {"weights": scheme(grid, symmetric=True)}, None))


def vocabulary_matrices(model: PreTrainedModel) -> dict[str, Any]:
    """Return the modules by name. Raises RefusedError where one of them is no matrix, or of a class of its own."""
    from hemorrhage.models.formats.storage import vocabulary_modules

    modules = vocabulary_modules(model)
    for name, module in modules.items():
        if not isinstance(module, torch.nn.Embedding | torch.nn.Linear):
            raise RefusedError(f"embeddings: {name} is a {type(module).__name__}, which is not rounded here")
    return modules
