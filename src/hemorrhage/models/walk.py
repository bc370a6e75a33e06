"""Going through a model block by block, in float32, whatever its weights are stored in.

So one block's float32 weights are in memory at a time, and everything between blocks can be looked at.

A model whose weights are mapped from their files (hemorrhage.models.stream) can thereby be larger than memory:
``by_blocks`` makes it compute so whoever calls it, and ``together`` takes many batches through a block before the next
one is read.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.models.blocks import blocks
from hemorrhage.models.formats.dequantized import DequantizedLinear

HEAD_ROWS = 16384
"""Rows of the output embedding that are in float32 at once."""

STREAMS = "_hemorrhage_streams"
"""Mark of a model that ``by_blocks`` has changed."""


@contextlib.contextmanager
def in_float32(module: nn.Module, where: torch.device | None = None) -> Iterator[None]:
    """Every floating-point parameter and buffer of ``module`` is float32 inside the block, as it was after.

    With ``where`` all of its parameters and buffers are on that device inside.

    Weights that are dequantized when they compute are dequantized once. Nothing may be altered inside: the original
    tensors come back.
    """
    forms = [each for each in module.modules() if isinstance(each, DequantizedLinear) and "dense" not in vars(each)]
    inside = {id(tensor) for form in forms for tensor in form.tensors.values()}
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in inside]

    def elsewhere(tensor: Tensor) -> bool:
        return where is not None and where.type != tensor.device.type

    kept = [
        (tensor, tensor.data)
        for tensor in tensors
        if elsewhere(tensor) or (tensor.is_floating_point() and tensor.dtype != torch.float32)
    ]
    try:
        for form in forms:
            vars(form)["dense"] = functools.partial(_given, moved(form.dense(), where))
        for tensor, data in kept:
            there = moved(data, where)
            tensor.data = there.float() if data.is_floating_point() else there
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
        for form in forms:
            vars(form).pop("dense", None)


def moved(value: Any, where: torch.device | None) -> Any:
    """``value`` with all tensors in it, at whatever depth of lists, tuples and dicts, on the device ``where``."""
    if isinstance(value, Tensor):
        return value if where is None else value.to(where)
    if isinstance(value, dict):
        return {key: moved(each, where) for key, each in value.items()}
    return type(value)(moved(each, where) for each in value) if isinstance(value, (list, tuple)) else value


def _given(value: Tensor) -> Tensor:
    return value


def by_blocks(model: PreTrainedModel) -> None:
    """Make ``model`` compute in float32, one block after the other, in place: all weights but a block's stay as they
    are. It gives the numbers that it would give with all of its weights in float32."""
    vars(model)[STREAMS] = True
    for block in blocks(model):
        block.forward = _alone(block, block.forward)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.register_forward_hook(lambda _, arguments, output: output.float())
    head.forward = functools.partial(logits, model)
    inside = {id(value) for module in (*blocks(model), embedding, head) for value in module.parameters()}
    for value in model.parameters():
        if id(value) not in inside and value.is_floating_point():
            value.data = value.data.float()


def streams(model: PreTrainedModel) -> bool:
    """Whether a model is one of ``by_blocks``."""
    return STREAMS in vars(model)


def _alone(block: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def forward(*arguments: Any, **named: Any) -> Any:
        with in_float32(block):
            return own(*arguments, **named)

    return forward


def enter(model: PreTrainedModel, batches: tuple[Tensor, ...]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Hidden states that enter the first block, a float32 tensor a batch, and the other arguments of each block.

    ``batches``: int64 [n, length], all of one shape: masks and positions of the first are those of all. While
    the decoder runs, each block is a recorder that hands its input on, so this costs no computation.
    """
    states: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def recorder(index: int) -> Any:
        def forward(hidden: Tensor, **keywords: Any) -> Tensor:
            if index == 0:
                states.append(hidden.clone())
            if len(states) == 1:
                arguments.append(keywords)
            return hidden

        return forward

    with _replaced(blocks(model), recorder):
        for batch in batches:
            _decode(model, batch)
    return states, arguments


def step(block: nn.Module, states: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What leaves ``block`` when ``states`` [n, length, hidden] enter it."""
    after = block(states, **arguments)
    return after[0] if isinstance(after, tuple) else after


def leave(model: PreTrainedModel, batches: tuple[Tensor, ...], states: list[Tensor]) -> list[Tensor]:
    """Final hidden states, after the last norm, of ``states`` that left the last block."""
    last = len(blocks(model)) - 1
    remaining = iter(states)

    def ending(index: int) -> Any:
        return lambda hidden, **_: next(remaining) if index == last else hidden

    with _replaced(blocks(model), ending):
        return [_decode(model, batch) for batch in batches]


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits float32 [..., vocabulary] of final hidden states [..., hidden]."""
    head = model.get_output_embeddings()
    parts = [hidden @ rows.float().T for rows in head.weight.data.split(HEAD_ROWS)]
    found = torch.cat(parts, dim=-1)
    return found if getattr(head, "bias", None) is None else found + head.bias.data.float()


def through(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Final hidden states float32 [n, length, hidden] of ``tokens`` int64 [n, length], block by block."""
    return together(model, (tokens,))[0]


def together(model: PreTrainedModel, batches: Sequence[Tensor]) -> list[Tensor]:
    """``through`` of several batches, which may differ in shape: all of them go through a block before the next."""
    states: list[Tensor] = []
    arguments: dict[torch.Size, list[dict[str, Any]]] = {}
    with torch.inference_mode():
        for batch in batches:
            entering, keywords = enter(model, (batch,))
            states += entering
            arguments.setdefault(batch.shape, keywords)
        for index, block in enumerate(blocks(model)):
            with in_float32(block):
                for place, batch in enumerate(batches):
                    states[place] = step(block, states[place], arguments[batch.shape][index])
        for place, batch in enumerate(batches):
            states[place] = leave(model, (batch,), [states[place]])[0]
    return states


def _decode(model: PreTrainedModel, batch: Tensor) -> Tensor:
    # Embedded here and not by the decoder, so that masks, positions and the last norm are in float32.
    embedded = model.get_input_embeddings()(batch).float()
    return model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state


@contextlib.contextmanager
def _replaced(stack: nn.ModuleList, forward: Any) -> Iterator[None]:
    """Each block of ``stack`` computes ``forward(index)`` inside the block."""
    own = [vars(block).get("forward") for block in stack]
    for index, block in enumerate(stack):
        block.forward = forward(index)
    try:
        yield
    finally:
        for block, before in zip(stack, own, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before
