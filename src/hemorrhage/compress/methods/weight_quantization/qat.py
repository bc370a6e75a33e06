"""Quantization-aware training: the weights move until their rounding does less harm (LLM-QAT, arXiv 2305.17888).

A student, whose linear layers in the decoder blocks are rounded to nearest in every step, learns to predict what the
model predicted before: the loss is KL(teacher ‖ student) over the calibration windows, which is the paper's cross
entropy with the teacher's soft labels less a constant. The gradient passes through the rounding as if it were not there
(straight-through: Bengio et al., arXiv 1308.3432), to float32 weights that AdamW moves without weight decay; the grids
follow the weights, from least to greatest, without clipping. Learning rate, schedule and optimizer are the paper's but
for a warm-up of a tenth of the steps and gradients clipped to a norm of 1; its text is generated, this is calibration
text. What is no linear layer of a block stays as it is. In the end the weights are rounded once more and packed.

``shuffled`` is the control: in every step the gradients of a matrix in random places.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from hemorrhage.compress.info import TRAINING, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.compress.solvers.grid import GRID, WIDTHS, Grid, GridSettings, fit, group_width
from hemorrhage.compress.solvers.packing import store
from hemorrhage.compress.solvers.shuffle import shuffle, shuffler
from hemorrhage.compress.solvers.training import (
    CLIP,
    TrainedSettings,
    Training,
    batches,
    rate,
    restore_dtypes,
    stored_dtypes,
)
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class Settings(TrainedSettings, GridSettings):
    """The grid, the budget of the training, and the control."""

    words: ClassVar[Mapping[str, Wording]] = {**GridSettings.words, **TrainedSettings.words}
    always_named: ClassVar[tuple[str, ...]] = (*GridSettings.always_named, *TrainedSettings.always_named)

    shuffled: bool = False


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Train and quantize ``model`` in place; the whole of it is in float32 while it trains.

    Raises ValueError where groups don't divide a layer's inputs, and where the loss is not finite.
    """
    dtypes = stored_dtypes(model)
    linears = linears_of(model)
    widths = {name: group_width(name, linear.in_features, settings) for name, linear in linears.items()}
    model.float().requires_grad_(False)
    weights = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    train(model, weights, widths, {name: dtypes[f"{name}.weight"] for name in linears}, settings, context)
    restore_dtypes(model, dtypes)
    with torch.no_grad():
        for name, weight in weights.items():
            dtype = dtypes[f"{name}.weight"]
            store(model, name, rtn.quantize(weight.detach(), widths[name], settings, dtype), settings)


def train(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    widths: dict[str, int],
    dtypes: dict[str, torch.dtype],
    settings: Settings,
    context: Context,
) -> None:
    """Move ``weights``, float32 of each linear layer, in place; ``model`` with its own weights is the teacher.

    ``widths``: columns that share a grid in each layer, ``dtypes``: what its scales are stored in.
    """
    parameters = [weight.requires_grad_() for weight in weights.values()]
    zeros = [weight.detach() == 0 for weight in parameters] if settings.keep_zeros else []
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings.steps))
    drawn = batches(context.calibration.tokens(), settings.batch, context.seed)
    generator = shuffler(settings.shuffled, context.seed)
    training = Training(parameters, optimizer, schedule, settings.steps, context.progress, generator)
    for tokens in training.remaining(drawn, "qat"):
        batch = tokens.to(model.device)
        with torch.no_grad():
            target = model(input_ids=batch, use_cache=False).logits.flatten(0, 1).log_softmax(-1)
        rounded = {
            f"{name}.weight": straight_through(weight, widths[name], settings, dtypes[name])
            for name, weight in weights.items()
        }
        arguments = {"input_ids": batch, "use_cache": False}
        logits = torch.func.functional_call(model, rounded, (), arguments).logits.flatten(0, 1)
        loss = torch.nn.functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        for weight in parameters:
            if weight.grad is not None:
                weight.grad = shuffle(weight.grad, generator)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        for weight, mask in zip(parameters, zeros, strict=False):
            weight.data.masked_fill_(mask, 0)
        training.finish(loss.item())
    losses = training.losses
    tenth = -(-len(losses) // 10)
    log.info(
        "divergence %.4f in the first tenth of the steps, %.4f in the last",
        sum(losses[:tenth]) / tenth,
        sum(losses[-tenth:]) / tenth,
    )


def straight_through(weight: Tensor, width: int, settings: GridSettings, dtype: torch.dtype) -> Tensor:
    """Round ``weight`` float32 [rows, columns] to nearest in groups of ``width`` columns; keep its gradient.

    ``dtype``: what scales are stored in. The values are those that ``rtn.quantize`` stores.
    """
    with torch.no_grad():
        groups = weight.detach().unflatten(1, (-1, width))
        grid = fit(groups, 2, settings, dtype)
        values = torch.empty_like(groups)
        wide = Grid(grid.scale.unsqueeze(2), grid.zero.unsqueeze(2), grid.bits)
        wide.round(groups, torch.empty_like(groups), values)
        change = values.flatten(1) - weight
    return weight + change


METHOD = Method(
    MethodInfo(
        title="Quantization-aware training (LLM-QAT)",
        summary="trains the weights through the rounding towards the model's own predictions, some steps",
        papers=(Paper("Liu et al.", "2305.17888"),),
        examples=({"bits": 3, "group_size": 64, "steps": 50},),
        storage=("packed",),
        improves_on=(Comparison(TRAINING, "rtn", GRID),),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
