"""Training while weights are pruned: one budget of steps and tokens for pruning by size, by loss, by regularization.

Every method trains all linear layers of the decoder blocks on calibration windows, in float32, towards the next token,
by AdamW without weight decay; the learning rate warms up and falls as in recovery, gradients have a norm of 1 at most.
What differs is a ``Rule``: which weights a step computes with, what it learns of gradients, and what it does to weights
afterwards. With equal ``steps``, ``batch`` and ``learning_rate`` all have read the same tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hemorrhage.compress.method import Context
from hemorrhage.compress.solvers.training import CLIP, TrainedSettings, Training, batches, rate, restore_dtypes
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class PrunedSettings(TrainedSettings):
    """The budget of a training that prunes."""

    @property
    def second_order(self) -> bool:
        """Weights that stay learn to make up for those that go."""
        return True


class Rule:
    """What a step does besides descending. ``state``: tensors that a job which resumes gets back as they were."""

    state: tuple[Tensor, ...] = ()

    def compute_with(self, step: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002 see subclasses
        """Return the weights that ``step`` computes with, of those that are trained, by layer."""
        return weights

    def see_gradients(self, weights: dict[str, Tensor]) -> None:
        """Look at the gradients of the step's weights, and change what the optimizer is to see of them."""

    def after_step(self, weights: dict[str, Tensor], learning_rate: float) -> None:
        """Change the weights after a step of the optimizer with this ``learning_rate``."""


def train(model: PreTrainedModel, rule: Rule, settings: PrunedSettings, context: Context) -> dict[str, Tensor]:
    """Return the trained weights float32 of each linear layer; ``model`` stays as it is, but for its dtype, float32.

    ``rule.state`` is on the device of the model. Raises ValueError where the loss is not finite.
    """
    model.float().requires_grad_(False)
    weights = {name: each.weight.detach().clone().requires_grad_() for name, each in linears_of(model).items()}
    parameters = list(weights.values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings.steps))
    drawn = batches(context.calibration.tokens(), settings.batch, context.seed)
    training = Training([*parameters, *rule.state], optimizer, schedule, settings.steps, context.progress)
    for tokens in training.remaining(drawn, "pruned training"):
        batch = tokens.to(model.device)
        chosen = rule.compute_with(len(training.losses), weights)
        named = {f"{name}.weight": weight for name, weight in chosen.items()}
        arguments = {"input_ids": batch, "use_cache": False}
        logits = torch.func.functional_call(model, named, (), arguments).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            rule.see_gradients(weights)
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            rule.after_step(weights, float(learning_rate))
        training.finish(loss.item())
    tenth = -(-len(training.losses) // 10)
    first, last = sum(training.losses[:tenth]) / tenth, sum(training.losses[-tenth:]) / tenth
    log.info("training loss %.4f in the first tenth of the steps, %.4f in the last", first, last)
    return {name: weight.detach() for name, weight in weights.items()}


def write_back(model: PreTrainedModel, weights: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Put ``weights`` into the linear layers of ``model``, and everything into its dtype of before."""
    for name, linear in linears_of(model).items():
        linear.weight.data = weights[name]
    restore_dtypes(model, dtypes)


def total_rate(settings: PrunedSettings) -> float:
    """Return the sum of the learning rates of all steps."""
    return settings.learning_rate * sum(rate(step, settings.steps) for step in range(settings.steps))
