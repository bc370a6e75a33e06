"""What tokenizer.json says of cutting, padding and ending is switched off; what it says of beginning holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.data.texts.tokens import tokenize
from hemorrhage.evaluate.choices import choice_rows
from hemorrhage.models.checkpoint import load_tokenizer
from hemorrhage.models.tokenizer import leading, without_end

Content = dict[str, Any]
TEXT = "Once upon a time, there was a little girl. " * 40


def changed(tiny: Path, out: Path, change: Callable[[Content], None]) -> Path:
    """``tiny``'s tokenizer, changed."""
    out.mkdir()
    content = json.loads((tiny / "tokenizer.json").read_text())
    change(content)
    (out / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(tiny / "tokenizer_config.json", out)
    return out


def truncating(content: Content) -> None:
    content["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}


def padding(content: Content) -> None:
    content["padding"] = {
        "strategy": {"Fixed": 4096}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
        "pad_token": "</s>",
    }  # fmt: skip


def ending(content: Content) -> None:
    processor = content["post_processor"]
    processor["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    processor["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}


def ending_in_a_sequence(content: Content) -> None:
    ending(content)
    content["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            content["post_processor"],
        ],
    }


def as_of_roberta(content: Content) -> None:
    content["post_processor"] = {
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True,
        "add_prefix_space": True,
    }  # fmt: skip


@pytest.mark.parametrize("change", [truncating, padding, ending, ending_in_a_sequence, as_of_roberta])
def test_all_of_a_text_and_nothing_behind_it(tiny: Path, tmp_path: Path, change: Callable[[Content], None]) -> None:
    folder = changed(tiny, tmp_path / "model", change)
    expected = load_tokenizer(tiny)(TEXT).input_ids
    tokenizer = load_tokenizer(folder)
    assert tokenizer(TEXT).input_ids == expected
    assert tokenizer([TEXT, "a"]).input_ids[0] == expected
    assert leading(tokenizer) == [1]
    assert tokenize(folder, TEXT) == expected[1:]


def test_a_tokenizer_that_ends_texts_answers_tasks_as_another_does(tiny: Path, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path / "model", ending)
    asked = (0, "The girl was", [" happy", " very sad"])
    assert choice_rows(*asked, load_tokenizer(folder)) == choice_rows(*asked, load_tokenizer(tiny))


def test_nothing_in_front_and_several_tokens_in_front(tiny: Path, tmp_path: Path) -> None:
    nothing = changed(tiny, tmp_path / "nothing", lambda content: content.update(post_processor=None))
    assert leading(load_tokenizer(nothing)) == []

    def twice(content: Content) -> None:
        ending(content)
        content["post_processor"]["single"].insert(1, content["post_processor"]["single"].pop())

    assert leading(load_tokenizer(changed(tiny, tmp_path / "several", twice))) == [1, 2]


def test_other_processors_stay_as_they_are() -> None:
    processor = {"type": "ByteLevel", "trim_offsets": False}
    assert without_end(processor) == processor
