"""Blockwise forward: a model computes block by block, in float32, whatever its weights are stored in.

One block's float32 weights are in memory at a time, and everything between blocks can be looked at: ``embed`` gives the
states that enter the first block, ``run_block`` takes them through one, ``final_norm`` ends.

A model whose weights are mapped from their files (hemorrhage.models.stream) can thereby be larger than memory:
``stream_blocks`` makes it compute so whoever calls it, and ``forward_batches`` takes many batches through a block
before the next one is read.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.models.blocks import blocks, decoder
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.head import HEAD_OVERRIDE, head_of
from hemorrhage.models.refused import RefusedError

Forward = Callable[..., Any]

STREAMED = "_hemorrhage_streamed"
"""Mark of a model that ``stream_blocks`` has changed."""


@contextlib.contextmanager
def in_float32(module: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Make every floating-point parameter and buffer of ``module`` float32 inside the block, as it was after.

    With ``device`` all of its parameters and buffers are on that device inside.

    Weights that are dequantized when they compute are dequantized once. Nothing may be altered inside: the original
    tensors come back.
    """
    layers = _dequantized(module)
    stored = {id(tensor) for layer in layers for tensor in layer.tensors.values()}
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in stored]

    def is_elsewhere(tensor: Tensor) -> bool:
        return device is not None and device.type != tensor.device.type

    originals = [
        (tensor, tensor.data)
        for tensor in tensors
        if is_elsewhere(tensor) or (tensor.is_floating_point() and tensor.dtype != torch.float32)
    ]
    try:
        for layer in layers:
            vars(layer)["dense"] = functools.partial(_identity, to_device(layer.dense(), device))
        for tensor, data in originals:
            moved = to_device(data, device)
            tensor.data = moved.float() if data.is_floating_point() else moved
        yield
    finally:
        for tensor, data in originals:
            tensor.data = data
        for layer in layers:
            vars(layer).pop("dense", None)


def _dequantized(module: nn.Module) -> list[DequantizedLinear]:
    """Return the layers that dequantize their weight whenever they compute, and do not hold it now."""
    layers = [each for each in module.modules() if isinstance(each, DequantizedLinear)]
    return [layer for layer in layers if "dense" not in vars(layer)]


def to_device(value: Any, device: torch.device | None) -> Any:
    """Return ``value`` with all tensors in it, at whatever depth of lists, tuples and dicts, on a device."""
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, BlockArguments):
        return BlockArguments({key: to_device(each, device) for key, each in value.items()})
    if isinstance(value, dict):
        return {key: to_device(each, device) for key, each in value.items()}
    return type(value)(to_device(each, device) for each in value) if isinstance(value, (list, tuple)) else value


def _identity(value: Tensor) -> Tensor:
    return value


def stream_blocks(model: PreTrainedModel) -> None:
    """Make ``model`` compute in float32, one block after the other, in place: all weights but a block's stay as they
    are. It gives the numbers that it would give with all of its weights in float32."""
    vars(model)[STREAMED] = True
    for block in blocks(model):
        block.forward = _forward_in_float32(block, block.forward)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.forward = _embedding_in_float32(embedding)
    stored_head = vars(model)[HEAD_OVERRIDE] = head_of(model)
    head.forward = stored_head.product
    # Some models cast what the head reads to the dtype of its weight.
    head.weight = nn.Parameter(torch.zeros(()).expand(stored_head.weight.shape), requires_grad=False)
    excepted = {id(value) for module in (*blocks(model), embedding, head) for value in module.parameters()}
    for value in (*model.parameters(), *model.buffers()):
        if id(value) not in excepted and value.is_floating_point():
            value.data = value.data.float()


def is_streamed(model: PreTrainedModel) -> bool:
    """Return whether ``stream_blocks`` has changed a model."""
    return STREAMED in vars(model)


def _forward_in_float32(block: nn.Module, original: Forward) -> Forward:
    @functools.wraps(original)
    def forward(*arguments: Any, **keywords: Any) -> Any:
        with in_float32(block):
            return original(*arguments, **keywords)

    return forward


class PerBatch(list[Any]):
    """An argument of a block that is another one for each batch."""


class BlockArguments(dict[str, Any]):
    """The arguments of a block but its states, by name: masks, positions and whatever else its family hands on."""

    def of_batch(self, number: int) -> BlockArguments:
        """Return the arguments for the batch of that number."""
        return BlockArguments(
            {name: value[number] if isinstance(value, PerBatch) else value for name, value in self.items()}
        )

    def per_batch(self) -> list[str]:
        """Return the names of the arguments that are another one for each batch."""
        return [name for name, value in self.items() if isinstance(value, PerBatch)]


@dataclass
class Traits:
    """How the decoder of a model and its blocks call each other.

    ``returned``: type of a block -> how many values it returns, 0 where that are the states alone; ``varying``: names
    of the arguments of blocks that depend on the text, as Zamba2's embeddings do.
    """

    returned: dict[type, int] = field(default_factory=dict)
    varying: set[str] = field(default_factory=set)


_TRAITS: WeakKeyDictionary[PreTrainedModel, Traits] = WeakKeyDictionary()


def traits(model: PreTrainedModel) -> Traits:
    """Observe a model's traits, once, on two texts of one token and one block of each type."""
    known = _TRAITS.setdefault(model, Traits())
    if all(type(block) in known.returned for block in blocks(model)):
        return known
    calls: list[list[BlockArguments]] = []

    def recorder(_index: int, block: nn.Module, original: Forward) -> Forward:
        def forward(*positional: Any, **named: Any) -> Any:
            hidden, arguments = _bind(original, positional, named)
            calls[-1].append(arguments)
            if type(block) not in known.returned:
                with _without_weights(block), in_float32(block):
                    after = original(hidden, **arguments)
                _check_states(block, hidden, after)
                known.returned[type(block)] = len(after) if isinstance(after, tuple) else 0
            return _as_returned(known, block, hidden)

        return forward

    with torch.no_grad(), _replaced(blocks(model), recorder):
        for token in (1, 2):
            calls.append([])
            _decode(model, torch.full((1, 1), token, device=model.device))
    for first, second in zip(*calls, strict=True):
        known.varying |= {name for name in first if _differ(first[name], second.get(name))}
    return known


def _check_states(block: nn.Module, hidden: Tensor, after: Any) -> None:
    """Raise RefusedError where ``hidden``, which enters a block, or ``after``, which leaves it, is not read here."""
    kind = type(block).__name__
    if hidden.dim() != 3:
        raise RefusedError(
            f"a {kind} computes states of {hidden.dim()} dimensions; those of texts, tokens and width are handed on"
        )
    if not isinstance(after, Tensor | tuple):
        raise RefusedError(
            f"a {kind} returns a {type(after).__name__}; its states, or a tuple that begins with them, are read"
        )


@contextlib.contextmanager
def _without_weights(block: nn.Module) -> Iterator[None]:
    """Make layers of ``block`` that are dequantized compute with zeros inside; nothing is read for them."""
    layers = _dequantized(block)
    try:
        for layer in layers:
            zeros = torch.zeros(()).expand(layer.out_features, layer.in_features)
            vars(layer)["dense"] = functools.partial(_identity, zeros)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("dense", None)


def _differ(first: Any, second: Any) -> bool:
    return isinstance(first, Tensor) and first.is_floating_point() and not torch.equal(first, second)


def _bind(original: Forward, positional: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, BlockArguments]:
    """Return the states that a block's ``original`` forward gets, its first argument, and the others by name."""
    signature = inspect.signature(original)
    values = BlockArguments(signature.bind(*positional, **named).arguments)
    rest = next((name for name, each in signature.parameters.items() if each.kind is each.VAR_KEYWORD), None)
    others = values.pop(rest, {}) if rest else {}
    hidden = values.pop(next(iter(signature.parameters)))
    return hidden, BlockArguments({**values, **others})


def _as_returned(known: Traits, block: nn.Module, hidden: Tensor) -> Any:
    """Return ``hidden`` as ``block`` would."""
    number = known.returned[type(block)]
    return (hidden, *[None] * (number - 1)) if number else hidden


def embed(model: PreTrainedModel, batches: tuple[Tensor, ...]) -> tuple[list[Tensor], list[BlockArguments]]:
    """Return the hidden states that enter the first block, a float32 tensor a batch, and the arguments of each block.

    ``batches``: int64 [n, length], all of one shape: masks and positions of the first are those of all; what else
    depends on a text is a ``PerBatch``. While the decoder runs, each block is a recorder that hands its input on, so
    this costs no computation.
    """
    states: list[Tensor] = []
    of_blocks: list[BlockArguments] = []
    known = traits(model)

    def recorder(index: int, block: nn.Module, original: Forward) -> Forward:
        def forward(*positional: Any, **named: Any) -> Any:
            hidden, arguments = _bind(original, positional, named)
            if index == 0:
                states.append(hidden.clone())
            if len(states) == 1:
                of_blocks.append(
                    BlockArguments(
                        {name: PerBatch() if name in known.varying else value for name, value in arguments.items()}
                    )
                )
            for name in known.varying & arguments.keys():
                of_blocks[index][name].append(arguments[name])
            return _as_returned(known, block, hidden)

        return forward

    with _replaced(blocks(model), recorder):
        for batch in batches:
            _decode(model, batch)
    return states, of_blocks


def run_block(block: nn.Module, states: Tensor, arguments: BlockArguments, batch: int | None = None) -> Tensor:
    """Return what leaves ``block`` when ``states`` [n, length, hidden] enter it, those of the batch of that number.

    Raises RefusedError without a number where the block reads more of a text than its states.
    """
    varying = arguments.per_batch()
    if varying:
        if batch is None and len(arguments[varying[0]]) > 1:
            raise RefusedError(f"a {type(block).__name__} reads {varying[0]} of each text, which is not handed on here")
        arguments = arguments.of_batch(batch or 0)
    output = block(states, **arguments)
    after: Tensor = output[0] if isinstance(output, tuple) else output
    return after


def final_norm(model: PreTrainedModel, batches: tuple[Tensor, ...], states: list[Tensor]) -> list[Tensor]:
    """Return the final hidden states, after the last norm, of ``states`` that left the last block."""
    last = len(blocks(model)) - 1
    remaining = iter(states)
    known = traits(model)

    def ending(index: int, block: nn.Module, original: Forward) -> Forward:
        def forward(*positional: Any, **named: Any) -> Any:
            hidden = positional[0] if positional else _bind(original, positional, named)[0]
            return _as_returned(known, block, next(remaining) if index == last else hidden)

        return forward

    def in_shape(batch: Tensor, shape: torch.Size) -> Tensor:
        # States of another shape than the batch are at no positions of a text.
        return batch if batch.shape == shape else batch.new_zeros(shape)

    with _replaced(blocks(model), ending):
        return [_decode(model, in_shape(batch, state.shape[:2])) for batch, state in zip(batches, states, strict=True)]


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits float32 [..., vocabulary] of final hidden states [..., hidden]."""
    return head_of(model).logits(hidden)


def forward_blockwise(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the final hidden states float32 [n, length, hidden] of ``tokens`` int64 [n, length], block by block."""
    return forward_batches(model, (tokens,))[0]


def forward_batches(model: PreTrainedModel, batches: Sequence[Tensor]) -> list[Tensor]:
    """Run ``forward_blockwise`` on batches that may differ in shape: all go through a block before the next is read."""
    states: list[Tensor] = []
    arguments: dict[Hashable, list[BlockArguments]] = {}
    with torch.inference_mode():
        # What is the same for all batches of a shape is kept once.
        varies = bool(traits(model).varying)
        keys: list[Hashable] = [number if varies else batch.shape for number, batch in enumerate(batches)]
        for key, batch in zip(keys, batches, strict=True):
            embedded, of_blocks = embed(model, (batch,))
            states += embedded
            arguments.setdefault(key, of_blocks)
        for index, block in enumerate(blocks(model)):
            with in_float32(block):
                for number, key in enumerate(keys):
                    states[number] = run_block(block, states[number], arguments[key][index])
        for number, batch in enumerate(batches):
            states[number] = final_norm(model, (batch,), [states[number]])[0]
    return states


def _decode(model: PreTrainedModel, batch: Tensor) -> Tensor:
    with _shell_in_float32(model):
        states: Tensor = decoder(model)(input_ids=batch, use_cache=False).last_hidden_state
    return states


@contextlib.contextmanager
def _shell_in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Make all of the decoder but its blocks float32 inside; of the embedding the rows that are looked up."""
    embedding = model.get_input_embeddings()
    shell = decoder(model)
    excepted = {id(value) for module in (*blocks(model), embedding) for value in module.parameters()}
    excepted |= {id(value) for block in blocks(model) for value in block.buffers()}
    originals = [
        (value, value.data)
        for value in (*shell.parameters(), *shell.buffers())
        if id(value) not in excepted and value.is_floating_point() and value.dtype != torch.float32
    ]
    overridden = vars(embedding).get("forward")
    try:
        for value, data in originals:
            value.data = data.float()
        if not is_streamed(model):
            embedding.forward = _embedding_in_float32(embedding)
        yield
    finally:
        for value, data in originals:
            value.data = data
        if overridden is None:
            vars(embedding).pop("forward", None)
        else:
            embedding.forward = overridden


def _embedding_in_float32(embedding: Any) -> Callable[[Tensor], Tensor]:
    """Return an embedding's forward pass in float32, for which only the rows that are looked up are cast."""
    original = embedding.forward

    @functools.wraps(original)
    def forward(tokens: Tensor) -> Any:
        weight, padding = embedding.weight.data, embedding.padding_idx
        if weight.dtype == torch.float32:
            return original(tokens)
        rows, positions = tokens.unique(return_inverse=True)
        # A tied head has the same parameter, and does not compute meanwhile.
        embedding.weight.data, embedding.padding_idx = weight[rows].float(), None
        try:
            return original(positions)
        finally:
            embedding.weight.data, embedding.padding_idx = weight, padding

    return forward


@contextlib.contextmanager
def _replaced(stack: nn.ModuleList, forward: Callable[[int, nn.Module, Forward], Forward]) -> Iterator[None]:
    """Make each block of ``stack`` compute ``forward(index, block, its original forward)`` inside."""
    overridden = [vars(block).get("forward") for block in stack]
    for index, block in enumerate(stack):
        block.forward = forward(index, block, block.forward)
    try:
        yield
    finally:
        for block, before in zip(stack, overridden, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before
