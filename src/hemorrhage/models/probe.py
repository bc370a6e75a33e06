"""What every step assumes of a model, tried on the model itself with a few tokens.

The base step writes the findings into its manifest; ``hemorrhage probe`` adds those of methods and other steps.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hemorrhage.models import blockwise
from hemorrhage.models.blocks import blocks
from hemorrhage.models.head import head_of
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TOKENS = 16
"""Tokens that a model is tried with."""

CLOSE = 1e-4
"""Relative to the largest logit: what the order of additions may change."""

LINEAR_LAYERS = "linear layers"
"""The part of the base without which a model still generates text."""

Answer = Literal["yes", "no", "depends"]


@dataclass(frozen=True)
class Finding:
    """Whether a part of a step goes with a model; ``reason`` in one line where it does not, or where it depends."""

    step: str
    part: str
    answer: Answer = "yes"
    reason: str = ""


def attempt(step: str, part: str, check: Callable[[], str | None]) -> Finding:
    """Find out whether ``check`` passes: it raises where the part does not go, and may return what it depends on."""
    try:
        depends = check()
    except Exception as error:
        return Finding(step, part, "no", reason_of(error))
    return Finding(step, part, "depends", depends) if depends else Finding(step, part)


def reason_of(error: Exception) -> str:
    """Return an error as the line that a step says or records."""
    text = " ".join(str(error).split())
    return text if isinstance(error, RefusedError | InputError) else f"{type(error).__name__}: {text}"


def probe_tokens(model: PreTrainedModel) -> Tensor:
    """Return the tokens int64 [1, n], spread over the vocabulary."""
    embedding: Any = model.get_input_embeddings()
    return torch.linspace(0, len(embedding.weight) - 1, TOKENS, device=model.device).round().long()[None]


def probe_base(model: PreTrainedModel) -> tuple[list[Finding], list[int]]:
    """Try what all steps share on ``model``, in any dtype, and find the blocks that add nothing of the text.

    What a pass block by block gives is compared with what the model itself does, which then computes a block at a time
    (``blockwise.stream_blocks``) and is of no other use.
    """
    silent: list[int] = []

    def blockwise_forward() -> None:
        tokens = probe_tokens(model)
        logits, constant = _blockwise(model, tokens)
        silent.extend(constant)
        blockwise.stream_blocks(model)
        with torch.no_grad():
            own = model(input_ids=torch.cat([tokens, _with_another_end(tokens)]), use_cache=False).logits.float()
        _compare(logits, own[:1])
        _check_order(own)

    findings = [
        attempt("base", "decoder blocks", lambda: _none(blocks(model))),
        attempt("base", LINEAR_LAYERS, lambda: _none(linears_of(model))),
        attempt("base", "language-model head", lambda: _none(head_of(model))),
        attempt("base", "blockwise forward", blockwise_forward),
    ]
    return findings, silent


def _none(_: object) -> None:
    """Take what a check returns that is asked for its refusals alone."""


def _compare(logits: Tensor, own: Tensor) -> None:
    if not own.isfinite().all():
        raise RefusedError("the model's logits are not finite")
    off, largest = (logits - own).abs().max().item(), own.abs().max().item()
    # NaN is no difference that is small.
    if not off <= CLOSE * largest:
        raise RefusedError(f"block by block logits of up to {largest:.3g} differ by {off:.3g} from the model's own")


def _with_another_end(tokens: Tensor) -> Tensor:
    """Return ``tokens`` [1, n] with the last one replaced by the first."""
    return torch.cat([tokens[:, :-1], tokens[:, :1]], dim=1)


def _check_order(own: Tensor) -> None:
    """Raise RefusedError where ``own``, the logits [2, n, vocabulary] of two texts that end in another token, differ
    before it: such a model reads what it is asked to predict."""
    before = own[:, :-1]
    if (before[0] - before[1]).abs().max() > CLOSE * own.abs().max():
        raise RefusedError("a token's logits change with the token after it, which they are to predict")


@torch.no_grad()
def _blockwise(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, list[int]]:
    """Logits of a pass block by block, and the blocks that add the same to every token."""
    silent = []
    (states,), arguments = blockwise.embed(model, (tokens,))
    memories = _recorded(arguments)
    for index, block in enumerate(blocks(model)):
        with blockwise.in_float32(block):
            after = blockwise.run_block(block, states, arguments[index])
        if _is_constant(states, after):
            silent.append(index)
        states = after
    for name, memory in memories.items():
        if memory.is_read:
            raise RefusedError(f"blocks read what earlier ones leave in {name}, which is not handed on block by block")
    (final,) = blockwise.final_norm(model, (tokens,), [states])
    return blockwise.logits(model, final), silent


class _Memory(UserDict[object, object]):
    """A mapping that all blocks get; ``is_read`` tells whether one reads what another has left there."""

    def __init__(self, given: Mapping[object, object]) -> None:
        super().__init__()
        self.data.update(given)
        self._left: set[object] = set()
        self.is_read = False

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(key, value)
        self._left.add(key)

    def __getitem__(self, key: object) -> object:
        self.is_read |= key in self._left
        return super().__getitem__(key)


def _recorded(arguments: list[blockwise.BlockArguments]) -> dict[str, _Memory]:
    """Replace the mappings among the arguments of blocks, which all of them share, and return those by name."""
    memories: dict[str, _Memory] = {}
    for of_block in arguments:
        for name, value in of_block.items():
            if isinstance(value, MutableMapping):
                of_block[name] = memories.setdefault(name, _Memory(value))
    return memories


def _is_constant(before: Tensor, after: Tensor) -> bool:
    """Whether ``after`` - ``before`` [1, n, hidden] is the same for all tokens, but for the rounding of the sum."""
    if before.shape != after.shape:
        return False
    change = after - before
    rounding = 4 * torch.finfo(after.dtype).eps * torch.maximum(before.abs(), after.abs())
    return bool(((change - change[:, :1]).abs() <= rounding + rounding[:, :1]).all())
