"""The numbers that an evaluation multiplies: float32, or bfloat16 where processor or GPU is faster with it.

Which of the two is part of params.yaml, of every address and of every protocol, never of the machine: two machines that
chose for themselves would put numbers of two kinds under one address. ``make plan`` measures which is faster here, and
says so.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hemorrhage.models.blocks import blocks, decoder
from hemorrhage.models.blockwise import is_streamed
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def compute_in(model: PreTrainedModel, dtype: str) -> Iterator[None]:
    """While the block runs, products in the model's decoder are of ``dtype`` ("float32" or "bfloat16").

    Weights stay as they are, and norms, softmax and what follows the decoder stay float32 (torch.autocast).
    """
    if dtype == "float32":
        yield
        return
    # Blocks, too: they are called without the decoder where a model is read block by block.
    modules: list[Any] = [decoder(model), *blocks(model)] if is_streamed(model) else [decoder(model)]
    own = [(module, vars(module).get("forward"), module.forward) for module in modules]

    def cast(forward: Any) -> Any:
        # Who calls a block binds its arguments to the names of the block's own.
        @functools.wraps(forward)
        def within(*arguments: Any, **named: Any) -> Any:
            with torch.autocast(model.device.type, dtype=getattr(torch, dtype)):
                return forward(*arguments, **named)

        return within

    for module, _, forward in own:
        module.forward = cast(forward)
    try:
        yield
    finally:
        for module, before, _ in own:
            if before is None:
                del module.forward
            else:
                module.forward = before
