"""Which experts of a mixture the tokens of a calibration set reach, and what their MLPs read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from hemorrhage.models.blocks import blocks
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Usage(TypedDict):
    """How tokens use the experts of a mixture.

    ``tokens`` that each expert gets; ``load_entropy``: entropy of the experts' shares of them over its largest value,
    1 where all get the same; ``routing_entropy``: mean over tokens of the entropy of the router's softmax, nats.
    """

    tokens: list[int]
    load_entropy: float
    routing_entropy: float


def mlp_inputs(model: PreTrainedModel, tokens: Tensor) -> Iterator[tuple[int, Any, Tensor]]:
    """Return index of each block, its MLP or mixture, and what it reads when ``tokens`` [samples, length] go through.

    The MLP is in float32 while it is looked at, and must not be altered then. The inputs are float32 [tokens, hidden],
    the unaltered model's.
    """
    from hemorrhage.models.blockwise import embed, in_float32, run_block

    with torch.no_grad():
        states, arguments = embed(model, tokens.long().to(model.device).split(1))
    stack: Any = blocks(model)
    for index, block in enumerate(stack):
        seen: list[Tensor] = []
        mlp = _mlp(block)
        hook = (mlp or block).register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].flatten(0, -2)))
        with in_float32(block):
            try:
                with torch.no_grad():
                    states = [run_block(block, state, arguments[index], batch) for batch, state in enumerate(states)]
            finally:
                hook.remove()
            if mlp is not None:
                yield index, mlp, torch.cat(seen)


def _mlp(block: Any) -> Any:
    """Return the MLP or mixture of a block; None where it has neither, as a state-space model's."""
    from hemorrhage.models.experts import mixtures

    return next(iter(mixtures(block).values()), None) or getattr(block, "mlp", None)


def usage(model: PreTrainedModel, tokens: Tensor) -> dict[str, Usage]:
    """Count how ``tokens`` int [samples, length] use the experts of each mixture of ``model``, by its name."""
    from hemorrhage.models.experts import mixtures, record_choices, routing_logits

    names = {mixture: name for name, mixture in mixtures(model).items()}
    usages: dict[str, Usage] = {}
    for _, mixture, x in mlp_inputs(model, tokens):
        if mixture not in names:
            continue
        with torch.no_grad(), record_choices(mixture) as taken:
            mixture(x[None])
            chosen = taken[0]
            routing = torch.distributions.Categorical(logits=routing_logits(mixture, x))
        tally = torch.bincount(chosen.flatten(), minlength=len(mixture.experts))
        load = torch.distributions.Categorical(probs=tally.double())
        usages[names[mixture]] = Usage(
            tokens=tally.tolist(),
            load_entropy=(load.entropy() / torch.tensor(len(tally)).double().log()).item(),
            routing_entropy=routing.entropy().mean().item(),
        )
    return usages


def without_tokens(usages: Mapping[str, Usage]) -> list[str]:
    """Return the names of the experts that ``usage`` saw no token reach.

    Nothing is known of them from this calibration set.
    """
    return [
        f"{name}.experts.{index}"
        for name, of_mixture in usages.items()
        for index, tokens in enumerate(of_mixture["tokens"])
        if not tokens
    ]
