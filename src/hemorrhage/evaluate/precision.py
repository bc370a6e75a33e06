"""The numbers that an evaluation multiplies: float32, or bfloat16 where processor or GPU is faster with it.

Which of the two is part of params.yaml, of every address and of every protocol, never of the machine: two machines that
chose for themselves would put numbers of two kinds under one address. ``python -m hemorrhage.costs`` measures which is
faster here, and says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def computing(model: PreTrainedModel, dtype: str) -> Iterator[None]:
    """While the block runs, products in the model's decoder are of ``dtype`` ("float32" or "bfloat16").

    Weights stay as they are, and norms, softmax and what follows the decoder stay float32 (torch.autocast).
    """
    if dtype == "float32":
        yield
        return
    decoder: Any = model.get_decoder()
    forward = decoder.forward

    def cast(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(model.device.type, dtype=getattr(torch, dtype)):
            return forward(*arguments, **named)

    decoder.forward = cast
    try:
        yield
    finally:
        del decoder.forward
