"""Refusing alterations that failed silently."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hemorrhage.compress.folder import distinct
from hemorrhage.compress.size import weight_files
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def check_finite(model: PreTrainedModel) -> None:
    """Raises ValueError where a weight is NaN or infinite."""
    for name, value in distinct(model).items():
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite weights after the alteration")


def changed(model: PreTrainedModel, base: Path) -> float:
    """Share of weights that differ from those of the same name in the ``base`` folder.

    Weights that only one of both has count as different.
    """
    from safetensors import safe_open

    mine = distinct(model)
    different = total = 0
    for file in weight_files(base):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if name not in mine and name in model.all_tied_weights_keys:
                    continue
                theirs: Tensor = tensors.get_tensor(name)
                total += theirs.numel()
                if name in mine:
                    different += int((mine.pop(name) != theirs.to(torch.float32)).sum())
                else:
                    different += theirs.numel()
    new = sum(value.numel() for value in mine.values())
    return (different + new) / (total + new)


def zero_share(linears: dict[str, nn.Linear]) -> float:
    """Share of zeros among the weights of ``linears``."""
    weights = [linear.weight for linear in linears.values()]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
