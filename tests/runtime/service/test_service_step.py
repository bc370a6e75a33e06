"""A pipeline through the service writes the bytes that its steps write by themselves."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hemorrhage.runtime.service import server
from tests.runtime.service.running import SOURCE, command, environment

CHAIN = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, words
"""


def steps(root: Path, tiny: Path) -> list[list[str]]:
    """A small pipeline in ``root``, whose texts are there: the words of each step."""
    base, task, out = root / "base" / "x", root / "tasks" / "x", root / "evaluations" / "x"
    altered, reference = root / "checkpoints" / "x", root / "references" / "x"
    rtn = {"sweep": "rtn", "method": "rtn", "seed": 0, "settings": {"bits": 3, "group_size": 4}}
    windows = {"dtype": "float32", "window": 32, "windows": 4, "diagnostics": {"windows": 3, "window": 24}}
    return [
        ["hemorrhage.models", str(base), "--spec", json.dumps({"source": "path", "path": str(tiny)})],
        ["hemorrhage.data.tasks.probes", str(task), "--task", "agreement", "--items", "8", "--seed", "0"],
        ["hemorrhage.compress", str(altered), "--variant", "rtn-3", "--base", str(base), "--spec", json.dumps(rtn)],
        ["hemorrhage.evaluate.reference", str(reference), "--base", str(base), "--texts", str(root / "texts" / "x"),
         "--tasks", str(task), "--spec", json.dumps(windows)],
        ["hemorrhage.evaluate", str(out), "--variant", "rtn-3", "--checkpoint", str(altered), "--base", str(base),
         "--reference", str(reference), "--tasks", str(task), "--spec", json.dumps({"ablate": False})],
    ]  # fmt: skip


def test_results_are_the_same_bytes(folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    for root in (Path("served"), Path("direct")):
        text = root / "texts" / "x"
        text.mkdir(parents=True)
        tokens = torch.randint(3, 500, (2000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
        save_file({"evaluation": tokens}, text / "tokens.safetensors")
        facts = {"corpus": "prose", "sha256": "0", "join": "\n\n"}
        (text / "manifest.json").write_text(json.dumps(facts))
    Path("chain.py").write_text(CHAIN)
    words = command("--direct", "direct.tsv", "chain", json.dumps(steps(Path("direct"), tiny)))
    with (
        server.start(SOURCE, Path("service.log")) as process,
        subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE) as direct,
    ):
        for arguments in steps(Path("served"), tiny):
            done = subprocess.run(command("usage.tsv", *arguments), env=environment(), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert process.stdin is not None
        process.stdin.close()
        _, stderr = direct.communicate()
        assert direct.returncode == 0, stderr
    assert "refused" not in Path("service.log").read_text()
    files = sorted(file.relative_to("served") for file in Path("served").rglob("*") if file.is_file())
    assert files == sorted(file.relative_to("direct") for file in Path("direct").rglob("*") if file.is_file())
    assert Path("evaluations/x/tokens.parquet") in files
    for file in files:
        if file.name != "cost.json":
            served, alone = (root / file for root in (Path("served"), Path("direct")))
            served_bytes = _without_times(served.read_bytes().replace(b"served/", b"direct/"))
            assert served_bytes == _without_times(alone.read_bytes()), file


def _without_times(content: bytes) -> bytes:
    """A manifest without the checksum of the file of measured times."""
    return re.sub(rb'"cost.json": "[0-9a-f]+"', b"", content)
