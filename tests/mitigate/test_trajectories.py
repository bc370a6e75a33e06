"""What corrected models write, against whole forward passes and the definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from hemorrhage.decode.prompts import Prompt
from hemorrhage.mitigate import trajectories
from hemorrhage.mitigate.corrections import Correction, identity, logits_of
from hemorrhage.mitigate.trajectories import GREEDY, SAMPLING, SEARCHES, Task
from hemorrhage.models.checkpoint import load
from hemorrhage.models.head import head_of
from tests.families import build

VOCABULARY = 512


def task_of(tokens: Tensor, new_tokens: int = 4) -> Task:
    """Prompts of 6 and of 5 tokens."""
    prompts = [Prompt(row, "", line[: 6 - row % 2]) for row, line in enumerate(tokens.tolist())]
    return Task("open_ended", "made", prompts, new_tokens)


def corrections_for(model: Any) -> dict[tuple[str, int], Correction]:
    """One of each kind, far from changing nothing."""
    generator = torch.Generator().manual_seed(3)
    head = head_of(model)
    bias = 2 * torch.randn(len(head), generator=generator)
    gain = 1 + 0.5 * torch.randn(head.width, generator=generator)
    return {
        ("none", 0): identity(),
        ("temperature", 0): Correction(torch.tensor([0.5]), torch.empty(0)),
        ("entropy buckets", 0): Correction(torch.tensor([0.5, 2.0]), torch.tensor([5.0])),
        ("bias", 0): Correction(torch.tensor([0.5]), torch.empty(0), bias=bias),
        ("gain", 0): Correction(torch.ones(1), torch.empty(0), gain=gain),
        ("nucleus", 0): Correction(torch.ones(1), torch.empty(0), top_p=0.5),
    }


@pytest.mark.parametrize("family", ["llama", "mamba", "jamba", "gemma2", "cohere", "phi"])
def test_written_texts_are_those_of_whole_forward_passes(family: str, tmp_path: Path) -> None:
    model = load(build(tmp_path / family, family))
    task = task_of(torch.randint(3, 500, (3, 8), generator=torch.Generator().manual_seed(0)))
    chosen = corrections_for(model)
    texts = trajectories.write(model, task, chosen, SEARCHES, 0)
    assert {name for search, (name, _) in texts if search == GREEDY} == {"none", "bias", "gain"}
    assert {name for search, (name, _) in texts if search == SAMPLING} == {name for name, _ in chosen}
    head = head_of(model).float()
    for (search, name), written in texts.items():
        if search == SAMPLING:
            continue
        for prompt, tokens in zip(task.prompts, written, strict=True):
            whole = torch.tensor([[*prompt.tokens, *tokens]])
            with torch.no_grad():
                states = model.model(input_ids=whole).last_hidden_state if family != "mamba" else None
                raw = model(input_ids=whole, use_cache=False).logits[0].float()
            if name[0] == "gain" and states is not None:
                corrected = logits_of(states[0].float() * chosen[name].gain, head)
            elif name[0] == "gain":
                continue
            else:
                corrected = raw if chosen[name].bias is None else 0.5 * raw + chosen[name].bias
            before = len(prompt.tokens)
            assert corrected[before - 1 : -1].argmax(-1).tolist() == tokens, (family, name)


def test_sampled_texts_follow_the_corrected_distribution(tiny: Path) -> None:
    """Of many texts behind one prompt, first tokens have the frequencies that the correction says."""
    model = load(tiny)
    prompts = [Prompt(row, "", [1, 5, 9, 20]) for row in range(3000)]
    bias = torch.zeros(len(head_of(model)))
    bias[7] = 9.0
    chosen = {
        ("none", 0): identity(),
        ("bias", 0): Correction(torch.tensor([2.0]), torch.empty(0), bias=bias),
        ("nucleus", 0): Correction(torch.ones(1), torch.empty(0), top_p=0.3),
    }
    texts = trajectories.write(model, Task("open_ended", "made", prompts, 1), chosen, [SAMPLING], 1)
    with torch.no_grad():
        raw = model(torch.tensor([[1, 5, 9, 20]])).logits[0, -1].float()
    for name, correction in chosen.items():
        wanted = correction.of_logits(raw[None])[0].softmax(-1)
        found = torch.tensor([tokens[0] for tokens in texts[SAMPLING, name]]).bincount(minlength=len(wanted)) / 3000
        assert 0.5 * (found - wanted).abs().sum() < 0.5 * (2 * wanted / (3.14159 * 3000)).sqrt().sum() + 0.03
        assert (found[wanted == 0] == 0).all()


def test_equal_distributions_give_equal_texts(tiny: Path) -> None:
    model = load(tiny)
    task = task_of(torch.randint(3, 500, (4, 8), generator=torch.Generator().manual_seed(0)), 6)
    same = {("none", 0): identity(), ("bias", 0): Correction(torch.ones(1), torch.empty(0), bias=torch.zeros(512))}
    texts = trajectories.write(model, task, same, [SAMPLING], 0)
    assert texts[SAMPLING, ("none", 0)] == texts[SAMPLING, ("bias", 0)]
    alone = trajectories.write(model, task, {("none", 0): identity()}, [SAMPLING], 0)
    assert alone[SAMPLING, ("none", 0)] == texts[SAMPLING, ("none", 0)]


def test_a_planted_fault_is_undone_on_what_is_written(tiny: Path) -> None:
    """A variant whose head prefers a token writes it all the time; the opposite bias gives the base's texts back."""
    from hemorrhage.models.checkpoint import load_tokenizer

    base, variant = load(tiny), load(tiny)
    preferred = torch.zeros(len(head_of(base)))
    preferred[11] = 40.0
    variant.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: output + preferred)
    fixed = {("none", 0): identity(), ("bias", 0): Correction(torch.ones(1), torch.empty(0), bias=-preferred)}
    task = task_of(torch.randint(3, 500, (4, 8), generator=torch.Generator().manual_seed(0)), 12)
    texts = trajectories.write(variant, task, fixed, SEARCHES, 0)
    own = trajectories.write(base, task, {("none", 0): identity()}, SEARCHES, 0)
    table = trajectories.table(task, texts, own, base, load_tokenizer(tiny))
    for search in SEARCHES:
        mine = table[table["search"] == search].set_index("correction")
        assert (mine.loc["bias", "agreement"] == mine.loc["bias", "base_length"]).all()
        assert (mine.loc["none", "agreement"] < mine.loc["none", "base_length"]).all()
        assert mine.loc["none", "tokens"].map(lambda tokens: set(tokens) == {11}).all()
        pd.testing.assert_series_equal(
            mine.loc["bias", "base_nll"].reset_index(drop=True), mine.loc["base", "base_nll"].reset_index(drop=True)
        )
        assert (mine.loc["none", "base_nll"].to_numpy() > mine.loc["base", "base_nll"].to_numpy()).all()


def test_agreement_ends_at_the_first_difference() -> None:
    assert trajectories.agreement([1, 2, 3], [1, 2, 4]) == 2
    assert trajectories.agreement([1, 2], [1, 2, 4]) == 2
    assert trajectories.agreement([5], [1]) == 0


def test_time_is_measured_of_every_correction(tiny: Path) -> None:
    model = load(tiny)
    chosen = {name: correction for (name, _), correction in corrections_for(model).items()}
    seconds = trajectories.seconds_per_token(model, Prompt(0, "", [1, 5, 9]), chosen)
    assert set(seconds) == set(chosen)
    assert all(0 < value < 5 for value in seconds.values())
