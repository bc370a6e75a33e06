"""Going through a model block by block, in float32, whatever its weights are stored in.

So one block's float32 weights are in memory at a time, and everything between blocks can be looked at.

A model whose weights are mapped from their files (hemorrhage.models.stream) can thereby be larger than memory:
``by_blocks`` makes it compute so whoever calls it, and ``together`` takes many batches through a block before the next
one is read.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
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

STREAMED = "_hemorrhage_streamed"
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
            vars(form)["dense"] = functools.partial(_given, to_device(form.dense(), where))
        for tensor, data in kept:
            there = to_device(data, where)
            tensor.data = there.float() if data.is_floating_point() else there
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
        for form in forms:
            vars(form).pop("dense", None)


def to_device(value: Any, where: torch.device | None) -> Any:
    """``value`` with all tensors in it, at whatever depth of lists, tuples and dicts, on the device ``where``."""
    if isinstance(value, Tensor):
        return value if where is None else value.to(where)
    if isinstance(value, dict):
        return {key: to_device(each, where) for key, each in value.items()}
    return type(value)(to_device(each, where) for each in value) if isinstance(value, (list, tuple)) else value


def _given(value: Tensor) -> Tensor:
    return value


def stream_blocks(model: PreTrainedModel) -> None:
    """Make ``model`` compute in float32, one block after the other, in place: all weights but a block's stay as they
    are. It gives the numbers that it would give with all of its weights in float32."""
    vars(model)[STREAMED] = True
    for block in blocks(model):
        block.forward = _alone(block, block.forward)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.forward = _embedded(embedding)
    whole = vars(model)[HEAD_OVERRIDE] = head_of(model)
    head.forward = whole.product
    # Some models cast what the head reads to the dtype of its weight.
    head.weight = nn.Parameter(torch.zeros(()).expand(whole.weight.shape), requires_grad=False)
    inside = {id(value) for module in (*blocks(model), embedding, head) for value in module.parameters()}
    for value in (*model.parameters(), *model.buffers()):
        if id(value) not in inside and value.is_floating_point():
            value.data = value.data.float()


def is_streamed(model: PreTrainedModel) -> bool:
    """Return whether a model is one of ``by_blocks``."""
    return STREAMED in vars(model)


def _alone(block: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def forward(*arguments: Any, **named: Any) -> Any:
        with in_float32(block):
            return own(*arguments, **named)

    return forward


@dataclass
class Traits:
    """How the decoder of a model and its blocks speak with each other.

    ``tuples``: type of a block -> how many values it returns, 0 where that are the states alone; ``varying``: names of
    the arguments of blocks that depend on the text, as Zamba2's embeddings do.
    """

    tuples: dict[type, int] = field(default_factory=dict)
    varying: set[str] = field(default_factory=set)


class Varying(list[Any]):
    """An argument of a block that is another one for each batch."""


_TRAITS: WeakKeyDictionary[PreTrainedModel, Traits] = WeakKeyDictionary()


def traits(model: PreTrainedModel) -> Traits:
    """Observed once per model, on two texts of one token and one block of each type."""
    known = _TRAITS.setdefault(model, Traits())
    if all(type(block) in known.tuples for block in blocks(model)):
        return known
    seen: list[list[dict[str, Any]]] = []

    def recorder(index: int, block: nn.Module, own: Callable[..., Any]) -> Any:
        def forward(*positional: Any, **named: Any) -> Any:
            hidden, keywords = _bound(own, positional, named)
            seen[-1].append(keywords)
            if type(block) not in known.tuples:
                with _hollow(block), in_float32(block):
                    after = own(hidden, **keywords)
                known.tuples[type(block)] = len(after) if isinstance(after, tuple) else 0
            return _returned(known, block, hidden)

        return forward

    with torch.no_grad(), _replaced(blocks(model), recorder):
        for token in (1, 2):
            seen.append([])
            _decode(model, torch.full((1, 1), token, device=model.device))
    for one, other in zip(*seen, strict=True):
        known.varying |= {name for name in one if _differ(one[name], other.get(name))}
    return known


@contextlib.contextmanager
def _hollow(block: nn.Module) -> Iterator[None]:
    """Inside, layers of ``block`` that are dequantized compute with zeros, and nothing is read for them."""
    forms = [each for each in block.modules() if isinstance(each, DequantizedLinear) and "dense" not in vars(each)]
    try:
        for form in forms:
            nothing = torch.zeros(()).expand(form.out_features, form.in_features)
            vars(form)["dense"] = functools.partial(_given, nothing)
        yield
    finally:
        for form in forms:
            vars(form).pop("dense", None)


def _differ(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and one.is_floating_point() and not torch.equal(one, other)


def _bound(own: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the states that a block's ``own`` forward gets, which are its first argument, and the others by name."""
    signature = inspect.signature(own)
    values = dict(signature.bind(*positional, **named).arguments)
    rest = next((name for name, each in signature.parameters.items() if each.kind is each.VAR_KEYWORD), None)
    others = values.pop(rest, {}) if rest else {}
    hidden = values.pop(next(iter(signature.parameters)))
    return hidden, {**values, **others}


def _returned(known: Traits, block: nn.Module, hidden: Tensor) -> Any:
    """``hidden`` as ``block`` would return it."""
    number = known.tuples[type(block)]
    return (hidden, *[None] * (number - 1)) if number else hidden


def embed(model: PreTrainedModel, batches: tuple[Tensor, ...]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Hidden states that enter the first block, a float32 tensor a batch, and the other arguments of each block.

    ``batches``: int64 [n, length], all of one shape: masks and positions of the first are those of all; what else
    depends on a text is a ``Varying``. While the decoder runs, each block is a recorder that hands its input on, so
    this costs no computation.
    """
    states: list[Tensor] = []
    arguments: list[dict[str, Any]] = []
    known = traits(model)

    def recorder(index: int, block: nn.Module, own: Callable[..., Any]) -> Any:
        def forward(*positional: Any, **named: Any) -> Any:
            hidden, keywords = _bound(own, positional, named)
            if index == 0:
                states.append(hidden.clone())
            if len(states) == 1:
                arguments.append({name: Varying() if name in known.varying else keywords[name] for name in keywords})
            for name in known.varying & keywords.keys():
                arguments[index][name].append(keywords[name])
            return _returned(known, block, hidden)

        return forward

    with _replaced(blocks(model), recorder):
        for batch in batches:
            _decode(model, batch)
    return states, arguments


def run_block(block: nn.Module, states: Tensor, arguments: dict[str, Any], batch: int | None = None) -> Tensor:
    """Return what leaves ``block`` when ``states`` [n, length, hidden] enter it, those of the batch of that number.

    Raises RefusedError without a number where the block reads more of a text than its states.
    """
    varying = [name for name, value in arguments.items() if isinstance(value, Varying)]
    if varying:
        if batch is None and len(arguments[varying[0]]) > 1:
            raise RefusedError(f"a {type(block).__name__} reads {varying[0]} of each text, which is not handed on here")
        arguments = arguments | {name: arguments[name][batch or 0] for name in varying}
    after = block(states, **arguments)
    return after[0] if isinstance(after, tuple) else after


def final_norm(model: PreTrainedModel, batches: tuple[Tensor, ...], states: list[Tensor]) -> list[Tensor]:
    """Return the final hidden states, after the last norm, of ``states`` that left the last block."""
    last = len(blocks(model)) - 1
    remaining = iter(states)
    known = traits(model)

    def ending(index: int, block: nn.Module, own: Callable[..., Any]) -> Any:
        def forward(*positional: Any, **named: Any) -> Any:
            hidden = positional[0] if positional else _bound(own, positional, named)[0]
            return _returned(known, block, next(remaining) if index == last else hidden)

        return forward

    def like(batch: Tensor, given: Tensor) -> Tensor:
        # Positions of other states than the batch's are no places of a text.
        return batch if batch.shape == given.shape[:2] else batch.new_zeros(given.shape[:2])

    with _replaced(blocks(model), ending):
        return [_decode(model, like(batch, given)) for batch, given in zip(batches, states, strict=True)]


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits float32 [..., vocabulary] of final hidden states [..., hidden]."""
    return head_of(model).logits(hidden)


def forward_blockwise(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the final hidden states float32 [n, length, hidden] of ``tokens`` int64 [n, length], block by block."""
    return forward_batches(model, (tokens,))[0]


def forward_batches(model: PreTrainedModel, batches: Sequence[Tensor]) -> list[Tensor]:
    """``through`` of several batches, which may differ in shape: all of them go through a block before the next."""
    states: list[Tensor] = []
    arguments: dict[Any, list[dict[str, Any]]] = {}
    with torch.inference_mode():
        # What is the same for all batches of a shape is kept once.
        keys = [place if traits(model).varying else batch.shape for place, batch in enumerate(batches)]
        for key, batch in zip(keys, batches, strict=True):
            entering, keywords = embed(model, (batch,))
            states += entering
            arguments.setdefault(key, keywords)
        for index, block in enumerate(blocks(model)):
            with in_float32(block):
                for place, key in enumerate(keys):
                    states[place] = run_block(block, states[place], arguments[key][index])
        for place, batch in enumerate(batches):
            states[place] = final_norm(model, (batch,), [states[place]])[0]
    return states


def _decode(model: PreTrainedModel, batch: Tensor) -> Tensor:
    with _shell_in_float32(model):
        return decoder(model)(input_ids=batch, use_cache=False).last_hidden_state


@contextlib.contextmanager
def _shell_in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Inside, all of the decoder but its blocks is in float32; of the embedding the rows that are looked up."""
    embedding = model.get_input_embeddings()
    whole = decoder(model)
    inside = {id(value) for module in (*blocks(model), embedding) for value in module.parameters()}
    inside |= {id(value) for block in blocks(model) for value in block.buffers()}
    kept = [
        (value, value.data)
        for value in (*whole.parameters(), *whole.buffers())
        if id(value) not in inside and value.is_floating_point() and value.dtype != torch.float32
    ]
    own = vars(embedding).get("forward")
    try:
        for value, data in kept:
            value.data = data.float()
        if not is_streamed(model):
            embedding.forward = _embedded(embedding)
        yield
    finally:
        for value, data in kept:
            value.data = data
        if own is None:
            vars(embedding).pop("forward", None)
        else:
            embedding.forward = own


def _embedded(embedding: Any) -> Callable[[Tensor], Tensor]:
    """Return an embedding's forward pass in float32, for which only the rows that are looked up are cast."""
    own = embedding.forward

    @functools.wraps(own)
    def forward(tokens: Tensor) -> Tensor:
        weight, padding = embedding.weight.data, embedding.padding_idx
        if weight.dtype == torch.float32:
            return own(tokens)
        rows, places = tokens.unique(return_inverse=True)
        # A tied head has the same parameter, and does not compute meanwhile.
        embedding.weight.data, embedding.padding_idx = weight[rows].float(), None
        try:
            return own(places)
        finally:
            embedding.weight.data, embedding.padding_idx = weight, padding

    return forward


@contextlib.contextmanager
def _replaced(stack: nn.ModuleList, forward: Any) -> Iterator[None]:
    """Each block of ``stack`` computes ``forward(index, block, its own forward)`` inside the block."""
    own = [vars(block).get("forward") for block in stack]
    for index, block in enumerate(stack):
        block.forward = forward(index, block, block.forward)
    try:
        yield
    finally:
        for block, before in zip(stack, own, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before
