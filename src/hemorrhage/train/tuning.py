"""What a tuned model is trained for: answers to instructions (SFT), and the better of two answers (DPO)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hemorrhage.train.instructions import Example
from hemorrhage.train.objectives import forward
from hemorrhage.train.tokenizer import BEGIN_MESSAGE, END_MESSAGE, PAD, SPECIAL

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{BEGIN_MESSAGE}' + message['role'] + '\\n' + message['content'] + '{END_MESSAGE}' + '\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{BEGIN_MESSAGE}assistant\\n' }}}}{{% endif %}}"
)
"""The chat template of tuned models: ChatML."""

MEASURED = 256
"""Held-out examples that the loss is measured on, at most."""


@dataclass(frozen=True)
class Encoded:
    """A conversation's tokens; the answer is those from ``begin`` on, with the token that ends it."""

    ids: tuple[int, ...]
    begin: int

    @property
    def answer(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.begin


def encode(tokenizer: Tokenizer, prompt: str, answer: str) -> Encoded:
    """Return a conversation of one turn as its template writes it, up to the end of the answer."""
    asked = f"{BEGIN_MESSAGE}user\n{prompt}{END_MESSAGE}\n{BEGIN_MESSAGE}assistant\n"
    before, said = (tokenizer.encode(text, add_special_tokens=False).ids for text in (asked, f"{answer}{END_MESSAGE}"))
    return Encoded((*before, *said), len(before))


def answer_log_likelihoods(model: PreTrainedModel, conversations: Sequence[Encoded], is_lowered: bool) -> Tensor:
    """Return ln p(answer | prompt) of each conversation, summed over the answer's tokens: (conversations,) float32."""
    import torch

    length = max(len(each.ids) for each in conversations)
    pad = SPECIAL.index(PAD)
    ids = torch.tensor([[*each.ids, *[pad] * (length - len(each.ids))] for each in conversations])
    place = torch.arange(length)
    is_answer = torch.stack([(place >= each.begin) & (place < len(each.ids)) for each in conversations])
    # Padding comes last, where a causal model's earlier tokens do not see it.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_lowered):
        logits, _ = forward(model, ids[:, :-1])
    of_tokens = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (of_tokens * is_answer[:, 1:]).sum(-1)


def preference_loss(chosen: Tensor, rejected: Tensor, of_reference: Tensor, beta: float) -> Tensor:
    """Return DPO's loss of each pair (arXiv 2305.18290, equation 7).

    ``chosen``, ``rejected``: ln π(y | x) of the answers; ``of_reference``: ln π_ref(y_w | x) - ln π_ref(y_l | x).
    """
    import torch

    loss: Tensor = -torch.nn.functional.logsigmoid(beta * ((chosen - rejected) - of_reference))
    return loss


class Tuning(ABC):
    """A loss of pairs of answers, batch by batch; ``is_lowered``: products are in bfloat16."""

    def __init__(self, batches: Batches, is_lowered: bool) -> None:
        self.batches, self.is_lowered = batches, is_lowered
        self.steps = batches.steps

    def backward(self, model: PreTrainedModel, step: int) -> float:
        """Add a step's gradients to those of ``model``; return its loss."""
        loss = self._loss(model, self.batches.of(step))
        loss.backward()
        return float(loss.detach())

    def heldout(self, model: PreTrainedModel) -> float:
        """Return the loss on what is held out."""
        import torch

        with torch.no_grad():
            return float(self._loss(model, self.batches.held_out[:MEASURED]))

    @abstractmethod
    def _loss(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> Tensor: ...


class Answers(Tuning):
    """Supervised tuning: the mean cross-entropy of the answers' tokens, the prompts' left out."""

    def tokens(self, steps: int) -> int:
        """Count the answers' tokens of the first ``steps`` steps."""
        return sum(pair[0].answer for step in range(steps) for pair in self.batches.of(step))

    def _loss(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> Tensor:
        answers = [chosen for chosen, _ in pairs]
        total = answer_log_likelihoods(model, answers, self.is_lowered).sum()
        return -total / sum(each.answer for each in answers)


class Preferences(Tuning):
    """Direct preference optimization against ``reference``, the model that is tuned, as it is now: a loss per pair.

    That of the reference is ln 2.
    """

    def __init__(self, batches: Batches, reference: PreTrainedModel, beta: float, is_lowered: bool) -> None:
        import torch

        super().__init__(batches, is_lowered)
        self.beta = beta
        self.reference: dict[Pair, float] = {}
        pairs = list(dict.fromkeys([*batches.pairs, *batches.held_out[:MEASURED]]))
        with torch.no_grad():
            for first in range(0, len(pairs), batches.size):
                some = pairs[first : first + batches.size]
                chosen, rejected = self._log_likelihoods(reference, some)
                self.reference |= dict(zip(some, (chosen - rejected).tolist(), strict=True))

    def tokens(self, steps: int) -> int:
        """Count the tokens of both answers of the first ``steps`` steps."""
        return sum(each.answer for step in range(steps) for pair in self.batches.of(step) for each in pair)

    def _loss(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> Tensor:
        import torch

        of_reference = torch.tensor([self.reference[pair] for pair in pairs])
        return preference_loss(*self._log_likelihoods(model, pairs), of_reference, self.beta).mean()

    def _log_likelihoods(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        both = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
        values = answer_log_likelihoods(model, both, self.is_lowered)
        return values[: len(pairs)], values[len(pairs) :]


Pair = tuple[Encoded, Encoded]
"""A prompt with the answer that it asks for, and with the other."""


class Batches:
    """The pairs of each step: every pair once in each of ``epochs`` rounds, in an order that ``seed`` decides."""

    def __init__(self, pairs: Sequence[Pair], held_out: Sequence[Pair], size: int, epochs: int, seed: int) -> None:
        self.pairs, self.held_out, self.size = list(pairs), list(held_out), size
        self.steps = math.ceil(len(pairs) * epochs / size)
        rounds = [np.random.default_rng([seed, number]).permutation(len(pairs)) for number in range(epochs)]
        self._order = np.concatenate(rounds)

    @classmethod
    def of_examples(
        cls,
        tokenizer: Tokenizer,
        learned: Sequence[Example],
        held_out: Sequence[Example],
        size: int,
        epochs: int,
        seed: int,
    ) -> Batches:
        """Make them of examples."""
        both = [[_pair(tokenizer, example) for example in part] for part in (learned, held_out)]
        return cls(both[0], both[1], size, epochs, seed)

    def of(self, step: int) -> list[Pair]:
        """Return the pairs of a step; of the last what is left."""
        return [self.pairs[index] for index in self._order[step * self.size : (step + 1) * self.size]]


def _pair(tokenizer: Tokenizer, example: Example) -> Pair:
    chosen, rejected = (encode(tokenizer, example.prompt, answer) for answer in (example.chosen, example.rejected))
    return chosen, rejected
