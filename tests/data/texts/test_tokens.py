"""The tokenizer of the text step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from hemorrhage.data.texts.tokens import check_count, check_ids, tokenize
from hemorrhage.runtime.artifact import write_manifest
from hemorrhage.runtime.step import InputError


def test_nothing_is_cut_padded_or_added(tiny: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    expected = tokenizer.encode("one two three", add_special_tokens=False).ids
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=99)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokenize(tmp_path, "one two three") == expected


def test_tokens_that_are_missing_or_unknown_are_refused(tiny: Path, tmp_path: Path) -> None:
    check_count("a", "evaluation", 3, {"evaluation": 3, "calibration": 4})
    with pytest.raises(InputError, match=r"^corpus a: calibration has 3 tokens, but 4 are needed$"):
        check_count("a", "calibration", 3, {"evaluation": 3, "calibration": 4})
    shutil.copytree(tiny, tmp_path / "base")
    check_ids("a", tmp_path / "base", 10**6)
    write_manifest(tmp_path / "base", vocabulary=512)
    check_ids("a", tmp_path / "base", 511)
    with pytest.raises(InputError, match=r"^corpus a has the token 512, and the model's embedding has 512 rows$"):
        check_ids("a", tmp_path / "base", 512)
