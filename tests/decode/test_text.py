"""Prompts made from rows of data sets, answers extracted from texts, and measures of texts."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.decode.answers import extract, final_number, is_right
from hemorrhage.decode.degeneration import distinct_n, loop_period, loop_rate, rep_n, token_entropy
from hemorrhage.decode.frontier import frontier_area, histograms, kl, mauve, principal
from hemorrhage.decode.prompts import (
    closed_prompts,
    instruction_prompts,
    open_prompts,
    summary_prompts,
    uses_chat,
    worked_prompts,
)
from hemorrhage.decode.spec import Closed, Open
from hemorrhage.models.checkpoint import load_tokenizer


@pytest.mark.parametrize(
    ("text", "right", "answer", "correct"),
    [
        (" 19.\n3 + 4 = 7", "19", "19", True),
        (" is 19.0 in all", "19", "19.0", True),
        (" 1,900 and 3", "1900", "1,900", True),
        (" 19, 20", "19", "19", True),
        (" 190", "19", "190", False),
        (" 1234,567", "1234", "1234", True),
        (" -3", "-3", "-3", True),
        (" −3", "-3", "−3", True),
        (" 3", "-3", "3", False),
        (" nineteen", "19", "", False),
        ("", "19", "", False),
        (" Paris, the capital", "paris", "Paris", True),
        ("\n\n- are not", "are", "are", True),
        (" don't go", "don't", "don't", True),
        (" is", "are", "is", False),
        (" New York. It", "New York", "New York", True),
        (" New", "New York", "", False),
        ("...", "are", "", False),
        (" 7th", "red", "7th", False),
    ],
)
def test_answers(text: str, right: str, answer: str, correct: bool) -> None:
    assert extract(text, right) == answer
    assert is_right(answer, right) is correct


def test_repetition_is_what_counting_gives() -> None:
    generator = random.Random(0)
    for _ in range(50):
        tokens = [generator.randrange(4) for _ in range(generator.randrange(30))]
        for n in (1, 2, 3, 4):
            seen: list[list[int]] = []
            total = 0
            for start in range(len(tokens)):
                gram = tokens[start : start + n]
                if len(gram) == n:
                    total += 1
                    if gram not in seen:
                        seen.append(gram)
            assert distinct_n(tokens, n) == pytest.approx(len(seen) / total if total else 1)
            assert rep_n(tokens, n) == pytest.approx(1 - len(seen) / total if total else 0)
    with pytest.raises(ValueError, match="at least 1"):
        rep_n([1, 2], 0)


@pytest.mark.parametrize(
    ("tokens", "period"),
    [
        ([9, 8, 7] + [1] * 8, 1),
        ([9, 8, 7] + [1] * 7, 0),
        ([5] + [1, 2, 3] * 3, 3),
        ([5] + [1, 2, 3] * 3 + [1, 2], 3),
        ([5] + [1, 2, 3] * 2 + [1, 2], 0),
        ([1, 2, 3] * 3 + [4], 0),
        (list(range(40)), 0),
        ([1, 1, 2] * 6, 3),
        ([], 0),
    ],
)
def test_loops(tokens: list[int], period: int) -> None:
    assert loop_period(tokens) == period
    assert loop_rate([tokens, [1] * 20]) == (0.5 if period == 0 else 1.0)


@pytest.mark.parametrize(
    ("text", "right", "answer", "correct"),
    [
        (" 3+4=7 dogs\n#### 7", "7", "7", True),
        ("\n#### $2,125\n\nQuestion: What is 1+1?\nAnswer: 2\n#### 2", "2125", "2,125", True),
        (" She has 5 apples and 18 dollars.", "18", "18", True),
        (" That makes $1,450,000.", "1450000", "1,450,000", True),
        (" It costs $18.50 in all", "18.5", "18.50", True),
        (" 60% of it", "60", "60", True),
        (" so 16-3=13, and 13-10", "10", "10", True),
        (" the change is -10", "-10", "-10", True),
        (" 7 so far\n#### 8 miles, not 9", "8", "8", True),
        (" Answer is 4.\n\nQuestion: Tom has 9 dogs.", "4", "4", True),
        ("Question: 5", "5", "", False),
        (" many", "5", "", False),
        (" 12.", "12", "12", True),
        ("####", "12", "", False),
    ],
)
def test_the_number_a_solution_arrives_at(text: str, right: str, answer: str, correct: bool) -> None:
    assert final_number(text) == answer
    assert is_right(answer, right) is correct


# Rows in the hub's columns.
GSM8K = [
    (
        "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes. How much did she earn?",
        "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nSo she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    ),
    ("How many bolts are 2 and 1?", "It takes 2+1=<<2+1=3>>3 bolts\n#### 3"),
    ("How much is a house?", "It is worth $<<80000+45000=125000>>125,000.\n#### 125,000"),
]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture
def chatting(tiny: Path) -> Any:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_examples_stand_before_a_question_without_their_calculations(tokenizer: Any) -> None:
    rows = pd.DataFrame(GSM8K, columns=["question", "answer"]).assign(item=[7, 8, 9])
    prompts = worked_prompts(rows[2:], rows[:2], tokenizer, chat=False)
    assert [(p.item, p.right, p.worked) for p in prompts] == [(9, "125,000", True)]
    assert prompts[0].text == (
        f"Question: {GSM8K[0][0]}\nAnswer: Weng earns 12/60 = $0.2 per minute.\n"
        "So she earned 0.2 x 50 = $10.\n#### 10\n\n"
        "Question: How many bolts are 2 and 1?\nAnswer: It takes 2+1=3 bolts\n#### 3\n\n"
        "Question: How much is a house?\nAnswer:"
    )
    assert prompts[0].tokens == tokenizer(prompts[0].text)["input_ids"]
    assert is_right(final_number(" 125000 dollars"), str(prompts[0].right))


def test_a_chat_model_is_asked_by_its_template(chatting: Any) -> None:
    rows = pd.DataFrame(GSM8K, columns=["question", "answer"]).assign(item=[0, 1, 2])
    prompt = worked_prompts(rows, rows[:0], chatting, chat=True)[1]
    assert prompt.text.startswith("How many bolts are 2 and 1?\nThink step by step.")
    expected = chatting(f"<s>user: {prompt.text}\nassistant:", add_special_tokens=False)["input_ids"]
    assert prompt.tokens == expected
    assert prompt.tokens.count(chatting.bos_token_id) == 1


def test_items_and_shots_of_gsm8k_are_drawn(tokenizer: Any, chatting: Any, tmp_path: Path) -> None:
    rows = pd.DataFrame(GSM8K * 4, columns=["question", "answer"])
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "gsm8k" / f"{split}.parquet")
    spec = Closed(task="gsm8k", items=5, new_tokens=8, shots=4)
    prompts = closed_prompts(tmp_path, tokenizer, spec, seed=3)
    assert [p.item for p in prompts] == sorted({p.item for p in prompts})
    assert len(prompts) == 5
    assert {p.text.count("Question: ") for p in prompts} == {5}
    assert prompts == closed_prompts(tmp_path, tokenizer, spec, seed=3)
    assert prompts != closed_prompts(tmp_path, tokenizer, spec, seed=4)
    assert "Question: " not in closed_prompts(tmp_path, chatting, spec, seed=3, chat=True)[0].text
    assert "Question: " in closed_prompts(tmp_path, chatting, spec, seed=3, chat=False)[0].text
    with pytest.raises(ValueError, match=r"closed\.shots: 20 wanted, the task at .* has 12"):
        closed_prompts(tmp_path, tokenizer, Closed(task="gsm8k", items=5, new_tokens=8, shots=20), seed=3)


def test_articles_are_cut_and_their_summaries_kept(tokenizer: Any, chatting: Any, tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "item": [4, 5],
            "document": ["The dog ran home. " * 30, "A cat."],
            "summary": ["A dog ran.", "Cat."],
            "id": "1",
        }
    )
    long, short = summary_prompts(rows, tokenizer, 20, chat=False)
    assert short.text == "Summarize the article in one sentence.\n\nArticle: A cat.\n\nSummary:"
    article = long.text.removeprefix("Summarize the article in one sentence.\n\nArticle: ").removesuffix("\n\nSummary:")
    assert rows.document[0].startswith(article)
    assert len(tokenizer(article, add_special_tokens=False)["input_ids"]) == 20
    assert tokenizer.decode(long.human).strip() == "A dog ran."
    assert long.right is None
    rows.to_parquet(tmp_path / "items.parquet")
    found = open_prompts(tmp_path, chatting, Open(task="xsum", items=2, prefix=20, new_tokens=5), seed=0, chat=True)
    assert [p.text.endswith("Summary:") for p in found] == [False, False]
    with pytest.raises(ValueError, match=r"open\.items: 3 wanted"):
        open_prompts(tmp_path, chatting, Open(task="xsum", items=3, prefix=20, new_tokens=5), seed=0)


def test_the_first_turn_of_an_instruction_counts(tokenizer: Any, chatting: Any) -> None:
    rows = pd.DataFrame(
        {
            "item": [0, 1],
            "prompt": [["Write a story.", "Shorter."], ["What is 1 + 1?", "Why?"]],
            "reference": [[], ["It is 2.", "Because."]],
        }
    )
    first, second = instruction_prompts(rows, tokenizer, chat=False)
    assert (first.text, first.human) == ("Question: Write a story.\nAnswer:", None)
    assert tokenizer.decode(second.human).strip() == "It is 2."
    assert instruction_prompts(rows, chatting, chat=True)[0].text == "Write a story."


def test_the_chat_template_is_used_where_it_is(tokenizer: Any, chatting: Any) -> None:
    assert uses_chat(chatting, None)
    assert not uses_chat(chatting, False)
    assert not uses_chat(tokenizer, None)
    with pytest.raises(ValueError, match="no chat template"):
        uses_chat(tokenizer, True)


def test_the_entropy_of_tokens_is_that_of_their_shares() -> None:
    assert token_entropy([[1, 2], [3, 4]]) == pytest.approx(math.log(4))
    assert token_entropy([[1, 1, 1], [1]]) == 0
    assert token_entropy([[1, 1, 2], []]) == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert math.isnan(token_entropy([[]]))


def area_reference(p: list[float], q: list[float], scale: float, points: int) -> float:
    """Point by point; the frontier's area by adding up trapezoids along either axis."""
    frontier = [(1.0, 0.0)]
    for i in range(points):
        w = 1e-6 + i / (points - 1) * (1 - 2e-6)
        r = [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]
        x, y = (sum(a * math.log(a / c) for a, c in zip(side, r, strict=True) if a) for side in (q, p))
        frontier.append((math.exp(-scale * x), math.exp(-scale * y)))
    frontier.append((0.0, 1.0))
    total = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(frontier):
        total += (x0 - x1) * (y0 + y1) / 2 + (y1 - y0) * (x0 + x1) / 2
    return total / 2


def test_the_frontier_is_the_literal_one() -> None:
    generator = np.random.default_rng(0)
    for scale in (1.0, 5.0):
        p, q = generator.dirichlet(np.ones(6), size=2)
        p[0] = 0
        p /= p.sum()
        assert frontier_area(p, q, scale) == pytest.approx(area_reference(p.tolist(), q.tolist(), scale, 25), abs=1e-9)
        assert frontier_area(p, q, scale) == pytest.approx(frontier_area(q, p, scale))
    assert frontier_area(p, p) == pytest.approx(1)
    assert frontier_area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) < 0.03
    assert kl(p, p) == 0


def test_mauve_falls_as_texts_go_apart() -> None:
    generator = np.random.default_rng(1)
    width, texts = 16, 200
    human = generator.normal(size=(texts, width)) + 3
    scores = []
    for shift in (0.0, 0.7, 3.0):
        other = generator.normal(size=(texts, width)) + 3
        other[:, : width // 2] -= shift
        scores.append(mauve(other.astype(np.float32), human.astype(np.float32), seed=0))
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.9
    assert scores[2] < 0.1
    assert mauve(human, human, seed=0) == pytest.approx(1)
    assert mauve(human[:30], human[30:70], seed=0) == mauve(human[:30], human[30:70], seed=0)


def test_features_are_quantized_together() -> None:
    generator = np.random.default_rng(2)
    centres = np.array([[5.0, 0, 0], [0, 5, 0]])
    first = np.concatenate(
        [centres[0] + 0.1 * generator.normal(size=(15, 3)), centres[1] + 0.1 * generator.normal(size=(5, 3))]
    )
    second = centres[1] + 0.1 * generator.normal(size=(20, 3))
    p, q = histograms(first, second, seed=0)
    assert sorted(p.tolist()) == [0.25, 0.75]
    assert sorted(q.tolist()) == [0, 1]
    assert p[int(q.argmax())] == 0.25
    scores = principal(first)
    whole = ((first - first.mean(0)) ** 2).sum()
    assert (scores**2).sum() >= 0.9 * whole
    assert (scores[:, :-1] ** 2).sum() < 0.9 * whole
    same = np.ones((4, 3))
    assert mauve(same, same, seed=0) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 2"):
        histograms(first[:1], second, seed=0)
    with pytest.raises(ValueError, match="of one width"):
        histograms(first[:, :2], second, seed=0)
    with pytest.raises(ValueError, match="finite"):
        histograms(first * np.nan, second, seed=0)
