"""The language-model head: the logits that a model makes of its final hidden states.

``logits = c · tanh(o · (W (i · h) + b) / c)`` with input scale i, output scale o and softcap c; most families have W
alone. Cohere and Falcon-H1 multiply, Granite divides, MiniCPM divides the states, Gemma 2 and NanoChat cap, Phi and
GPT-J add. The scales of a model are measured and not looked up, because each family has other names for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from hemorrhage.models.blocks import decoder
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ROWS = 16384
"""Rows of the output embedding that are in float32 at once."""

HEAD_OVERRIDE = "_hemorrhage_head"
"""Attribute of a model with its head, where its output embedding does not keep it."""

TOLERANCE = 1e-6
"""Relative: a factor that is measured in float32 and is this near to a number of the configuration is that number."""


@dataclass(frozen=True)
class Head:
    """A head of ``weight`` [vocabulary, hidden] and ``bias`` [vocabulary] or None, in any dtype; it computes in
    float32."""

    weight: Tensor
    bias: Tensor | None = None
    input_scale: float = 1.0
    output_scale: float = 1.0
    softcap: float | None = None

    def __len__(self) -> int:
        """Return the number of tokens of the vocabulary."""
        return len(self.weight)

    @property
    def width(self) -> int:
        """Width of the hidden states that it reads."""
        return self.weight.shape[1]

    @property
    def factor(self) -> float:
        """What a linear head multiplies the product of weight and states by."""
        return self.input_scale * self.output_scale

    def to(self, device: torch.device) -> Head:
        """Return the head on a device."""
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def float(self) -> Head:
        """Return the head in float32."""
        return replace(self, weight=self.weight.float(), bias=None if self.bias is None else self.bias.float())

    def folded(self) -> Head:
        """Return the head in float32; where it multiplies and scales alone, with the scales in its weight."""
        if not self.is_linear or self.factor == 1:
            return self.float()
        return Head(self.weight.float() * self.factor)

    @property
    def multiplies(self) -> bool:
        """Whether the logits are the product of weight and states and nothing more."""
        return (self.bias, self.input_scale, self.output_scale, self.softcap) == (None, 1, 1, None)

    @property
    def is_linear(self) -> bool:
        """Whether the logits are a multiple of the product of weight and states."""
        return self.bias is None and self.softcap is None

    def equals(self, other: Head) -> bool:
        """Return whether ``other`` makes the same logits of the same states: all of its numbers are the same."""
        is_scaled_alike = (self.input_scale, self.output_scale) == (other.input_scale, other.output_scale)
        if not is_scaled_alike or self.softcap != other.softcap:
            return False
        return _equal(self.weight, other.weight) and _equal(self.bias, other.bias)

    def scale_input(self, hidden: Tensor) -> Tensor:
        """Multiply ``hidden`` [..., hidden] by the input scale."""
        return hidden if self.input_scale == 1 else hidden * self.input_scale

    def product(self, hidden: Tensor) -> Tensor:
        """Return W h + b: float32 [..., vocabulary]."""
        product = torch.cat([hidden @ rows.float().T for rows in self.weight.split(ROWS)], dim=-1)
        return product if self.bias is None else product + self.bias.float()

    def finish(self, tile: Tensor, columns: slice = slice(None)) -> Tensor:
        """Make logits of ``tile`` [..., n], in place: products without the bias of the tokens ``columns``."""
        if self.bias is not None:
            tile += self.bias[columns]
        return _finish(tile, self.output_scale, self.softcap)

    def slope(self, logits: Tensor) -> Tensor:
        """Return the derivative of ``logits`` by the products that they were made of."""
        within = torch.ones_like(logits) if self.softcap is None else 1 - (logits / self.softcap).square()
        return self.output_scale * within

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits float32 [..., vocabulary] of final hidden states [..., hidden]."""
        return _finish(self.product(self.scale_input(hidden)), self.output_scale, self.softcap)


def _equal(ours: Tensor | None, theirs: Tensor | None) -> bool:
    """Return whether two tensors have the same numbers, in whatever dtype; compared some rows at a time."""
    if ours is None or theirs is None:
        return ours is theirs
    if ours.shape != theirs.shape:
        return False
    rows = zip(ours.split(ROWS), theirs.split(ROWS), strict=True)
    return all(torch.equal(a.float(), b.to(a.device).float()) for a, b in rows)


def head_of(model: PreTrainedModel) -> Head:
    """Return the head of a model, which shares its tensors. Raises RefusedError for a head that does something else."""
    override: Head | None = vars(model).get(HEAD_OVERRIDE)
    if override is not None:
        return override
    module: Any = model.get_output_embeddings()
    if module is None:
        raise RefusedError(f"{type(model).__name__} has no language-model head")
    bias = getattr(module, "bias", None)
    return Head(module.weight.detach(), None if bias is None else bias.detach(), *_scales(model))


def stored_name(model: PreTrainedModel) -> str:
    """Return the name of the head's module in the model."""
    head: Any = model.get_output_embeddings()
    names: Iterator[str] = (name for name, module in model.named_modules() if module is head)
    return next(names)


class _Scales(NamedTuple):
    input_scale: float
    output_scale: float
    softcap: float | None


_KNOWN: WeakKeyDictionary[PreTrainedModel, _Scales] = WeakKeyDictionary()


def _scales(model: PreTrainedModel) -> _Scales:
    """Measure the scales of a model's head, once.

    The model's own forward pass is given final hidden states and products that are known, and what it makes of both is
    measured. It needs no weights: the decoder and the product are left out.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _measure(model)
    return _KNOWN[model]


def _measure(model: PreTrainedModel) -> _Scales:
    numbers = [
        float(value)
        for value in model.config.get_text_config(decoder=True).to_dict().values()
        if isinstance(value, int | float) and not isinstance(value, bool) and value
    ]
    hidden = torch.linspace(0.5, 1.5, 9).view(1, 1, -1)
    small, large = torch.full((1, 1, 4), 1e-4), torch.full((1, 1, 4), 1e6)
    read, finished = _probe(model, hidden, small)
    _, saturated = _probe(model, hidden, large)
    input_scale = _snap((read / hidden).mean().item(), numbers)
    output_scale = _snap((finished / small).mean().item(), numbers)
    most = saturated.mean().item()
    softcap = _snap(most, numbers) if abs(most) < 1e4 else None
    products = torch.linspace(-8, 8, 33).view(1, 1, -1)
    read, finished = _probe(model, hidden, products)
    expected = _finish(products.clone(), output_scale, softcap)
    if not (torch.allclose(read, input_scale * hidden, rtol=1e-5) and torch.allclose(finished, expected, rtol=1e-4)):
        raise RefusedError(f"the head of {type(model).__name__} does more than multiply, add, scale and cap")
    return _Scales(input_scale, output_scale, softcap)


def _snap(value: float, numbers: list[float]) -> float:
    """Return ``value``, or the number that it is but for rounding: 1, one of ``numbers``, a ratio of two of them."""
    candidates = [1.0, *numbers, *(1 / number for number in numbers), *(a / b for a in numbers for b in numbers)]
    return next((each for each in candidates if abs(value - each) <= TOLERANCE * abs(each)), value)


def _finish(tile: Tensor, scale: float, softcap: float | None) -> Tensor:
    if scale != 1:
        tile *= scale
    return tile if softcap is None else tile.div_(softcap).tanh_().mul_(softcap)


class _Output(tuple[Any, ...]):
    """A decoder's output: its final hidden states under every name that a family has for them, and nothing else."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


def _probe(model: PreTrainedModel, hidden: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of the head's product for ``hidden``, and the logits that the model makes of ``product``."""
    read: list[Tensor] = []

    def give_product(states: Tensor, *_: Any, **__: Any) -> Tensor:
        read.append(states)
        return product.clone()

    head: Any = model.get_output_embeddings()
    give_states = _replaced(decoder(model), lambda *_, **__: _Output((hidden,)))
    with give_states, _replaced(head, give_product), torch.no_grad():
        logits = model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False).logits
    return read[0].float(), logits.float()


@contextlib.contextmanager
def _replaced(module: Any, forward: Any) -> Iterator[None]:
    """Make ``module`` compute ``forward`` inside."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
