"""The language-model head: what a model makes of its final hidden states.

``logits = cap · tanh(scale · (W (before · h) + b) / cap)``, where most families have W alone. Cohere and Falcon-H1
multiply, Granite divides, MiniCPM divides the states, Gemma 2 and NanoChat cap, Phi and GPT-J add. Which of it a model
does is observed and not looked up, because each family calls it otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
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
"""Where a model has its head that does not keep it in its output embedding."""

EXACT = 1e-6
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
        """Return the tokens of the vocabulary."""
        return len(self.weight)

    @property
    def width(self) -> int:
        """Width of the hidden states that it reads."""
        return self.weight.shape[1]

    def to(self, device: torch.device) -> Head:
        """Return the same on a device."""
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def float(self) -> Head:
        """Return the same in float32."""
        return replace(self, weight=self.weight.float(), bias=None if self.bias is None else self.bias.float())

    def scale_input(self, hidden: Tensor) -> Tensor:
        """Return what the product reads of ``hidden`` [..., hidden]."""
        return hidden if self.input_scale == 1 else hidden * self.input_scale

    def product(self, hidden: Tensor) -> Tensor:
        """W h + b: float32 [..., vocabulary]."""
        parts = [hidden @ rows.float().T for rows in self.weight.split(ROWS)]
        found = torch.cat(parts, dim=-1)
        return found if self.bias is None else found + self.bias.float()

    def finish(self, tile: Tensor, columns: slice = slice(None)) -> Tensor:
        """Make logits of ``tile`` [..., n], in place: products without the bias of the tokens ``columns``."""
        if self.bias is not None:
            tile += self.bias[columns]
        return _capped(tile, self.output_scale, self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits float32 [..., vocabulary] of final hidden states [..., hidden]."""
        return _capped(self.product(self.scale_input(hidden)), self.output_scale, self.softcap)


def head_of(model: PreTrainedModel) -> Head:
    """Return the head of a model, which shares its tensors. Raises RefusedError for a head that does something else."""
    if HEAD_OVERRIDE in vars(model):
        return vars(model)[HEAD_OVERRIDE]
    module: Any = model.get_output_embeddings()
    if module is None:
        raise RefusedError(f"{type(model).__name__} has no language-model head")
    bias = getattr(module, "bias", None)
    return Head(module.weight.detach(), None if bias is None else bias.detach(), *_observed(model))


def stored_name(model: PreTrainedModel) -> str:
    """Return the name of the head's module in the model."""
    module = model.get_output_embeddings()
    return next(name for name, other in model.named_modules() if other is module)


_KNOWN: WeakKeyDictionary[PreTrainedModel, tuple[float, float, float | None]] = WeakKeyDictionary()


def _observed(model: PreTrainedModel) -> tuple[float, float, float | None]:
    """``before``, ``scale`` and ``cap`` of a model's head.

    The model's own forward pass is given final hidden states and products that are known, and what it makes of both is
    measured. It needs no weights: the decoder and the product are left out.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _measured(model)
    return _KNOWN[model]


def _measured(model: PreTrainedModel) -> tuple[float, float, float | None]:
    numbers = [
        float(value)
        for value in model.config.get_text_config(decoder=True).to_dict().values()
        if isinstance(value, int | float) and not isinstance(value, bool) and value
    ]
    hidden = torch.linspace(0.5, 1.5, 9).view(1, 1, -1)
    small, large = torch.full((1, 1, 4), 1e-4), torch.full((1, 1, 4), 1e6)
    read, finished = _passed(model, hidden, small)
    _, saturated = _passed(model, hidden, large)
    before = _snapped((read / hidden).mean().item(), numbers)
    scale = _snapped((finished / small).mean().item(), numbers)
    most = saturated.mean().item()
    cap = _snapped(most, numbers) if abs(most) < 1e4 else None
    products = torch.linspace(-8, 8, 33).view(1, 1, -1)
    read, finished = _passed(model, hidden, products)
    expected = _capped(products.clone(), scale, cap)
    if not (torch.allclose(read, before * hidden, rtol=1e-5) and torch.allclose(finished, expected, rtol=1e-4)):
        raise RefusedError(f"the head of {type(model).__name__} does more than multiply, add, scale and cap")
    return before, scale, cap


def _snapped(value: float, numbers: list[float]) -> float:
    """``value``, or the number that it is but for rounding: 1, one of ``numbers``, a ratio of two of them."""
    candidates = [1.0, *numbers, *(1 / number for number in numbers), *(a / b for a in numbers for b in numbers)]
    return next((each for each in candidates if abs(value - each) <= EXACT * abs(each)), value)


def _capped(tile: Tensor, scale: float, cap: float | None) -> Tensor:
    if scale != 1:
        tile *= scale
    return tile if cap is None else tile.div_(cap).tanh_().mul_(cap)


class _Output(tuple):
    """What a decoder gives: its final hidden states under every name that a family has for them, and nothing else."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


def _passed(model: PreTrainedModel, hidden: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of the head's product for ``hidden``, and the logits that the model makes of ``product``."""
    read: list[Tensor] = []

    def instead(states: Tensor, *_: Any, **__: Any) -> Tensor:
        read.append(states)
        return product.clone()

    inner, module = decoder(model), model.get_output_embeddings()
    with _forward(inner, lambda *_, **__: _Output((hidden,))), _forward(module, instead), torch.no_grad():
        logits = model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False).logits
    return read[0].float(), logits.float()


@contextlib.contextmanager
def _forward(module: Any, forward: Any) -> Iterator[None]:
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
