"""Prompts made from rows of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemorrhage.decode.answers import flexible_number, plain_number
from hemorrhage.decode.prompts import (
    closed_prompts,
    instruction_prompts,
    open_prompts,
    summary_prompts,
    uses_chat,
    worked_prompts,
)
from hemorrhage.decode.spec import ClosedEnded, OpenEnded
from hemorrhage.models.checkpoint import load_tokenizer

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
    assert [(p.item, p.right, p.worked) for p in prompts] == [(9, "125000", True)]
    assert prompts[0].text == (
        f"Question: {GSM8K[0][0]}\nAnswer: Weng earns 12/60 = $0.2 per minute.\n"
        "So she earned 0.2 x 50 = $10.\n#### 10\n\n"
        "Question: How many bolts are 2 and 1?\nAnswer: It takes 2+1=3 bolts\n#### 3\n\n"
        "Question: How much is a house?\nAnswer:"
    )
    assert prompts[0].tokens == tokenizer(prompts[0].text)["input_ids"]
    assert plain_number(flexible_number(" $125,000 dollars")) == prompts[0].right


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
    spec = ClosedEnded(task="gsm8k", items=5, new_tokens=8, shots=4)
    prompts = closed_prompts(tmp_path, tokenizer, spec, seed=3)
    assert [p.item for p in prompts] == sorted({p.item for p in prompts})
    assert len(prompts) == 5
    assert {p.text.count("Question: ") for p in prompts} == {5}
    assert prompts == closed_prompts(tmp_path, tokenizer, spec, seed=3)
    assert prompts != closed_prompts(tmp_path, tokenizer, spec, seed=4)
    assert "Question: " not in closed_prompts(tmp_path, chatting, spec, seed=3, chat=True)[0].text
    assert "Question: " in closed_prompts(tmp_path, chatting, spec, seed=3, chat=False)[0].text
    with pytest.raises(ValueError, match=r"closed_ended\.shots: 20 wanted, the task at .* has 12"):
        closed_prompts(tmp_path, tokenizer, ClosedEnded(task="gsm8k", items=5, new_tokens=8, shots=20), seed=3)


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
    found = open_prompts(
        tmp_path, chatting, OpenEnded(task="xsum", items=2, prefix=20, new_tokens=5), seed=0, chat=True
    )
    assert [p.text.endswith("Summary:") for p in found] == [False, False]
    with pytest.raises(ValueError, match=r"open_ended\.items: 3 wanted"):
        open_prompts(tmp_path, chatting, OpenEnded(task="xsum", items=3, prefix=20, new_tokens=5), seed=0)


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
