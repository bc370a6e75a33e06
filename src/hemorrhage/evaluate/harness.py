"""Step ``harness``: a checkpoint on tasks of lm-eval, offline, from prepared data.

    python -m hemorrhage.evaluate.harness OUT --variant V --checkpoint DIR --base DIR --benchmarks DIR... --spec JSON

lm-eval (EleutherAI's Language Model Evaluation Harness) does everything a score depends on: its own definitions are
included, and only where the data come from is replaced (data.benchmarks.harness); its own loop asks the model; its
own metrics judge. One process pays for its import and the index of tasks once, for all tasks. A task that fails makes
the whole output a failure that names it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import logging
import random
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import numpy as np
import pandas as pd

from hemorrhage.decode.generation import masks_padding
from hemorrhage.decode.prompts import template_digest, uses_chat
from hemorrhage.evaluate.harness_schema import ITEMS, METRICS, SAMPLES
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.emulation.eviction import evicts
from hemorrhage.models.reload import verify
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import Manifest, failure, failure_recorded, read_manifest, write_manifest, writing

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

FEWSHOT_SEED = 1234
"""The default of lm-eval's command line."""

SPLITS = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
"""lm-eval's key -> the split it names in every definition that is used here."""


class BenchmarkManifest(Manifest, total=False):
    """The manifest of a prepared task, as far as it is read here; ``members``: items of each of lm-eval's tasks."""

    task: str
    sha256: str
    items: int
    members: dict[str, int]
    definition: str
    metric: str
    shots: int
    chance: float
    floor: float


class Spec(TypedDict):
    """What is scored: ``items`` of each task, or ``"all"``, drawn with ``seed``, ``batch`` at once.

    ``chat``: whether prompts go through the model's chat template, examples as turns; ``shots``: task -> examples,
    where they are not those of lm-eval's definition.
    """

    items: int | Literal["all"]
    batch: int
    seed: int
    chat: NotRequired[bool]
    shots: NotRequired[dict[str, int]]


class TaskFields(TypedDict):
    """A task's entry in the output's manifest."""

    sha256: str
    chance: float
    floor: float
    protocol: str


class Judgement(TypedDict):
    """What an item's score says; see ITEMS."""

    choice: int
    correct: bool
    margin: float


class Item(Judgement):
    """A row of ITEMS."""

    task: str
    item: int
    group: int


class Sample(TypedDict):
    """A row of SAMPLES."""

    task: str
    item: int
    record: str


class Metric(TypedDict):
    """A row of METRICS."""

    task: str
    item: int
    metric: str
    value: float


@dataclass(frozen=True)
class Answered:
    """What lm-eval says of a task: its aggregate, and rows of ITEMS, SAMPLES and METRICS."""

    aggregate: Mapping[str, Any]
    items: list[Item]
    samples: list[Sample]
    metrics: list[Metric]


log = logging.getLogger(__name__)


def evaluate(out: Path, variant: str, checkpoint: Path, base: Path, benchmarks: list[Path], spec: Spec) -> None:
    """Write lm-eval's judgement of one checkpoint. Raises ValueError where it is broken or a task fails."""
    reason = failure(checkpoint)
    if reason:
        raise ValueError(f"not made: {reason}")
    tokenizer = load_tokenizer(base)
    uses_chat(tokenizer, spec.get("chat", False))
    model = load(checkpoint, base=base)
    lm = language_model(model, tokenizer, spec["batch"])
    if variant != "base":
        # After lm-eval has wrapped the model: it ties weights anew.
        verify(model, checkpoint)
    answered: dict[str, Answered] = {}
    with tempfile.TemporaryDirectory() as scratch:
        drawn = {folder: draw(read_manifest(folder, BenchmarkManifest), spec) for folder in benchmarks}
        manager = build_index(drawn, Path(scratch))
        for number, (folder, chosen) in enumerate(drawn.items(), 1):
            benchmark, start = read_manifest(folder, BenchmarkManifest), time.perf_counter()
            task = benchmark["task"]
            try:
                rows = run(manager, lm, benchmark, chosen, spec)
            except Exception as error:
                raise ValueError(f"task {task}: {type(error).__name__}: {error}") from error
            answered[task] = rows
            right = sum(row["correct"] for row in rows.items)
            seconds = time.perf_counter() - start
            log.info("%s (%d of %d): %d of %d right, %.0f s", task, number, len(drawn), right, len(rows.items), seconds)
    tables = {
        "items": ITEMS.validate(pd.DataFrame([row for each in answered.values() for row in each.items])),
        "samples": SAMPLES.validate(pd.DataFrame([row for each in answered.values() for row in each.samples])),
        "metrics": METRICS.validate(_metrics([row for each in answered.values() for row in each.metrics])),
    }
    results = {task: each.aggregate for task, each in answered.items()}
    with writing(out) as part:
        for name, table in tables.items():
            table.to_parquet(part / f"{name}.parquet", index=False)
        (part / "results.json").write_text(json.dumps(results, indent=2, default=_plain) + "\n", encoding="utf-8")
        write_manifest(part, variant=variant, tasks=tasks(benchmarks, base, spec))


def _metrics(rows: list[Metric]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["task", "item", "metric", "value"])
    return table.astype({"task": str, "item": "int64", "metric": str, "value": "float64"})


def tasks(benchmarks: list[Path], base: Path, spec: Spec) -> dict[str, TaskFields]:
    """Return each task's entry in the manifest: data, chance, floor, and all that a score depends on but the model."""
    fields: dict[str, TaskFields] = {}
    template = template_digest(base, spec.get("chat", False))
    chat = "none" if template is None else template[:8]
    for folder in benchmarks:
        benchmark = read_manifest(folder, BenchmarkManifest)
        fields[benchmark["task"]] = {
            "sha256": benchmark["sha256"],
            "chance": benchmark["chance"],
            "floor": benchmark["floor"],
            "protocol": f"lm-eval={importlib.metadata.version('lm-eval')} metric={benchmark['metric']}"
            f" items={_wanted(benchmark, spec)}/{benchmark['items']} seed={spec['seed']}"
            f" shots={shots_of(benchmark, spec)} chat={chat} dtype=float32",
        }
    return fields


def shots_of(benchmark: BenchmarkManifest, spec: Spec) -> int:
    """Return the examples that a task's prompts begin with: what is asked for, else those of its definition."""
    return spec.get("shots", {}).get(benchmark["task"], benchmark["shots"])


def _wanted(benchmark: BenchmarkManifest, spec: Spec) -> int:
    return benchmark["items"] if spec["items"] == "all" else min(spec["items"], benchmark["items"])


def draw(benchmark: BenchmarkManifest, spec: Spec) -> dict[str, list[int]]:
    """Return the items to score of each of lm-eval's tasks, in ascending order; tasks without any are left out.

    ``spec["items"]`` (all, if there are fewer, or ``"all"``) are spread evenly over the tasks of a group, and drawn
    at random within each: the same for every model, and more items contain the fewer ones.
    """
    left = _wanted(benchmark, spec)
    chance = random.Random(f"{spec['seed']} {benchmark['task']}")
    members = sorted(benchmark["members"])
    chance.shuffle(members)
    orders = {
        member: chance.sample(range(benchmark["members"][member]), benchmark["members"][member]) for member in members
    }
    chosen: dict[str, list[int]] = {member: [] for member in members}
    while left:
        for member in members:
            if left and orders[member]:
                chosen[member].append(orders[member].pop(0))
                left -= 1
    # lm-eval numbers its records by position in this list, while it reads the items in the data's order; and it takes
    # an empty list for all items.
    return {member: sorted(numbers) for member, numbers in chosen.items() if numbers}


def build_index(drawn: dict[Path, dict[str, list[int]]], scratch: Path) -> TaskManager:
    """Return lm-eval's tasks over the prepared data: its own definitions, included by local ones in ``scratch``."""
    import datasets
    from lm_eval.tasks import TaskManager

    # Reading a local file is reported to the hub's counter of downloads otherwise.
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    package = Path(str(importlib.metadata.distribution("lm-eval").locate_file("lm_eval/tasks")))
    for folder, chosen in drawn.items():
        benchmark = read_manifest(folder, BenchmarkManifest)
        definition = package / benchmark["definition"]
        if list(benchmark["members"]) == [benchmark["task"]]:
            _define(scratch, benchmark["task"], definition, _data(folder / benchmark["task"], scratch))
            continue
        groups = set()
        for member in chosen:
            source = definition.parent / f"{member}.yaml"
            if not source.is_file():
                raise ValueError(f"task {benchmark['task']}: lm-eval has no {source.name} for {folder / member}")
            _define(scratch, member, source, _data(folder / member, scratch))
            groups.add(_group(source))
        # A group whose tasks were all left out would be an error of lm-eval's.
        for group in groups:
            _define(scratch, group, definition.with_name(f"_{group}.yaml"), {})
        _define(scratch, benchmark["task"], definition, {"task": sorted(groups)})
    return TaskManager(include_path=str(scratch), include_defaults=False)


def _data(folder: Path, scratch: Path) -> Mapping[str, object]:
    """Return the keys of a definition that say where its data come from, for the files of a folder.

    Splits that are not prepared are taken away: without few-shot examples nothing reads them.
    """
    files = {file.stem: str(file.resolve()) for file in sorted(folder.glob("*.parquet"))}
    return {
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(scratch / "cache")},
        **{key: None for key, split in SPLITS.items() if split not in files},
    }


def _define(scratch: Path, name: str, definition: Path, replaced: Mapping[str, object]) -> None:
    # JSON is YAML.
    content = json.dumps({"include": str(definition), **replaced})
    (scratch / f"{name}.yaml").write_text(content, encoding="utf-8")


def _group(definition: Path) -> str:
    """Return the group of a task from its definition's tag: ``mmlu_stem_tasks`` is what ``mmlu_stem`` gathers."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return str(load_yaml(definition, resolve_func=False)["tag"]).removesuffix("_tasks")


def language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: int) -> LM:
    """``model`` as lm-eval asks it, one text at a time where it does not mask padding or evicts.

    Raises ValueError from within as soon as a logit is not finite.
    """
    from lm_eval.models.huggingface import HFLM

    at_once = batch if masks_padding(model) and not evicts(model) else 1
    # lm-eval would take the largest of NaN for an answer.
    model.get_output_embeddings().register_forward_hook(_check_finite)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=at_once)


def _check_finite(_module: Any, _arguments: Any, logits: Any) -> None:
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite")


def run(
    manager: TaskManager, lm: LM, benchmark: BenchmarkManifest, chosen: dict[str, list[int]], spec: Spec
) -> Answered:
    """Return what lm-eval says of one task.

    The same as lm-eval's ``simple_evaluate`` around ``evaluate``, but for the description of the machine.
    """
    from lm_eval.evaluator import evaluate

    loaded, wanted = manager.load([benchmark["task"]]), shots_of(benchmark, spec)
    for task in loaded["tasks"].values():
        if benchmark["task"] in spec.get("shots", {}):
            task.set_config(key="num_fewshot", value=wanted)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    chat = spec.get("chat", False)
    # Its intervals are not used: they would cost minutes, and are not paired.
    results: Any = evaluate(
        lm=lm,
        task_dict=loaded,
        samples=chosen,
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    shots = {results["n-shot"][member] for member in chosen}
    if shots != {wanted}:
        raise ValueError(f"lm-eval gave {sorted(shots)} examples instead of {wanted}")
    first, offset = {}, 0
    for member, count in sorted(benchmark["members"].items()):
        first[member] = offset
        offset += count
    metric, filtered = benchmark["metric"].split(",")
    items: list[Item] = []
    records: list[Sample] = []
    metrics: list[Metric] = []
    for member in sorted(chosen):
        for sample in results["samples"][member]:
            number = first[member] + sample["doc_id"]
            # Prompts and texts are those of the prepared data; their hashes stay.
            record = {key: value for key, value in sample.items() if key not in ("doc", "arguments")}
            content = json.dumps(record, default=_plain)
            records.append({"task": benchmark["task"], "item": number, "record": content})
            if sample["filter"] == filtered:
                judgement = judge_sample(loaded["tasks"][member], sample, metric)
                items.append({"task": benchmark["task"], "item": number, "group": number, **judgement})
            metrics += [
                {"task": benchmark["task"], "item": number, "metric": name, "value": value}
                for name, value in secondary(sample, benchmark["metric"]).items()
            ]
    # Its definitions, with paths of this machine, are known by its version.
    aggregate = {key: value for key, value in results.items() if key not in ("samples", "configs")}
    return Answered(aggregate, items, records, metrics)


def secondary(sample: Mapping[str, Any], primary: str) -> dict[str, float]:
    """Return the other metrics of one of lm-eval's samples, ``metric,filter``, that are one number for an item."""
    named = {f"{metric},{sample['filter']}": sample[metric] for metric in sample["metrics"]}
    return {
        name: float(value)
        for name, value in named.items()
        if name != primary and isinstance(value, (bool, int, float, np.number, np.bool_))
    }


def judge_sample(task: Any, sample: Mapping[str, Any], metric: str) -> Judgement:
    """Return ``choice``, ``correct`` and ``margin`` of one of lm-eval's samples, under ``metric``; see ITEMS."""
    correct = bool(sample[metric] == 1)
    if task.OUTPUT_TYPE == "generate_until":
        return {"choice": answer_code(sample["filtered_resps"][0]), "correct": correct, "margin": float("nan")}
    if task.OUTPUT_TYPE == "loglikelihood":
        return {"choice": int(correct), "correct": correct, "margin": float("nan")}
    scores = [likelihood for likelihood, _ in sample["filtered_resps"]]
    if metric == "acc_norm":
        choices = task.doc_to_choice(sample["doc"])
        scores = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
    # Where the choices stand in the context, as in WinoGrande, lm-eval keeps the right one's index as the text.
    right = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    choice = max(range(len(scores)), key=scores.__getitem__)
    if (choice == right) != correct:
        raise ValueError(f"item {sample['doc_id']}: lm-eval's {metric} is {sample[metric]}, its scores say otherwise")
    margin = scores[right] - max(score for number, score in enumerate(scores) if number != right)
    return {"choice": choice, "correct": correct, "margin": margin}


def answer_code(answer: str) -> int:
    """Return a number of 48 bits for an extracted answer: the same for 1,000 and 1000., as for lm-eval's comparison."""
    plain = re.sub(r"[,$]|\.$", "", answer.strip().lower())
    return int.from_bytes(hashlib.sha256(plain.encode()).digest()[:6], "big")


def _plain(value: Any) -> Any:
    """Return a number of numpy as JSON has it."""
    return value.item()


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.evaluate.harness")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--benchmarks", type=Path, nargs="+", required=True, help="prepared tasks")
    parser.add_argument("--spec", type=json.loads, required=True, help="{items, batch, seed, chat, shots}")
    arguments = parser.parse_args()
    step.start()
    fields = tasks(arguments.benchmarks, arguments.base, arguments.spec)
    with failure_recorded(arguments.out, variant=arguments.variant, tasks=fields):
        evaluate(
            arguments.out,
            arguments.variant,
            arguments.checkpoint,
            arguments.base,
            arguments.benchmarks,
            arguments.spec,
        )


if __name__ == "__main__":
    main()
