"""Recovery: what an alteration broke is trained back with low-rank adapters (LoRA, arXiv 2106.09685).

After LLM-Pruner (arXiv 2305.11627): adapters of rank 8, alpha 16, on every linear layer of the blocks, AdamW
with a learning rate of 1e-4; here with a warm-up of a tenth of the steps, a cosine decay, gradients clipped
to a norm of 1, and no dropout. The training text is the calibration windows. The adapters are merged into the
weights, so that a plain checkpoint comes out.

Sparse weights stay sparse: where more than 1 % of a layer's weights are zero, what the adapters add is masked
there, both in training and when it is merged (MaskLoRA, arXiv 2312.15230), so training sees what is stored.
A layer of zeros alone, as LLaMA-Pro puts in, is meant to be trained and not masked.

``shuffled`` is the control: the same computation on windows whose tokens are shuffled, so that they have the
text's tokens and none of its order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hemorrhage.compress.info import TRAINING, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import ConfigJson, Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.training import CLIP, Training, batches, rate, restore_dtypes, stored_dtypes
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ALPHA = 16
"""LLM-Pruner's: what the adapters add is multiplied by alpha over rank."""

SPARSE = 0.01
"""Share of zeros above which a layer counts as pruned."""


class Settings(Base):
    """Steps on ``batch`` windows each, the adapters' rank, the highest learning rate, and the control."""

    axis: ClassVar[str] = "steps"
    severity_field: ClassVar[str] = "steps"
    words: ClassVar[Mapping[str, Wording]] = {
        "steps": "{} steps",
        "rank": "rank {}",
        "learning_rate": "learning rate {}",
        "batch": "batches of {}",
        "shuffled": "shuffled tokens",
    }
    always_named: ClassVar[tuple[str, ...]] = ("rank",)

    steps: Annotated[int, Field(ge=1, strict=True)] = 200
    rank: Annotated[int, Field(ge=1, strict=True)] = 8
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    batch: Annotated[int, Field(ge=1, strict=True)] = 4
    shuffled: bool = False

    @property
    def statistics(self) -> tuple[str, ...]:
        """The calibration windows."""
        return ("tokens",)

    @property
    def trained_windows(self) -> int:
        """Windows of all steps."""
        return self.steps * self.batch

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        width = config["hidden_size"]
        return None if self.rank <= width else f"rank {self.rank} is more than the hidden_size of {width}"

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where a layer's weight isn't a plain tensor."""
        _refuse_forms(model)
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Train ``model`` in place. The whole of it is in float32 while it trains.

    Raises ValueError where a layer's weight isn't a plain tensor, and where the loss is not finite.
    """
    _refuse_forms(model)
    dtypes = stored_dtypes(model)
    model.float().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        adapters = _adapt(model, settings.rank)
    windows = training_windows(context.calibration.tokens(), settings.shuffled, context.seed)
    train(model, windows, settings, context)
    for name, adapter in adapters.items():
        model.set_submodule(name, _merged(adapter))
    restore_dtypes(model, dtypes)


def train(model: nn.Module, windows: Tensor, settings: Settings, context: Context) -> None:
    """Train the parameters of ``model`` that require a gradient on ``windows`` int64 [samples, length]."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings.steps))
    drawn = batches(windows, settings.batch, context.seed)
    training = Training(parameters, optimizer, schedule, settings.steps, context.progress)
    for batch in training.remaining(drawn, "recovery"):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        training.finish(loss.item())
    losses = training.losses
    tenth = -(-len(losses) // 10)
    log.info(
        "training loss %.4f in the first tenth of the steps, %.4f in the last",
        sum(losses[:tenth]) / tenth,
        sum(losses[-tenth:]) / tenth,
    )


def training_windows(tokens: Tensor, shuffled: bool, seed: int) -> Tensor:
    """Return ``tokens`` int64 [samples, length], each window's own shuffled where ``shuffled``."""
    if not shuffled:
        return tokens
    keys = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed))
    return tokens.gather(1, keys.argsort(dim=1))


def _adapt(model: PreTrainedModel, rank: int) -> dict[str, nn.Module]:
    """Put adapters on every linear layer of the decoder blocks of ``model``; ``{name: adapted layer}``."""
    from peft import LoraConfig, inject_adapter_in_model

    names = list(linears_of(model))
    stack = blocks(model)
    inside = {id(module): name for name, module in stack.named_modules()}
    targets = [inside[id(model.get_submodule(name))] for name in names]
    config = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=targets, lora_dropout=0.0, bias="none")
    # Not into the model: of families whose experts transformers stacks, peft would look for these stacks.
    inject_adapter_in_model(config, stack)
    adapters = {name: model.get_submodule(name) for name in names}
    adapter: Any
    for adapter in adapters.values():
        mask = _mask(adapter.base_layer.weight)
        if mask is not None:
            adapter.mask = mask
            adapter.forward = _masked_forward(adapter)
    return adapters


def _mask(weight: Tensor) -> Tensor | None:
    """Return the mask float32 of the values of a pruned ``weight`` that may change; None where it is not pruned."""
    zeros = (weight == 0).float().mean().item()
    return (weight != 0).float() if SPARSE < zeros < 1 else None


def _masked_forward(adapter: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        weight = adapter.base_layer.weight + adapter.get_delta_weight("default") * adapter.mask
        return torch.nn.functional.linear(x, weight, adapter.base_layer.bias)

    return forward


def _merged(adapter: Any) -> nn.Linear:
    """Return the layer that ``adapter`` is on, with what it adds put into the weight."""
    with torch.no_grad():
        delta = adapter.get_delta_weight("default")
        adapter.base_layer.weight += delta * adapter.mask if hasattr(adapter, "mask") else delta
    layer: nn.Linear = adapter.base_layer
    return layer


def _refuse_forms(model: PreTrainedModel) -> None:
    inside = set(blocks(model).modules())
    for name, module in model.named_modules():
        if module in inside and hasattr(module, "stored"):
            form = type(module).__name__
            raise RefusedError(f"{name}: recovery trains plain weights, and this is a {form}; pack after it")


METHOD = Method(
    MethodInfo(
        title="Recovery training (LoRA)",
        summary="LoRA on a damaged variant, merged",
        papers=(Paper("Hu et al.", "2106.09685"),),
        examples=({"steps": 50}, {"steps": 50, "shuffled": True}),
        improves_on=(Comparison(TRAINING),),
    ),
    Settings,
    alter,
)
