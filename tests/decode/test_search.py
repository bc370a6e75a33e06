"""Our own searches against slow, literal, unbatched, cache-free references, and against identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import ends, generate, read, until_end
from hemorrhage.decode.prompts import Prompt, left_padded
from hemorrhage.decode.strategies import (
    assisted,
    beam,
    contrastive_decoding,
    contrastive_search,
    diverse_beam,
    dola,
    fsd,
    fsd_d,
    greedy,
)
from hemorrhage.models.checkpoint import load, load_tokenizer

EVERY = [greedy, beam, diverse_beam, contrastive_search, contrastive_decoding, dola, fsd, fsd_d, assisted]
TEXTS = ("Once upon a time", "The", "Lily and her mom went to the park. She saw a big, big, big")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load(tiny)


@pytest.fixture(scope="module")
def prompts(tiny: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(tiny)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return left_padded([Prompt(i, "", tokens) for i, tokens in enumerate(prompts)], padding=0)


def texts(model: Any, generated: torch.Tensor) -> list[list[int]]:
    return [until_end(row, ends(model)) for row in generated.tolist()]


def states_of(model: Any, ids: list[int]) -> torch.Tensor:
    return model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def contrastive_reference(model: Any, ids: list[int], new_tokens: int, alpha: float, k: int) -> list[int]:
    ids, start = list(ids), len(ids)
    for _ in range(new_tokens):
        past = states_of(model, ids)
        p = model.lm_head(past[-1]).softmax(-1)
        scores = {}
        for token in p.topk(k).indices.tolist():
            state = states_of(model, [*ids, token])[-1]
            likeness = max(cosine(state, past[j]) for j in range(len(ids)))
            scores[token] = (1 - alpha) * float(p[token]) - alpha * likeness
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in ends(model):
            break
    return ids[start:]


def fsd_reference(model: Any, ids: list[int], new_tokens: int, alpha: float, k: int, n: int) -> list[int]:
    ids, start = list(ids), len(ids)
    for _ in range(new_tokens):
        states = states_of(model, ids)
        p = model.lm_head(states[-1]).softmax(-1)
        scores = {}
        for token in p.topk(k).indices.tolist():
            penalty = 0.0
            # Every n-gram of the text: n - 1 tokens from `first`, and the token behind them.
            for first in range(len(ids) - n + 1):
                if ids[first + n - 1] == token:
                    key, query = states[first : first + n - 1].flatten(), states[-(n - 1) :].flatten()
                    penalty = max(penalty, min(1.0, cosine(query, key)))
            scores[token] = (1 - alpha) * float(p[token]) - alpha * penalty
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in ends(model):
            break
    return ids[start:]


def fsd_d_reference(
    model: Any, ids: list[int], new_tokens: int, alpha: float, k: int, n: int, beta: float
) -> list[int]:
    ids, start = list(ids), len(ids)
    for _ in range(new_tokens):
        p = model(torch.tensor([ids]), use_cache=False).logits[0, -1].softmax(-1)
        scores = {}
        for token in p.topk(k).indices.tolist():
            penalty, rest = 0.0, 1.0
            for i in range(n - 1, -1, -1) if len(ids) >= n - 1 else ():
                # What stands behind each place where the last i tokens stand.
                context = ids[len(ids) - i :]
                followers = [ids[at + i] for at in range(len(ids) - i) if ids[at : at + i] == context]
                count = followers.count(token)
                if count == 0:
                    continue
                penalty += rest * (beta * count / (len(followers) + 1) if i else count / len(followers))
                rest *= 1 - beta
            scores[token] = (1 - alpha) * float(p[token]) - alpha * penalty
        ids.append(max(scores, key=scores.__getitem__))
        if ids[-1] in ends(model):
            break
    return ids[start:]


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.9, 3)])
def test_contrastive_search_is_the_literal_one(model: Any, prompts: list[list[int]], alpha: float, k: int) -> None:
    settings = contrastive_search.Settings(alpha=alpha, k=k)
    with torch.no_grad():
        expected = [contrastive_reference(model, ids, 14, alpha, k) for ids in prompts]
    assert texts(model, generate(contrastive_search, model, *padded(prompts), 14, settings, 0)) == expected
    greedily = texts(model, generate(greedy, model, *padded(prompts), 14, greedy.Settings(), 0))
    assert expected != greedily


@pytest.mark.parametrize(("alpha", "k", "n"), [(0.45, 3, 2), (0.6, 4, 3), (0.8, 4, 4)])
def test_fsd_is_the_literal_one(model: Any, prompts: list[list[int]], alpha: float, k: int, n: int) -> None:
    settings = fsd.Settings(alpha=alpha, k=k, n=n)
    with torch.no_grad():
        expected = [fsd_reference(model, ids, 28, alpha, k, n) for ids in prompts]
    assert texts(model, generate(fsd, model, *padded(prompts), 28, settings, 0)) == expected
    assert expected != texts(model, generate(greedy, model, *padded(prompts), 28, greedy.Settings(), 0))


@pytest.mark.parametrize(
    ("alpha", "k", "n", "beta"), [(0.6, 5, 3, 0.9), (0.3, 3, 2, 0.5), (0.8, 4, 4, 1.0), (0.7, 4, 5, 0.7)]
)
def test_discrete_fsd_is_the_literal_one(
    model: Any, prompts: list[list[int]], alpha: float, k: int, n: int, beta: float
) -> None:
    settings = fsd_d.Settings(alpha=alpha, k=k, n=n, beta=beta)
    with torch.no_grad():
        expected = [fsd_d_reference(model, ids, 28, alpha, k, n, beta) for ids in prompts]
    assert texts(model, generate(fsd_d, model, *padded(prompts), 28, settings, 0)) == expected
    assert expected != texts(model, generate(greedy, model, *padded(prompts), 28, greedy.Settings(), 0))


def test_a_token_costs_the_ngram_table_the_same_however_long_the_text_is() -> None:
    class Counted(dict[tuple[int, ...], Any]):
        looked = 0

        def __getitem__(self, key: tuple[int, ...]) -> Any:
            self.looked += 1
            return super().__getitem__(key)

    def looks(length: int) -> int:
        table = fsd_d.NGrams(order=3, beta=0.9)
        table.extend([i * i % 7 for i in range(length)])
        table.followers = Counted(table.followers)  # type: ignore[assignment]
        for token in range(7):
            table.penalty(token)
        return table.followers.looked  # type: ignore[attr-defined]

    assert looks(2000) == looks(20) <= 7 * 3


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (contrastive_search, contrastive_search.Settings(alpha=0)),
        (fsd, fsd.Settings(alpha=0)),
        (fsd_d, fsd_d.Settings(alpha=0)),
        (contrastive_decoding, contrastive_decoding.Settings(beta=0)),
        (assisted, assisted.Settings(layers=1, draft=2)),
        (assisted, assisted.Settings(layers=4, draft=7)),
    ],
)
def test_no_penalty_and_any_draft_are_greedy(model: Any, prompts: list[list[int]], module: Any, settings: Any) -> None:
    greedily = generate(greedy, model, *padded(prompts), 24, greedy.Settings(), 0)
    assert torch.equal(generate(module, model, *padded(prompts), 24, settings, 0), greedily)


@pytest.mark.parametrize("module", EVERY)
def test_a_batch_gives_the_texts_of_one_at_a_time(model: Any, prompts: list[list[int]], module: Any) -> None:
    settings = module.Settings()
    assert settings.deterministic
    together = texts(model, generate(module, model, *padded(prompts), 20, settings, 0))
    alone = [texts(model, generate(module, model, *padded([ids]), 20, settings, 0))[0] for ids in prompts]
    assert together == alone


@pytest.mark.parametrize("module", EVERY)
def test_a_batch_read_beforehand_changes_nothing_and_stays_usable(
    model: Any, prompts: list[list[int]], module: Any
) -> None:
    ids, mask = padded(prompts)
    reading = read(model, ids, mask)
    assert reading is not None
    fresh = generate(module, model, ids, mask, 10, module.Settings(), 0)
    for _ in range(2):
        assert torch.equal(generate(module, model, ids, mask, 10, module.Settings(), 0, reading), fresh)


@pytest.mark.parametrize("module", [greedy, contrastive_search, contrastive_decoding, dola, fsd, fsd_d, assisted])
def test_sequences_end_on_their_own(
    model: Any, prompts: list[list[int]], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = texts(model, generate(module, model, *padded(prompts), 24, module.Settings(), 0))
    stop = free[0][5]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop, 2])
    monkeypatch.setattr(model.generation_config, "pad_token_id", 3)
    stopped = generate(module, model, *padded(prompts), 24, module.Settings(), 0).tolist()
    for row, whole in zip(stopped, free, strict=True):
        expected = until_end(whole, {stop, 2})
        assert row == expected + [3] * (len(row) - len(expected))


def test_contrastive_search_runs_the_model_once_per_step(model: Any, prompts: list[list[int]]) -> None:
    rows: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        generate(contrastive_search, model, *padded(prompts), 5, contrastive_search.Settings(k=4), 0)
    finally:
        hook.remove()
    assert rows == [(3, max(map(len, prompts))), *[(12, 1)] * 5]


@pytest.mark.parametrize(
    ("search", "options", "expected"),
    [
        (
            contrastive_search.contrastive_search,
            {"alpha": 0.3, "candidates": 5},
            lambda m, ids: contrastive_reference(m, ids, 12, 0.3, 5),
        ),
        (
            fsd.fsd,
            {"alpha": 0.6, "candidates": 4, "order": 3},
            lambda m, ids: fsd_reference(m, ids, 12, 0.6, 4, 3),
        ),
    ],
)
def test_any_user_of_transformers_can_pass_them_to_generate(
    model: Any, prompts: list[list[int]], search: Any, options: dict[str, Any], expected: Any
) -> None:
    prompt = torch.tensor([prompts[2]])
    generated = model.generate(prompt, max_new_tokens=12, custom_generate=search, **options)
    with torch.no_grad():
        assert generated[0, prompt.shape[1] :].tolist() == expected(model, prompts[2])


def test_the_ngram_penalty_is_a_logits_processor(model: Any, prompts: list[list[int]]) -> None:
    prompt = torch.tensor([prompts[2]])
    processor = fsd_d.NGramPenalty(alpha=0.5, candidates=4, order=3, beta=0.8)
    generated = model.generate(prompt, max_new_tokens=12, logits_processor=[processor])
    with torch.no_grad():
        assert generated[0, prompt.shape[1] :].tolist() == fsd_d_reference(model, prompts[2], 12, 0.5, 4, 3, 0.8)


def test_beam_search_finds_the_most_probable_pair(model: Any, prompts: list[list[int]]) -> None:
    ids = torch.tensor([prompts[0]])
    with torch.no_grad():
        first = model(ids).logits[0, -1].log_softmax(-1)
        vocabulary = len(first)
        after = torch.cat([ids.expand(vocabulary, -1), torch.arange(vocabulary)[:, None]], dim=1)
        pairs = first[:, None] + model(after).logits[:, -1].log_softmax(-1)
    best = int(pairs.argmax())
    found = generate(beam, model, ids, torch.ones_like(ids), 2, beam.Settings(beams=64), 0)
    assert found.tolist() == [[best // vocabulary, best % vocabulary]]


def test_a_cache_without_its_states_is_refused(model: Any, prompts: list[list[int]]) -> None:
    ids, mask = padded(prompts)
    reading = read(model, ids, mask)
    assert reading is not None
    with pytest.raises(ValueError, match="past_key_values holds"):
        model.generate(
            ids,
            attention_mask=mask,
            past_key_values=reading.copied_cache(),
            custom_generate=fsd.fsd,
            max_new_tokens=4,
        )
