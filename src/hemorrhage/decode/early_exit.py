"""Predictions of a model after its first blocks: its last norm and its head on an earlier state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def depth(model: PreTrainedModel) -> int:
    """Return the number of blocks."""
    return int(model.config.get_text_config(decoder=True).num_hidden_layers)


def exit_layer(model: PreTrainedModel, layers: int | None) -> int:
    """``layers``, or half of the model's blocks where it is None.

    Raises ValueError unless at least one block is before the exit and one after it.
    """
    blocks = depth(model)
    wanted = blocks // 2 if layers is None else layers
    if not 0 < wanted < blocks:
        raise ValueError(f"layers: {wanted}, between 1 and {blocks - 1} wanted for a model of {blocks} blocks")
    return wanted


def refuse_all_blocks(model: PreTrainedModel) -> None:
    """Raise RefusedError where a model runs all of its blocks whatever its configuration says of their number.

    Observed once per model, on one token. transformers looks for the configuration in a module of one name.
    """
    if not hasattr(model, model.base_model_prefix):
        raise RefusedError(
            f"transformers drafts with {model.base_model_prefix} of a model, and {type(model).__name__} has none"
        )
    if model not in _EXITS:
        _EXITS[model] = _blocks_run(model, 1) == 1
    if not _EXITS[model]:
        raise RefusedError(f"a draft is made by the first blocks, and {type(model).__name__} always runs all of them")


_EXITS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _blocks_run(model: PreTrainedModel, layers: int) -> int:
    """Blocks that run where the configuration speaks of ``layers``."""
    from hemorrhage.models.blocks import blocks

    run: list[int] = []
    hooks = [block.register_forward_pre_hook(lambda *_: run.append(1)) for block in blocks(model)]
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    try:
        with keep_depth(model), torch.no_grad():
            for config in _configs(model):
                config.num_hidden_layers = layers
            # Some families fail, since what they prepare is for fewer blocks than they run.
            with contextlib.suppress(Exception):
                model(input_ids=token, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return len(run)


@contextlib.contextmanager
def keep_depth(model: PreTrainedModel) -> Iterator[None]:
    """Bring back the number of blocks that the configuration speaks of, which transformers' drafting leaves altered
    where it fails."""
    before = [(config, config.num_hidden_layers) for config in _configs(model)]
    try:
        yield
    finally:
        for config, layers in before:
            config.num_hidden_layers = layers


def _configs(model: PreTrainedModel) -> list[Any]:
    """Return the configurations that drafting may alter: the text model's and that of transformers' inner model."""
    inner = getattr(model, model.base_model_prefix, model).config
    return [
        config for config in (model.config.get_text_config(decoder=True), inner) if hasattr(config, "num_hidden_layers")
    ]


def early_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Return logits float32 [batch, n, vocabulary] of ``states`` [batch, n, width] that left any block but the last."""
    # Imported here: it imports torch, and strategies are read with params.yaml.
    from hemorrhage.models.blockwise import final_norm, logits

    tokens = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    (normed,) = final_norm(model, (tokens,), [states])
    return logits(model, normed)


def implausible_tokens(logits: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mark the tokens with p(v) < ``alpha`` max p, [..., vocabulary]; never for the most probable one."""
    return logits < logits.amax(-1, keepdim=True) + torch.tensor(alpha).log()
