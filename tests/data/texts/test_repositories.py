"""What a corpus needs, and what its address holds."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from hemorrhage.data.source import Embedded, Hub, Mirror
from hemorrhage.data.texts import mirror
from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.data.texts.repositories import identity, reachable
from hemorrhage.runtime import address
from hemorrhage.runtime.address import program
from tests.corpora import write_mirror

EMBEDDED = Embedded(source="embedded")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_unreachable_texts_are_one_line_that_says_what_is_missing(tmp_path: Path) -> None:
    nowhere = Mirror(source="mirror", path=str(tmp_path / "nowhere"))
    assert reachable("ptb", nowhere) == f"corpus ptb: data.path {tmp_path}/nowhere is not a folder"
    folder = write_mirror(tmp_path / "hf")
    (folder / "openai/gsm8k/main/test-00000-of-00001.parquet").unlink()
    data = Mirror(source="mirror", path=str(folder))
    assert reachable("gsm8k", data) == f"corpus gsm8k: no file openai/gsm8k/main/test-*.parquet in {folder}"
    with pytest.raises(ValueError, match=r"corpus gsm8k: no file openai/gsm8k/main/test-\*\.parquet"):
        mirror.documents("gsm8k", CATALOGUE["gsm8k"], data)
    assert reachable("poems", data) == (
        "corpus 'poems' is in no repository; allowed: wikitext2, ptb, c4, mbpp, gsm8k, wikinews"
    )
    pinned = Hub(source="hub", revisions={"openai/gsm8k": COMMIT})
    assert reachable("gsm8k", pinned) is None
    assert reachable("mbpp", pinned) == (
        "corpus mbpp needs the commit of google-research-datasets/mbpp in data.revisions"
    )
    assert reachable("wikinews", pinned) == "corpus wikinews is not on the hub; data.source mirror can hold it"


def test_identity_is_what_the_files_say_and_not_where_they_lie(tmp_path: Path) -> None:
    memory = tmp_path / "fingerprints.json"
    here, there = (Mirror(source="mirror", path=str(write_mirror(tmp_path / name))) for name in ("a", "b"))
    assert identity("ptb", here, memory) == identity("ptb", there, memory)
    before = {corpus: identity(corpus, here, memory) for corpus in CATALOGUE}
    file = tmp_path / "a/ptb-text-only/ptb_text_only/penn_treebank/test-00000-of-00001.parquet"
    parquet.write_table(pa.table({"sentence": ["changed"]}), file)
    changed = [corpus for corpus in CATALOGUE if identity(corpus, here, memory) != before[corpus]]
    assert changed == ["ptb"]
    pinned = Hub(source="hub", revisions={"openai/gsm8k": COMMIT, "openai/other": COMMIT[::-1]})
    moved = Hub(source="hub", revisions={"openai/gsm8k": COMMIT[::-1], "openai/other": COMMIT})
    other = Hub(source="hub", revisions={"openai/gsm8k": COMMIT, "openai/other": COMMIT})
    assert identity("gsm8k", pinned, memory) == identity("gsm8k", other, memory)
    assert identity("gsm8k", pinned, memory) != identity("gsm8k", moved, memory)
    json.dumps(before)


def test_address_of_a_text_follows_its_reader_and_its_own_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "fingerprints.json"
    here = Mirror(source="mirror", path=str(write_mirror(tmp_path / "hf")))
    before = {corpus: identity(corpus, here, memory) for corpus in CATALOGUE}
    monkeypatch.setitem(CATALOGUE, "c4", dataclasses.replace(CATALOGUE["c4"], join="\n"))
    assert [corpus for corpus in CATALOGUE if identity(corpus, here, memory) != before[corpus]] == ["c4"]
    assert identity("prose", EMBEDDED, memory)["program"] == program("hemorrhage.data.texts.embedded")
    # The step itself names neither the readers nor the catalogue.
    assert (
        address.modules_of("hemorrhage.data.texts.__main__")
        & {f"hemorrhage.data.{name}" for name in ("embedded", "mirror", "hub", "catalogue", "entry")}
        == set()
    )
    assert "hemorrhage.data.texts.entry" in address.modules_of("hemorrhage.data.texts.mirror")
    assert "hemorrhage.data.texts.catalogue" not in address.modules_of("hemorrhage.data.texts.mirror")


def test_what_the_plan_imports_is_light() -> None:
    program = (
        "import json, sys; from hemorrhage.data.texts.repositories import reachable;"
        "reachable('humaneval', {'source': 'embedded'});"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "pandas", "pyarrow", "datasets", "tokenizers", "safetensors"}
    assert not heavy & set(json.loads(ran.stdout))
