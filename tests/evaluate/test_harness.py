"""The harness step: lm-eval's own scores from prepared data, without a network."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import lm_eval.tasks
import pandas as pd
import pyarrow as pa
import pytest
import torch
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.filters.extraction import RegexFilter
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from pyarrow import parquet

from hemorrhage.data.benchmarks import harness as benchmarks
from hemorrhage.data.benchmarks.catalogue import BENCHMARKS
from hemorrhage.data.benchmarks.entry import Repository
from hemorrhage.decode import answers
from hemorrhage.evaluate import harness
from hemorrhage.evaluate.harness_schema import ITEMS, METRICS, SAMPLES
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.runtime.artifact import failure, read_manifest
from tests.benchmark_rows import ROWS, SUBJECTS, prepared_all, rows_of, write, write_mirror

PACKAGE = Path(lm_eval.tasks.__file__).parent


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def prepared(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepared_all(mirror, tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def checkpoint(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "base"
    shutil.copytree(tiny, folder)
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def whole(prepared: dict[str, Path], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All items of all tasks through the step, with every way to a network closed."""

    asked: list[object] = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise OSError("there is no network")

    out = tmp_path_factory.mktemp("harness") / "base"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        spec: harness.Spec = {"items": "all", "batch": 8, "seed": 0}
        harness.evaluate(out, "base", checkpoint, checkpoint, list(prepared.values()), spec)
    assert not asked
    return out


def by_hand(mirror: Path, task: str, scratch: Path) -> list[ConfigurableTask]:
    """lm-eval's packaged tasks, told to read the mirror's own files instead of the hub."""
    benchmark = BENCHMARKS[task]
    repository = benchmark.repositories[-1]
    folder = mirror / repository.name / repository.config
    if task == "boolq":
        # What SuperGLUE's copy has in the place of the authors' column.
        table = parquet.read_table(next(folder.glob("validation-*"))).to_pandas()
        table = table.rename(columns={"answer": "label"}).astype({"label": int})
        folder = scratch / "boolq"
        for split in ("train", "validation"):
            write(scratch, Repository("boolq", "."), split, pa.Table.from_pandas(table))
    files = {file.name.split("-")[0]: str(file) for file in folder.glob("*.parquet")}
    made = []
    for subject in SUBJECTS if task == "mmlu" else (None,):
        definition = PACKAGE / benchmark.definition
        if subject:
            definition = definition.with_name(f"mmlu_{subject}.yaml")
            for split in ("dev", "test"):
                rows = [row for row in rows_of(task, split) if row["subject"] == subject]
                repository = Repository("mmlu", subject)
                files[split] = str(write(scratch, repository, split, pa.Table.from_pylist(rows)))
        config = load_yaml(definition)
        config.pop("tag", None)
        read = {"data_files": dict(files), "cache_dir": str(scratch / "cache")}
        made.append(
            ConfigurableTask(config={**config, "dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": read})
        )
    return made


@pytest.fixture(scope="module")
def reference(mirror: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """lm-eval called by hand on all tasks in one go, in other batches than the step's."""
    scratch = tmp_path_factory.mktemp("hand")
    tasks: list[Any] = [made for task in BENCHMARKS for made in by_hand(mirror, task, scratch)]
    lm = HFLM(pretrained=load(checkpoint), tokenizer=load_tokenizer(checkpoint), batch_size=5)
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    return dict(simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0))


def member_of(task: str, item: int) -> tuple[str, int]:
    """lm-eval's task and number of an item: subjects in alphabetical order, eight items each."""
    return (f"mmlu_{SUBJECTS[item // ROWS]}", item % ROWS) if task == "mmlu" else (task, item)


@pytest.mark.parametrize("task", BENCHMARKS)
def test_a_task_is_item_by_item_what_lm_eval_says_by_hand(task: str, whole: Path, reference: dict[str, Any]) -> None:
    items = pd.read_parquet(whole / "items.parquet").query("task == @task").set_index("item")
    records = pd.read_parquet(whole / "samples.parquet").query("task == @task")
    count = ROWS * (len(SUBJECTS) if task == "mmlu" else 1)
    assert sorted(items.index) == list(range(count))
    metric, filtered = BENCHMARKS[task].metric.split(",")
    for row in records.itertuples():
        record = json.loads(row.record)
        member, number = member_of(task, row.item)
        (hand,) = [
            sample
            for sample in reference["samples"][member]
            if sample["doc_id"] == number and sample["filter"] == record["filter"]
        ]
        assert record["doc_id"] == number
        assert record["target"] == hand["target"]
        assert record["prompt_hash"] == hand["prompt_hash"]
        assert record[metric] == pytest.approx(hand[metric], abs=1e-4)
        if task == "gsm8k":
            assert record["resps"] == hand["resps"]
            assert record["filtered_resps"] == hand["filtered_resps"]
        else:
            for mine, theirs in zip(record["filtered_resps"], hand["filtered_resps"], strict=True):
                assert mine[0] == pytest.approx(theirs[0], abs=1e-3)
                assert mine[1] == theirs[1]
        if record["filter"] == filtered:
            assert items.correct[row.item] == (hand[metric] == 1)
    assert len(records) == count * (2 if task == "gsm8k" else 1)


def test_aggregates_are_lm_evals_and_those_of_the_items(whole: Path, reference: dict[str, Any]) -> None:
    items = ITEMS.validate(pd.read_parquet(whole / "items.parquet"))
    SAMPLES.validate(pd.read_parquet(whole / "samples.parquet"))
    results = json.loads((whole / "results.json").read_text())
    assert list(results) == list(BENCHMARKS)
    for task, benchmark in BENCHMARKS.items():
        mine = items[items.task == task]
        assert results[task]["results"][task][benchmark.metric] == pytest.approx(mine.correct.mean())
        assert (mine.group == mine.item).all()
        for member in results[task]["n-samples"]:
            theirs = reference["results"][member]
            for name, value in results[task]["results"][member].items():
                assert value == (pytest.approx(theirs[name], rel=1e-4) if isinstance(value, float) else theirs[name])
    assert set(results["mmlu"]["groups"]) == {"mmlu", "mmlu_stem", "mmlu_other"}
    assert str(whole.parent) not in (whole / "results.json").read_text()


def test_margins_tell_who_was_right_and_only_where_something_is_chosen(whole: Path) -> None:
    items = pd.read_parquet(whole / "items.parquet")
    for task, benchmark in BENCHMARKS.items():
        mine = items[items.task == task]
        if benchmark.options is None:
            assert mine.margin.isna().all()
        else:
            assert ((mine.margin > 0) == mine.correct).all()
            assert mine.choice.between(0, 4).all()
    greedy = items[items.task == "lambada_openai"]
    assert (greedy.choice == greedy.correct).all()


def test_choice_and_margin_against_one_full_pass_each(whole: Path, checkpoint: Path) -> None:
    model, tokenizer = load(checkpoint), load_tokenizer(checkpoint)

    def likelihood(context: str, ending: str) -> float:
        start, ids = len(tokenizer(context).input_ids), tokenizer(context + ending).input_ids
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(log_p[position - 1, ids[position]]) for position in range(start, len(ids)))

    items = pd.read_parquet(whole / "items.parquet").set_index(["task", "item"])
    for number in range(4):
        row = rows_of("arc_easy", "test")[number]
        scores = [
            likelihood(f"Question: {row['question']}\nAnswer:", f" {text}") / len(text)
            for text in row["choices"]["text"]
        ]
        right = row["choices"]["label"].index(row["answerKey"])
        expected = scores[right] - max(score for choice, score in enumerate(scores) if choice != right)
        assert items.choice["arc_easy", number] == scores.index(max(scores))
        assert items.margin["arc_easy", number] == pytest.approx(expected, abs=1e-4)
        # WinoGrande scores what follows the blank after either filling.
        row = rows_of("winogrande", "validation")[number]
        before, after = row["sentence"].split("_")
        scores = [likelihood(before + row[option], f" {after.strip()}") for option in ("option1", "option2")]
        right = int(row["answer"]) - 1
        assert items.choice["winogrande", number] == scores.index(max(scores))
        assert items.margin["winogrande", number] == pytest.approx(scores[right] - scores[1 - right], abs=1e-3)


def test_manifest_has_what_the_report_needs_of_each_task(whole: Path, prepared: dict[str, Path]) -> None:
    manifest = read_manifest(whole)
    assert manifest["variant"] == "base"
    for task, folder in prepared.items():
        facts, about = read_manifest(folder), manifest["tasks"][task]
        assert {key: about[key] for key in ("sha256", "chance", "floor")} == {
            key: facts[key] for key in ("sha256", "chance", "floor")
        }
    assert manifest["tasks"]["gsm8k"]["protocol"] == (
        "lm-eval=0.4.13 metric=exact_match,strict-match items=8/8 seed=0 shots=5 chat=none dtype=float32"
    )


def test_a_drawn_run_scores_the_drawn_items_as_the_whole_run_does(
    whole: Path, prepared: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    # GSM8K is left out: its examples are drawn anew for each item in turn.
    some = [folder for task, folder in prepared.items() if task != "gsm8k"]
    harness.evaluate(tmp_path / "out", "base", checkpoint, checkpoint, some, {"items": 4, "batch": 3, "seed": 1})
    few = pd.read_parquet(tmp_path / "out" / "items.parquet")
    all_ = pd.read_parquet(whole / "items.parquet").set_index(["task", "item"])
    assert few.groupby("task").size().eq(4).all()
    for row in few.itertuples():
        then = all_.loc[(row.task, row.item)]
        assert (row.choice, row.correct) == (then.choice, then.correct)
        assert row.margin == pytest.approx(then.margin, abs=1e-3, nan_ok=True)
    subjects = Counter(few[few.task == "mmlu"].item // ROWS)
    assert sorted(subjects.values()) == [1, 1, 2]
    about = read_manifest(tmp_path / "out")["tasks"]["mmlu"]["protocol"]
    assert about == "lm-eval=0.4.13 metric=acc,none items=4/24 seed=1 shots=0 chat=none dtype=float32"


def test_a_group_whose_tasks_are_not_drawn_is_left_out(
    prepared: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    spec: harness.Spec = {"items": 1, "batch": 1, "seed": 0}
    harness.evaluate(tmp_path / "out", "base", checkpoint, checkpoint, [prepared["mmlu"]], spec)
    results = json.loads((tmp_path / "out" / "results.json").read_text())["mmlu"]
    assert len(results["n-samples"]) == 1
    assert len(results["groups"]) == 2


def test_draws_are_even_ascending_nested_and_of_their_seed() -> None:
    members = {"a": 10, "b": 20, "c": 3}
    manifest: harness.BenchmarkManifest = {"task": "mmlu", "items": 33, "members": members}

    def draw(items: int | Literal["all"], seed: int = 0) -> dict[str, list[int]]:
        return harness.draw(manifest, {"items": items, "batch": 1, "seed": seed})

    assert {name: len(numbers) for name, numbers in draw(9).items()} == {"a": 3, "b": 3, "c": 3}
    assert sorted(len(numbers) for numbers in draw(20).values()) == [3, 8, 9]
    for few, more in ((1, 2), (5, 9), (9, 20), (20, 33)):
        assert all(set(numbers) <= set(draw(more)[name]) for name, numbers in draw(few).items())
    assert draw("all") == draw(33) == draw(100) == {name: list(range(n)) for name, n in members.items()}
    assert all(numbers == sorted(set(numbers)) for numbers in draw(20).values())
    assert draw(9) == draw(9) != draw(9, seed=1)
    assert set(draw(2)) < {"a", "b", "c"}


def test_codes_of_extracted_answers() -> None:
    assert harness.answer_code("1,000") == harness.answer_code("$1000.") == harness.answer_code(" 1000")
    assert len({harness.answer_code(answer) for answer in ("1000", "100", "-1000", "10.00", "[invalid]")}) == 5
    assert 0 <= harness.answer_code("7") < 2**48


def test_right_answers_are_the_ones_lm_eval_reads(prepared: dict[str, Path], reference: dict[str, Any]) -> None:
    for task, benchmark in BENCHMARKS.items():
        if benchmark.options is None or task == "winogrande":
            continue
        for member in read_manifest(prepared[task])["members"]:
            rows = parquet.read_table(prepared[task] / member / f"{benchmark.split}.parquet").to_pylist()
            assert [benchmarks._right(row, benchmark) for row in rows] == [
                sample["target"] for sample in reference["samples"][member]
            ]


def step(patch: pytest.MonkeyPatch, out: Path, checkpoint: Path, folders: list[Path]) -> None:
    spec = json.dumps({"items": 2, "batch": 2, "seed": 0})
    arguments = ["harness", out, "--variant", "base", "--checkpoint", checkpoint, "--base", checkpoint]
    patch.setattr(sys, "argv", [str(part) for part in (*arguments, "--spec", spec, "--benchmarks", *folders)])
    harness.main()


def test_a_task_that_fails_is_named_in_the_recorded_failure(
    prepared: dict[str, Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "piqa"
    shutil.copytree(prepared["piqa"], broken)
    (broken / "piqa" / "validation.parquet").write_bytes(b"PAR1")
    step(monkeypatch, tmp_path / "out", checkpoint, [prepared["lambada_openai"], broken])
    reason = failure(tmp_path / "out")
    assert reason is not None
    assert reason.startswith("ValueError: task piqa: ")
    manifest = read_manifest(tmp_path / "out")
    assert set(manifest["tasks"]) == {"lambada_openai", "piqa"}
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_numbers_that_are_none_fail_instead_of_answering(
    prepared: dict[str, Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(checkpoint)
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    monkeypatch.setattr(harness, "load", lambda folder, **options: model)
    for task in ("arc_easy", "gsm8k"):
        step(monkeypatch, tmp_path / task, checkpoint, [prepared[task]])
        assert failure(tmp_path / task) == (f"ValueError: task {task}: ValueError: the model's logits are not finite")


def test_a_variant_that_was_not_made_is_a_recorded_failure(
    prepared: dict[str, Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text('{"failure": "ValueError: too small"}')
    step(monkeypatch, tmp_path / "out", broken, [prepared["piqa"]])
    assert failure(tmp_path / "out") == "ValueError: not made: ValueError: too small"


TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}<assistant>"


def test_chat_template_and_examples_are_put_as_lm_eval_puts_them(
    prepared: dict[str, Path], mirror: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "chatting"
    shutil.copytree(checkpoint, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    spec: harness.Spec = {"items": "all", "batch": 8, "seed": 0, "chat": True, "shots": {"gsm8k": 1}}
    harness.evaluate(tmp_path / "out", "base", folder, folder, [prepared["gsm8k"]], spec)
    lm = HFLM(pretrained=load(folder), tokenizer=load_tokenizer(folder), batch_size=8)
    hand = simple_evaluate(
        model=lm,
        tasks=list(by_hand(mirror, "gsm8k", tmp_path)),
        num_fewshot=1,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert hand is not None
    theirs = {sample["doc_id"]: sample["prompt_hash"] for sample in hand["samples"]["gsm8k"]}
    records = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    mine = {row.item: json.loads(row.record)["prompt_hash"] for row in records.itertuples()}
    assert mine == theirs
    protocol = read_manifest(tmp_path / "out")["tasks"]["gsm8k"]["protocol"]
    assert re.search(r"shots=1 chat=[0-9a-f]{8} dtype", protocol)
    with pytest.raises(ValueError, match="no chat template"):
        harness.evaluate(tmp_path / "none", "base", checkpoint, checkpoint, [prepared["gsm8k"]], spec)


def test_other_metrics_of_a_task_are_kept(whole: Path, reference: dict[str, Any]) -> None:
    metrics = METRICS.validate(pd.read_parquet(whole / "metrics.parquet"))
    assert set(metrics[metrics.task == "arc_easy"].metric) == {"acc,none"}
    assert set(metrics[metrics.task == "gsm8k"].metric) == {"exact_match,flexible-extract"}
    for task, metric in (("arc_easy", "acc"), ("hellaswag", "acc")):
        theirs = {sample["doc_id"]: sample[metric] for sample in reference["samples"][task]}
        mine = metrics[(metrics.task == task) & (metrics.metric == f"{metric},none")].set_index("item").value
        assert mine.to_dict() == theirs


SOLUTIONS = (
    " 3+4=7\n#### 7",
    "#### $2,125",
    " 18 dollars.",
    " $1,450,000.",
    "none",
    " 7\n#### 8, not 9",
    "-10",
    "...",
    "#### 4\n#### 5.",
)


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_the_sweep_reads_solutions_as_lm_eval_does(solution: str) -> None:
    config = load_yaml(PACKAGE / "gsm8k/gsm8k.yaml")
    read = {}
    for entry in config["filter_list"]:
        options = {key: value for key, value in entry["filter"][0].items() if key != "function"}
        read[entry["name"]] = RegexFilter(**options).apply([[solution]], [{}])[0][0]
    mine = {"strict-match": answers.strict_number(solution), "flexible-extract": answers.flexible_number(solution)}
    ignored = config["metric_list"][0]["regexes_to_ignore"]
    for name, theirs in read.items():
        assert mine[name] == ("" if theirs == "[invalid]" else theirs)
        for right in ("7", "2125", "18", "1450000", "8", "-10", "5"):
            judged = exact_match_hf_evaluate([theirs], [f"So\n#### {right}"], ignored, ignore_case=True)["exact_match"]
            assert (answers.plain_number(mine[name]) == right) == (judged == 1)
