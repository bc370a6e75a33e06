"""DoLa, decoding by contrasting layers (arXiv 2309.03883): what the last layers added to an early one.

At every step the candidate layer whose next-token distribution q_M is furthest from the last layer's q_N is
taken: M = argmax over j of JSD(q_N, q_j). Among the tokens with q_N(v) >= alpha max q_N: y = argmax over v of
ln q_N(v) - ln q_M(v), then a repetition penalty. Defaults alpha = 0.1 and repetition penalty 1.2, the paper's.
An early state passes the last norm before the head, as the last one does. Two things differ from the
authors' code and from transformers' former version: the Jensen-Shannon divergence is the one the paper
defines, and each text of a batch has its own layer. Usable outside the bench:

    model.generate(**prompts, max_new_tokens=64, custom_generate=dola, layers=(0, 2, 4), repetition_penalty=1.2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.early_exit import depth, early_logits, implausible_tokens
from hemorrhage.decode.generation import Decoding, Prompts, refuse_without_cache
from hemorrhage.decode.search import Sequences, steps
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList


class Settings(BaseModel):
    """Settings of DoLa."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = True

    layers: Literal["low", "high"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = Field(
        "low",
        description="Candidate layers: states after so many blocks, or every other one of the lower or upper half.",
    )
    alpha: float = Field(0.1, gt=0, le=1, description="A plausible token has at least alpha times the top probability.")
    repetition_penalty: float = Field(1.2, ge=1, description="Divides what speaks for a token the text holds.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        layers = self.layers if isinstance(self.layers, str) else ",".join(map(str, self.layers))
        return f"DoLa {layers}"


def parameters(model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    refuse_without_cache(model)
    chosen = {"layers": candidates(model, settings.layers), "alpha": settings.alpha}
    options = {"repetition_penalty": settings.repetition_penalty}
    return Decoding(options, search=dola, search_settings=chosen)


def dola(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: Callable[..., torch.Tensor],
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    layers: Sequence[int] | str = "low",
    alpha: float = 0.1,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Run the decoding loop of ``generate(custom_generate=dola)``. Returns int64 [batch, length], prompts included."""
    layers = candidates(model, layers)
    sequences = Sequences(input_ids, stopping_criteria, generation_config)
    for logits, states, mask in steps(model, sequences, model_kwargs):
        final = logits.log_softmax(-1)
        early = early_logits(model, torch.stack([states[layer][:, -1] for layer in layers], 1)).log_softmax(-1)
        furthest = jensen_shannon(final[:, None], early).argmax(-1)
        scores = final - early[torch.arange(len(early), device=furthest.device), furthest]
        scores = scores.masked_fill(implausible_tokens(final, alpha), -torch.inf)
        # The repetition penalty counts every token it is shown: padding becomes a token of the text.
        shown = torch.where(mask == 0, sequences.ids[:, -1:], sequences.ids)
        if not sequences.append(logits_processor(shown, scores).argmax(-1)):
            break
    return sequences.ids


def candidates(model: PreTrainedModel, layers: Sequence[int] | str) -> tuple[int, ...]:
    """Return the candidate layers; ``low`` and ``high`` are every other one of the lower and of the upper half.

    ``low`` leaves out 0 where the head is the embedding: it would name the token just read. Raises ValueError
    where there are none or the model is not as deep.
    """
    blocks = depth(model)
    if layers == "low":
        first = 2 if model.config.get_text_config(decoder=True).tie_word_embeddings else 0
        layers = range(first, max(blocks // 2, first + 1), 2)
    elif layers == "high":
        layers = range(blocks // 2, blocks, 2)
    numbers = tuple(int(layer) for layer in layers)
    if not numbers or not all(0 <= layer < blocks for layer in numbers):
        raise ValueError(f"layers: {list(numbers)}, some of 0 to {blocks - 1} wanted for a model of {blocks} blocks")
    return numbers


def jensen_shannon(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in nats of log-probabilities [..., vocabulary]: the last dimension is summed."""
    between = torch.logaddexp(first, second) - torch.tensor(2.0).log()
    return 0.5 * (first.exp() * (first - between) + second.exp() * (second - between)).sum(-1)
