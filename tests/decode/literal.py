"""What the tests of decoding share: batches of prompts, texts of a batch, and single passes of a model."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable
from typing import Any

import torch

from hemorrhage.decode.generation import end_tokens, generate, until_end
from hemorrhage.decode.prompts import Prompt, pad_left


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_left([Prompt(i, "", tokens) for i, tokens in enumerate(prompts)], padding=0)


def texts(model: Any, generated: torch.Tensor) -> list[list[int]]:
    return [until_end(row, end_tokens(model)) for row in generated.tolist()]


def shortened(model: Any, layers: int) -> Any:
    """A model of its own: the first blocks, the norm and the head."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    short = type(model)(config).eval()
    short.load_state_dict(model.state_dict(), strict=False)
    return short


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    return logits


def states_of(model: Any, ids: list[int]) -> torch.Tensor:
    states: torch.Tensor = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return states


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def strategy(name: str) -> Any:
    return importlib.import_module(f"hemorrhage.decode.strategies.{name}")


def sample(model: Any, prompt: torch.Tensor, name: str, new_tokens: int = 1, seed: int = 7, **settings: Any) -> Any:
    module = strategy(name)
    return generate(module, model, prompt, torch.ones_like(prompt), new_tokens, module.Settings(**settings), seed)


def surprise(model: Any, prompt: torch.Tensor, texts: torch.Tensor) -> float:
    """Mean surprise of the tokens of ``texts`` behind ``prompt``, in bits."""
    tokens = torch.cat([prompt.expand(len(texts), -1), texts], dim=1)
    with torch.no_grad():
        logp = model(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    return float(-logp[:, prompt.shape[1] - 1 :].mean()) / math.log(2)


def check_draws(
    model: Any,
    prompt: torch.Tensor,
    drawn_from: list[torch.Tensor],
    name: str,
    kept: Callable[[list[float]], set[int]],
    **settings: Any,
) -> None:
    """A token is drawn among those that the definition ``kept`` keeps of the model's probabilities, in their shares."""
    sample(model, prompt, name, **settings)
    p = logits_of(model, prompt[0].tolist()).softmax(-1).tolist()
    expected = kept(p)
    (drawn,) = drawn_from
    assert set(drawn[0].nonzero().flatten().tolist()) == expected
    total = sum(p[token] for token in expected)
    assert all(math.isclose(drawn[0, token], p[token] / total, rel_tol=1e-4) for token in expected)


def ranked(p: list[float]) -> list[int]:
    """Tokens, the most probable first."""
    return sorted(range(len(p)), key=lambda token: -p[token])


def until_mass(order: list[int], p: list[float], mass: float) -> set[int]:
    """The first of ``order`` whose probabilities together reach ``mass``."""
    found: set[int] = set()
    for token in order:
        found.add(token)
        if sum(p[each] for each in found) >= mass:
            break
    return found


def entropy_of(p: list[float]) -> float:
    """In nats."""
    return -sum(x * math.log(x) for x in p if x > 0)
