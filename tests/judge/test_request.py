"""A judgement is a study whose params.yaml is valid, and what can't be read is one line about the argument."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hemorrhage.judge import request
from hemorrhage.runtime.command import CommandError
from hemorrhage.study import params as config

COMMIT = "0123456789" * 4


def test_the_study_of_a_judgement_is_valid(tiny: Path, tmp_path: Path) -> None:
    asked = request.Request(
        str(tiny), [str(tiny), f"org/x-AWQ@{COMMIT}"], {"kl": 0.05}, windows=8, engines=["transformers"]
    )
    YAML().dump(asked.content(), tmp_path / "params.yaml")
    params = config.read(tmp_path / "params.yaml")
    assert list(config.variants(params)) == [f"file-{tiny.name.lower()}", "file-x-awq"]
    assert params.evaluate.windows == 8
    assert (params.evaluate.engines.names, params.evaluate.engines.variants) == (["transformers"], "all")
    assert params.analyze.budget.model_dump(exclude_none=True) == {"kl": 0.05}


def test_files_of_one_name_are_sweeps_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "model").mkdir(parents=True)
    made = request.sweeps([str(tmp_path / "a/model"), str(tmp_path / "b/model")])
    assert list(made) == ["file_1", "file_2"]


SERVER = {"openai": "http://127.0.0.1:8000", "model": "served"}


def test_a_server_has_a_file(tiny: Path, tmp_path: Path) -> None:
    """By the name that it was given or its own; the only one where none is named."""
    for folder in ("a", "b"):
        (tmp_path / folder / "Model").mkdir(parents=True)
    files = [str(tmp_path / "a/Model"), str(tmp_path / "b/Model"), f"org/x-AWQ@{COMMIT}"]
    assert request.variants(files) == ["file_1-model", "file_2-model", "file_3-x-awq"]
    for named, variant in ((files[1], "file_2-model"), ("x-AWQ", "file_3-x-awq"), ("base", "base")):
        assert request.served({**SERVER, "variant": named}, files) == {**SERVER, "variant": variant}
    assert request.served(SERVER, files[:1])["variant"] == "file-model"
    with pytest.raises(CommandError, match=r"--engine: the server does not say which FILE it has: variant: base or"):
        request.served(SERVER, files)
    with pytest.raises(CommandError, match="--engine: the server has 'other', which is no FILE that is read"):
        request.served({**SERVER, "variant": "other"}, files)
    asked = request.Request(str(tiny), [str(tiny)], windows=8, engines=["transformers", SERVER])
    YAML().dump(asked.content(), tmp_path / "params.yaml")
    params = config.read(tmp_path / "params.yaml")
    (server,) = params.evaluate.engines.servers
    assert (server.label, server.variant) == ("served", *config.variants(params))


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("no/where", "BASE: no/where is neither on this machine nor org/name@commit with all 40 digits of the commit"),
        ("org/name@main", "BASE: org/name@main is neither on this machine"),
        ("./missing.gguf", "BASE: ./missing.gguf is missing"),
        (f"org/name@{COMMIT}:x.gguf", "names a file; a base is a repository or a folder"),
    ],
)
def test_a_base_that_is_none_is_one_line(base: str, line: str) -> None:
    with pytest.raises(CommandError) as raised:
        request.model(base)
    assert line in str(raised.value)


def test_a_file_of_the_hub_is_named_with_its_commit() -> None:
    assert request.published(f"org/name@{COMMIT}:a/x.gguf") == {
        "id": "org/name",
        "revision": COMMIT,
        "file": "a/x.gguf",
    }
    assert request.model(f"org/name@{COMMIT}") == {"source": "hub", "id": "org/name", "revision": COMMIT}


def test_texts_of_the_user_take_the_place_of_the_corpora(tiny: Path, tmp_path: Path) -> None:
    for name in ("Support chats.jsonl", "prose.jsonl"):
        (tmp_path / name).write_text('{"text": "one two three"}\n')
    texts = [str(tmp_path / name) for name in ("Support chats.jsonl", "prose.jsonl")]
    asked = request.Request(str(tiny), [str(tiny)], texts=texts, score="all", window=8)
    YAML().dump(asked.content(), tmp_path / "params.yaml")
    params = config.read(tmp_path / "params.yaml")
    assert config.corpora(params) == ["prose", "prose_2", "support_chats"]
    assert params.evaluate.windows == "all"
    with pytest.raises(CommandError, match=r"--texts: .*none\.txt is missing"):
        request.corpora([str(tmp_path / "none.txt")], "all")
    with pytest.raises(CommandError, match=r"--texts: \S+ is no file"):
        request.corpora([str(tmp_path)], "all")


def test_a_file_that_can_not_be_read_is_named_and_the_others_are_not(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GG")
    broken, hub = str(tmp_path / "broken.gguf"), f"org/name@{COMMIT}"
    assert request.unreadable([str(tiny), broken, hub]) == {broken: f"{broken} is not a GGUF file"}
    with pytest.raises(CommandError, match=r"FILE: \S+none\.gguf is missing"):
        request.unreadable([str(tmp_path / "none.gguf")])
