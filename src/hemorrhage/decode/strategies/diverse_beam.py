"""Diverse beam search (arXiv 1610.02424): groups of beams, each kept off the tokens of those before it.

Beams are divided into ``groups`` that search one after another at every step. Each of a group's
log-probabilities falls by ``penalty`` for every beam of the groups before it that has just gone on with that
token (Hamming diversity, algorithm 1 of the paper). Ranking, length penalty and stopping are those of
hemorrhage.decode.strategies.beam within each group; the best sequence of all groups is returned, by the scores of the
search. One group is beam search. Defaults 8 beams, 4 groups, penalty 1: arXiv 2402.06925 sweeps beams and
groups (4, 2), (4, 4), (8, 2), (8, 4). transformers has moved it out of the library; usable outside the bench:

    model.generate(**prompts, max_new_tokens=64, custom_generate=diverse_beam_search, beams=8, groups=4, penalty=1.0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hemorrhage.decode.generation import (
    Decoding,
    Prompts,
    check_vocabulary,
    forward,
    refuse_without_cache,
    repeat_rows,
    select_rows,
)
from hemorrhage.decode.search import cache_of, lengthen_mask
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

NEVER = -1e9
"""Score of what cannot be chosen, as in transformers' beam search."""


class Settings(BaseModel):
    """Settings of diverse beam search."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = True

    beams: int = Field(8, ge=2, le=64, description="Sequences kept at every step, by all groups together.")
    groups: int = Field(4, ge=1, description="Groups of beams; divides their number.")
    penalty: float = Field(1.0, ge=0, description="Nats for every earlier beam that goes on with the same token.")

    @model_validator(mode="after")
    def _groups_divide(self) -> Settings:
        if self.beams % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide {self.beams} beams")
        return self

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"diverse beam {self.beams} in {self.groups}, penalty {self.penalty:g}"


def parameters(model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    refuse_without_cache(model)
    check_vocabulary(model, "beams", settings.beams)
    return Decoding(search=diverse_beam_search, search_settings=settings.model_dump())


def diverse_beam_search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: Callable[..., torch.Tensor],
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    beams: int = 8,
    groups: int = 4,
    penalty: float = 1.0,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Run the decoding loop of ``generate(custom_generate=diverse_beam_search)``; ``groups`` divides ``beams``.

    Returns int64 [batch, length], prompts included.
    """
    cache, mask = cache_of(model_kwargs), model_kwargs["attention_mask"]
    batch, size = len(input_ids), beams // groups
    logits, _ = forward(model, input_ids[:, cache.get_seq_length() :], mask, cache)
    logits, mask = logits.repeat_interleave(beams, 0), mask.repeat_interleave(beams, 0)
    repeat_rows(cache, beams)
    first = torch.arange(batch, device=input_ids.device)[:, None] * beams
    searches = [Group(input_ids, size, stopping_criteria, generation_config) for _ in range(groups)]
    while True:
        log_probs = logits[:, -1].log_softmax(-1)
        ids = torch.stack([group.ids for group in searches], 1).flatten(0, 2)
        log_probs = logits_processor(ids, log_probs).view(batch, groups, size, -1)
        taken = log_probs.new_zeros(batch, log_probs.shape[-1])
        parents = []
        for number, group in enumerate(searches):
            # Also of a group that ends with this step: its last tokens were chosen at the same time as the next ones'.
            counts = group.open[:, None].to(taken).expand(-1, size)
            parents.append(first + number * size + group.step(log_probs[:, number] - penalty * taken[:, None]))
            taken.scatter_add_(1, group.ids[:, :, -1], counts)
        if not any(bool((group.open & group.running).any()) for group in searches):
            return best(searches, generation_config)
        select_rows(cache, torch.stack(parents, 1).flatten())
        mask = lengthen_mask(mask)
        tokens = torch.stack([group.ids[:, :, -1:] for group in searches], 1).view(-1, 1)
        logits, _ = forward(model, tokens, mask, cache)


class Group:
    """Beam search by one group of ``size`` beams for every text of a batch.

    ``ids`` [batch, size, length] and ``scores`` [batch, size] are the running beams, ``ended`` the finished
    ones, best first. ``open`` [batch] says which texts' running beams could still overtake them, ``running``
    [batch] which have a beam that has not ended.
    """

    def __init__(
        self, input_ids: torch.Tensor, size: int, criteria: StoppingCriteriaList, config: GenerationConfig
    ) -> None:
        self.size, self.criteria, self.start = size, criteria, input_ids.shape[1]
        ends = config.eos_token_id
        number = 0 if ends is None else len(ends) if isinstance(ends, list) else 1
        # Enough candidates that `size` of them go on, even if every beam's top tokens end it.
        self.candidates = max(2, 1 + number) * size
        batch = len(input_ids)
        self.ids = input_ids[:, None].expand(-1, size, -1)
        # All beams are the same at first: only one of them counts, or all would go on alike.
        self.scores = torch.full((batch, size), NEVER, device=input_ids.device)
        self.scores[:, 0] = 0
        self.ended = Ended(torch.full_like(self.scores, NEVER), self.ids)
        self.open = torch.ones(batch, dtype=torch.bool, device=input_ids.device)
        self.running = self.open

    def step(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Advance by a token with ``log_probs`` [batch, size, vocabulary]; return the beams' parents [batch, size]."""
        vocabulary = log_probs.shape[-1]
        top = (self.scores[..., None] + log_probs).flatten(1).topk(self.candidates)
        parents, tokens = top.indices // vocabulary, top.indices % vocabulary
        ids = torch.cat([rows(self.ids, parents), tokens[..., None]], -1)
        scores: Any = None  # as generate's own loops pass when nobody asked for scores
        stops = self.criteria(ids.flatten(0, 1), scores).view_as(tokens)
        generated = ids.shape[-1] - self.start

        finishing = stops & self.open[:, None]
        finishing[:, self.size :] = False
        self.ended = self.ended.join(torch.where(finishing, top.values / generated, NEVER), ids, self.size)

        # In float64: next to NEVER float32 has no resolution for two beams, and where all stop, other groups are kept
        # from the last tokens of these.
        going = (top.values.double() + NEVER * stops).topk(self.size)
        self.ids, self.scores = rows(ids, going.indices), going.values.to(top.values.dtype)
        self.running = ~stops.all(-1)
        self.open = self.open & (self.scores[:, 0] / generated > self.ended.scores.amin(-1))
        return parents.gather(1, going.indices)


@dataclass
class Ended:
    """Finished sequences: ``scores`` [batch, size], log-probability over length, and ``ids`` [batch, size, length]."""

    scores: torch.Tensor
    ids: torch.Tensor

    def join(self, scores: torch.Tensor, ids: torch.Tensor, size: int) -> Ended:
        """Return the best ``size`` of these and of ``ids`` [batch, n, length] with ``scores`` [batch, n]."""
        ours = torch.nn.functional.pad(self.ids, (0, ids.shape[-1] - self.ids.shape[-1]), value=-1)
        best = torch.cat([self.scores, scores], 1).topk(size)
        return Ended(best.values, rows(torch.cat([ours, ids], 1), best.indices))


def rows(ids: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return ``ids`` [batch, n, length] of the rows ``chosen`` [batch, m]: [batch, m, length]."""
    return ids.gather(1, chosen[..., None].expand(-1, -1, ids.shape[-1]))


def best(groups: list[Group], config: GenerationConfig) -> torch.Tensor:
    """Return the best finished sequence of all groups, padded behind its end: int64 [batch, length]."""
    padding = 0 if config.pad_token_id is None else config.pad_token_id
    scores = torch.cat([group.ended.scores for group in groups], 1)
    ids = torch.cat([group.ended.ids for group in groups], 1)
    chosen = rows(ids, scores.argmax(-1, keepdim=True))[:, 0]
    longest = int((chosen >= 0).sum(-1).max())
    return chosen[:, :longest].masked_fill(chosen[:, :longest] < 0, padding)
