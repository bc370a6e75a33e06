"""A user's questions and problems through the steps: scored as they are written, paired with the base's answers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from hemorrhage.data.benchmarks import own_programs
from hemorrhage.data.tasks import own
from hemorrhage.evaluate import code_tasks
from hemorrhage.evaluate.__main__ import evaluate
from hemorrhage.evaluate.code_tasks_schema import PROGRAMS
from hemorrhage.evaluate.reference import Spec, reference
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.reload import write_check
from hemorrhage.runtime.artifact import read_manifest, write_manifest
from hemorrhage.sandbox import runner as sandbox
from tests.chats import write_jsonl
from tests.evaluate.texts import stream_of

needs_sandbox = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))

CHOICES = ["big", "sad", "happy and red"]
QUESTIONS = [
    {"prompt": f"Once upon a time there was a {thing}. It was very", "choices": CHOICES[:count], "answer": 0}
    for thing in ("cat", "dog", "tree", "house")
    for count in (2, 3)
]
SPEC: Spec = {"dtype": "float32", "window": 32, "windows": 2, "diagnostics": {"windows": 0, "window": 32}}


@pytest.fixture(scope="module")
def root(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a damaged checkpoint, the user's task, and the evaluation of the checkpoint."""
    root = tmp_path_factory.mktemp("own")
    shutil.copytree(tiny, root / "base")
    write_manifest(root / "base", leading=[1])
    (root / "prose").mkdir()
    stream = stream_of("agreement", load_tokenizer(tiny))
    save_file({"evaluation": stream}, root / "prose" / "tokens.safetensors")
    write_manifest(root / "prose", corpus="prose", sha256="ab", join="")
    own.prepare("mine", write_jsonl(root / "mine.jsonl", QUESTIONS), None, 0, 0, root / "mine" / "address")
    damaged = load(root / "base")
    with torch.no_grad():
        for layer in damaged.model.layers:
            layer.mlp.down_proj.weight *= -1
    damaged.save_pretrained(root / "checkpoint")
    write_check(damaged, root / "checkpoint", seed=0)
    write_manifest(root / "checkpoint", variant="v", theoretical="not timed")
    tasks = [root / "mine" / "address"]
    reference(root / "reference", root / "base", [root / "prose"], tasks, SPEC)
    evaluate(root / "evaluation", "v", root / "checkpoint", root / "base", root / "reference", tasks)
    return root


def literal(folder: Path, base: Path) -> list[int]:
    """The choice with the highest likelihood of each question, by a pass over each whole text."""
    model, tokenizer = load(folder, base=base), load_tokenizer(base)
    chosen = []
    for question in QUESTIONS:
        scores = []
        start = len(tokenizer(str(question["prompt"])).input_ids)
        for choice in question["choices"]:  # type: ignore[attr-defined]
            ids = torch.tensor([tokenizer(f"{question['prompt']} {choice}").input_ids])
            with torch.no_grad():
                log_p = model(ids).logits[0].log_softmax(-1)
            scores.append(sum(float(log_p[place - 1, ids[0, place]]) for place in range(start, ids.shape[1])))
        chosen.append(max(range(len(scores)), key=scores.__getitem__))
    return chosen


def test_answers_are_those_of_the_models_own_logits_and_paired_with_the_bases(root: Path) -> None:
    items = pd.read_parquet(root / "evaluation" / "items.parquet").sort_values("item")
    assert items["task"].unique().tolist() == ["mine"]
    assert items["choice"].tolist() == literal(root / "checkpoint", root / "base")
    assert items["base_choice"].tolist() == literal(root / "base", root / "base")
    assert (items["correct"] == (items["choice"] == 0)).all()
    stated = read_manifest(root / "reference")["tasks"]["mine"]
    # Four questions of two choices and four of three.
    assert stated["chance"] == pytest.approx((4 / 2 + 4 / 3) / 8)
    assert "items=8" in stated["protocol"]


@needs_sandbox
def test_a_checker_reads_what_the_model_wrote(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [
        {"prompt": "Once upon a time", "checker": "assert len(answer) > 3"},
        {"prompt": "Once upon a time", "checker": "assert answer.isdecimal()"},
    ]
    benchmark = root / "checked" / "address"
    own_programs.prepare("checked", write_jsonl(root / "checked.jsonl", problems), [], benchmark)
    spec = {
        "tasks": ["checked"],
        "items": "all",
        "new_tokens": 8,
        "seconds": 5,
        "memory_mb": 256,
        "batch": 2,
        "seed": 0,
    }
    options = ["--variant", "base", "--checkpoint", root / "base", "--base", root / "base", "--benchmarks", benchmark]
    monkeypatch.setattr(
        sys, "argv", ["code_tasks", *map(str, [root / "programs", *options]), "--spec", json.dumps(spec)]
    )
    code_tasks.main()
    programs = PROGRAMS.validate(pd.read_parquet(root / "programs" / "programs.parquet"))
    assert programs["completion"].nunique() == 1
    assert programs["status"].tolist() == ["passed", "failed"]
