"""The losses of tuning beside the papers' formulas, and tuned models that are models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from tokenizers import Tokenizer

from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.sources.path import refusal
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.train import loop, state
from hemorrhage.train import tuning as module
from hemorrhage.train.__main__ import raise_model, tune_model
from hemorrhage.train.instructions import Example, examples
from hemorrhage.train.spec import TunedSpec
from hemorrhage.train.tuning import Answers, Batches, Preferences, encode, preference_loss
from tests.train.made import spec


def tuned(kind: str, **changes: Any) -> TunedSpec:
    made = {**spec(batch=8, seed=5), "tune": {"kind": kind, "examples": 60, "epochs": 2, "beta": 0.5}, **changes}
    return {key: made[key] for key in TunedSpec.__annotations__}  # type: ignore[return-value]


@pytest.fixture(scope="module")
def parent(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on text; its context holds a conversation of single bytes."""
    out = tmp_path_factory.mktemp("parent") / "model"
    wide = {**spec()["architecture"], "max_position_embeddings": 256}
    raise_model(tokens, spec(architecture=wide, tokens=4 * 4 * 32), out)
    return out


def loaded(folder: Path) -> Any:
    return load(folder, "float32")


def made(parent: Path) -> tuple[Any, Batches]:
    tokenizer = Tokenizer.from_file(str(parent / "tokenizer.json"))
    learned, held_out = examples(10, 0)
    return loaded(parent), Batches.of_examples(tokenizer, learned, held_out or learned[:3], 4, 2, 0)


def literal(model: Any, ids: tuple[int, ...], begin: int) -> float:
    """Sum of ln p(y_t | x, y_<t) over an answer, one conversation at a time and without padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    logs = logits - logits.exp().sum(-1, keepdim=True).log()
    return sum(float(logs[place - 1, ids[place]]) for place in range(begin, len(ids)))


def test_a_conversation_is_what_its_template_writes(parent: Path) -> None:
    tokenizer = Tokenizer.from_file(str(parent / "tokenizer.json"))
    made = encode(tokenizer, "Repeat: cup", "cup")
    messages = [{"role": "user", "content": "Repeat: cup"}, {"role": "assistant", "content": "cup"}]
    template = jinja2.Template(module.TEMPLATE)
    whole = template.render(messages=messages)
    assert tokenizer.decode(list(made.ids), skip_special_tokens=False) + "\n" == whole
    asked = template.render(messages=messages[:1], add_generation_prompt=True)
    assert tokenizer.decode(list(made.ids[: made.begin]), skip_special_tokens=False) == asked


def test_answers_alone_are_learned_each_token_alike(parent: Path) -> None:
    model, batches = made(parent)
    pairs = batches.of(1)
    expected = -sum(literal(model, chosen.ids, chosen.begin) for chosen, _ in pairs)
    assert Answers(batches, False).backward(model, 1) == pytest.approx(
        expected / sum(chosen.answer for chosen, _ in pairs), rel=1e-5
    )


def test_the_loss_of_a_pair_is_dpos() -> None:
    # -ln sigma(beta (ln pi(w) - ln ref(w)) - beta (ln pi(l) - ln ref(l))), arXiv 2305.18290, equation 7.
    won, lost, ref_won, ref_lost, beta = -3.0, -5.0, -4.0, -4.5, 0.3
    margin = beta * (won - ref_won) - beta * (lost - ref_lost)
    expected = -math.log(1 / (1 + math.exp(-margin)))
    loss = preference_loss(torch.tensor([won]), torch.tensor([lost]), torch.tensor([ref_won - ref_lost]), beta)
    assert loss.item() == pytest.approx(expected)


def test_the_reference_is_the_model_as_it_was(parent: Path) -> None:
    model, batches = made(parent)
    objective = Preferences(batches, model, 0.5, False)
    chosen, rejected = pair = batches.of(0)[0]
    reference = literal(model, chosen.ids, chosen.begin) - literal(model, rejected.ids, rejected.begin)
    assert objective.reference[pair] == pytest.approx(reference, rel=1e-4)
    assert objective.heldout(model) == pytest.approx(math.log(2), rel=1e-4)
    assert objective.backward(model, 0) == pytest.approx(math.log(2), rel=1e-4)


def test_each_pair_comes_once_in_a_round(parent: Path) -> None:
    _, batches = made(parent)
    assert batches.steps == 5
    seen = [pair for step in range(5) for pair in batches.of(step)]
    assert sorted(map(hash, seen)) == sorted(map(hash, [*batches.pairs, *batches.pairs]))
    objective = Answers(batches, False)
    assert objective.tokens(5) == 2 * sum(chosen.answer for chosen, _ in batches.pairs)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_tuned_model_is_a_model_killed_or_not(
    kind: str, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tune_model(parent, tuned(kind), whole)
    assert refusal(whole) is None
    model, tokenizer = loaded(whole), load_tokenizer(whole)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == model.generation_config.eos_token_id == 2
    assert "assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    )
    manifest = read_manifest(whole)
    assert manifest["steps"] == 15
    assert manifest["heldout_loss"] < (math.log(288) if kind == "sft" else math.log(2))
    update, left = loop._update, iter(range(7))

    def until_killed(*arguments: Any) -> tuple[float, float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(state, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "_update", until_killed)
    with pytest.raises(KeyboardInterrupt):
        tune_model(parent, tuned(kind), broken)
    monkeypatch.setattr(loop, "_update", update)
    tune_model(parent, tuned(kind), broken)
    for name in ("model.safetensors", "curve.parquet"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_an_answer_is_preferred_after_it_was_learned(parent: Path) -> None:
    model = loaded(parent)
    tokenizer = Tokenizer.from_file(str(parent / "tokenizer.json"))
    one = [Example("Repeat: cup", "cup", "hat")]
    objective = Preferences(Batches.of_examples(tokenizer, one, one, 1, 20, 0), model, 0.5, False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(20):
        objective.backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    assert objective.heldout(model) < 0.5 * math.log(2)
