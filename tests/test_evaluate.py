"""The evaluate step against literal references on a real tiny model."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from hemorrhage.evaluate.choices import answers, choice_rows, log_likelihoods
from hemorrhage.evaluate.language import corpus_damage, head_of, hidden_states, output_embedding, token_damage
from hemorrhage.evaluate.reference import cut_windows, protocol
from hemorrhage.evaluate.schema import TOKENS
from hemorrhage.models.checkpoint import load, load_tokenizer


@pytest.fixture(scope="module")
def model(tiny: Path):
    return load(tiny)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path):
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def damaged(tiny: Path):
    broken = load(tiny)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in broken.model.layers:
            weight = layer.mlp.down_proj.weight
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=noise)
    return broken


@pytest.fixture(scope="module")
def windows(model) -> torch.Tensor:
    return torch.randint(
        3, model.config.vocab_size, (3, 24), generator=torch.Generator().manual_seed(1), dtype=torch.int32
    )


def test_damage_against_a_literal_double_loop(model, damaged, windows) -> None:
    base_hidden = hidden_states(model, windows.long())
    table = corpus_damage(damaged, windows, base_hidden, output_embedding(model), "prose")
    TOKENS.validate(table)
    assert len(table) == 3 * 23
    row = table[(table.window == 1) & (table.position == 5)].iloc[0]
    with torch.no_grad():
        p = model(windows[1:2, :5].long()).logits[0, -1].double().softmax(-1).tolist()
        q = damaged(windows[1:2, :5].long()).logits[0, -1].double().softmax(-1).tolist()
    kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    target = int(windows[1, 5])
    assert row.kl == pytest.approx(kl, abs=1e-5)
    assert row.nll == pytest.approx(-math.log(q[target]), abs=1e-4)
    assert row.base_nll == pytest.approx(-math.log(p[target]), abs=1e-4)
    assert row.same_top1 == (p.index(max(p)) == q.index(max(q)))
    assert table.kl.mean() > 1e-3, "the planted damage shows"


def test_a_model_does_not_diverge_from_itself(model, windows) -> None:
    hidden = hidden_states(model, windows.long())
    head = output_embedding(model)
    damage = token_damage(hidden[0], head, hidden[0], head, windows[0].long())
    assert float(damage["kl"].abs().max()) == 0.0
    assert bool(damage["same_top1"].all())
    assert torch.equal(damage["nll"], damage["base_nll"])


def test_nll_is_the_loss_transformers_reports(model, windows) -> None:
    hidden = hidden_states(model, windows.long())
    head = output_embedding(model)
    mean = torch.cat(
        [token_damage(h, head, h, head, t.long())["nll"] for h, t in zip(hidden, windows, strict=True)]
    ).mean()
    with torch.no_grad():
        loss = model(windows.long(), labels=windows.long()).loss
    assert float(mean) == pytest.approx(float(loss), abs=1e-5)


def test_head_is_read_from_the_checkpoint(model, tiny) -> None:
    assert torch.equal(head_of(tiny), output_embedding(model))


def test_choices_against_one_full_pass_each(model, tokenizer) -> None:
    prompt = "Once upon a time there was a little"
    choices = [" girl", " boy who", " x", " happy old dog"]
    rows = choice_rows(0, prompt, choices, tokenizer)
    scores = log_likelihoods(model, rows, pad=0)[0]
    start = len(tokenizer(prompt).input_ids)
    literal = []
    for choice in choices:
        ids = torch.tensor([tokenizer(prompt + choice).input_ids])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        literal.append(sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])))
    assert [a - scores[0] for a in scores] == pytest.approx([b - literal[0] for b in literal], abs=1e-4)


def test_what_all_choices_begin_with_is_read_with_the_prompt(tokenizer) -> None:
    (row,) = choice_rows(7, "Once upon a", [" time a", " time s"], tokenizer)
    item, read, endings = row
    assert item == 7
    assert [len(ending) for ending in endings] == [1, 1]
    assert tokenizer.decode(read[1:]).endswith("time")


def test_a_choice_must_not_change_the_prompts_tokens(tokenizer) -> None:
    with pytest.raises(ValueError, match="melts into the prompt"):
        choice_rows(0, "Once upon a ti", ["me", "de"], tokenizer)


def test_answers_of_a_task(model, tokenizer, tmp_path) -> None:
    items = [
        {
            "item": 0,
            "prompt": "Once upon a time, there was a little",
            "choices": [" girl", " of"],
            "answer": 0,
        },
        {"item": 1, "prompt": "Once upon a", "choices": [" the", " time"], "answer": 1},
        {"item": 2, "prompt": "Once upon a", "choices": [" the", " time"], "answer": 0},
    ]
    pd.DataFrame(items).to_parquet(tmp_path / "items.parquet")
    found = answers(model, tokenizer, tmp_path)
    assert list(found.correct) == [True, True, False]
    assert (found.margin > 0).equals(found.correct)


def test_windows_are_spread_evenly_and_do_not_overlap() -> None:
    tokens = torch.arange(103, dtype=torch.int32)
    every = cut_windows(tokens, 10, "all", None)
    assert every.shape == (10, 10)
    assert torch.equal(every.flatten(), tokens[:100])
    some = cut_windows(tokens, 10, 5, None)
    assert some[:, 0].tolist() == [0, 20, 40, 60, 80]
    with_bos = cut_windows(tokens, 11, 5, 999)
    assert with_bos[:, 0].tolist() == [999] * 5
    assert with_bos[:, 1].tolist() == [0, 20, 40, 60, 80]
    with pytest.raises(ValueError, match="103 tokens make 10 windows of 10, not 11"):
        cut_windows(tokens, 10, 11, None)


def test_protocols_differ_with_everything_a_perplexity_depends_on() -> None:
    kinds = {
        protocol(256, 16, 300, None, "\n\n"),
        protocol(128, 16, 300, None, "\n\n"),
        protocol(256, 8, 300, None, "\n\n"),
        protocol(256, 16, 300, 1, "\n\n"),
        protocol(256, 16, 300, None, " "),
    }
    assert len(kinds) == 5
