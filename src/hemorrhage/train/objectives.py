"""What a model is trained for: the next token of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hemorrhage.train.batches import Windows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PIECE = 4096
"""Tokens that are computed at once: gradients of a batch's pieces are added up."""

MEASURED = 64
"""Windows of each part that the held-out loss is the mean of, at most."""


class Objective(Protocol):
    """What the loop trains: its length, a step's gradients, and the loss on what is held out."""

    steps: int

    def tokens(self, steps: int) -> int:
        """Count the tokens that the first ``steps`` steps read."""

    def backward(self, model: PreTrainedModel, step: int) -> float:
        """Add a step's gradients to those of ``model``; return its loss."""

    def heldout(self, model: PreTrainedModel) -> float:
        """Return the loss on what is held out."""


class NextToken:
    """Every token of every window: the mean cross-entropy in nats, in float32; of a mixture the routers' loss, too."""

    def __init__(self, train: Windows, heldout: Windows, batch: int, tokens: int, is_lowered: bool) -> None:
        """``batch``: windows of a step; ``is_lowered``: products are in bfloat16."""
        self.train, self.held_out, self.batch, self.is_lowered = train, heldout, batch, is_lowered
        self.steps = max(1, round(tokens / (batch * train.length)))

    def tokens(self, steps: int) -> int:
        """Count the tokens that the first ``steps`` steps read."""
        return steps * self.batch * self.train.length

    def backward(self, model: PreTrainedModel, step: int) -> float:
        """Add a step's gradients to those of ``model``; return its cross-entropy per token."""
        rows = max(1, PIECE // self.train.length)
        total = 0.0
        for first in range(0, self.batch, rows):
            count = min(rows, self.batch - first)
            windows = self.train.batch(step * self.batch + first, count)
            loss, of_routers = self._losses(model, windows)
            ((loss + of_routers) * (count / self.batch)).backward()
            total += float(loss.detach()) * (count / self.batch)
        return total

    def heldout(self, model: PreTrainedModel) -> float:
        """Return the mean cross-entropy of held-out windows, each part with its share."""
        return float(np.dot(self.held_out.shares, list(self.heldout_by_part(model).values())))

    def heldout_by_part(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the mean cross-entropy of the first held-out windows of each part."""
        import torch

        rows = max(1, PIECE // self.held_out.length)
        means = {}
        model.eval()
        with torch.no_grad():
            for part, windows in self.held_out.counts.items():
                chosen = [self.held_out.window(part, index) for index in range(min(windows, MEASURED))]
                sums = [
                    float(self._losses(model, np.stack(chosen[first : first + rows]))[0])
                    * len(chosen[first : first + rows])
                    for first in range(0, len(chosen), rows)
                ]
                means[part] = sum(sums) / len(chosen)
        model.train()
        return means

    def _losses(self, model: PreTrainedModel, windows: Any) -> tuple[Tensor, Tensor]:
        import torch

        ids = torch.from_numpy(windows.astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_lowered):
            logits, of_routers = forward(model, ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()), of_routers


def forward(model: PreTrainedModel, ids: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    """Return a model's logits, and the load-balancing loss of its routers in the weight that its config gives it."""
    weight = getattr(model.config, "router_aux_loss_coef", 0.0) or 0.0
    asked = {"output_router_logits": True} if weight else {}
    outputs = model(input_ids=ids, use_cache=False, **asked, **more)
    balance = getattr(outputs, "aux_loss", None)
    return outputs.logits, outputs.logits.new_zeros(()) if balance is None else weight * balance
