"""Step ``code_tasks``: the programs a variant writes, and whether they pass their tests.

    python -m hemorrhage.evaluate.code_tasks OUT --variant V --checkpoint DIR --base DIR --benchmarks DIR... --spec JSON

Greedy completions of HumanEval's and MBPP's prompts (data.benchmarks.code_tasks), each cut before its first stop string
and run with its tests in hemorrhage.sandbox.runner: pass@1 of one sample. Where this machine has no sandbox the step
ends in one line and writes nothing; that is no property of the variant. ``--spec`` is Spec as JSON. A killed job
resumes at the next batch; a variant that can't be evaluated becomes an output that says why.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from hemorrhage.decode.generation import (
    NEUTRAL,
    check,
    check_context,
    end_tokens,
    hide_defaults,
    masks_padding,
    special_tokens,
    until_end,
)
from hemorrhage.decode.prompts import Prompt, pad_left
from hemorrhage.decode.stops import Stops, before_stop
from hemorrhage.decode.sweep import decode_continuation, resume_directory
from hemorrhage.evaluate.code_tasks_schema import PROBLEMS, PROGRAMS
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.reload import verify
from hemorrhage.models.tokenizer import leading
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import Manifest, failure, failure_recorded, read_manifest, write_manifest, writing
from hemorrhage.sandbox import runner as sandbox

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Spec(BaseModel):
    """What one job generates and runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tasks: list[str] = Field(min_length=1, description="Names of the benchmarks, in the order of their folders.")
    items: int | Literal["all"] = Field(description="Problems drawn from each task.")
    new_tokens: int = Field(ge=1, description="Tokens generated for a completion, at most.")
    seconds: float = Field(gt=0, description="Processor time of a program.")
    memory_mb: int = Field(ge=64, description="Address space of a program, MiB.")
    batch: int = Field(ge=1, description="Prompts generated at once.")
    seed: int = Field(ge=0, description="Draws the problems.")


@dataclass(frozen=True)
class Batch:
    """Problems whose completions are generated at once: ``number`` counts within the task."""

    task: str
    number: int
    stops: Sequence[str]
    prompts: Sequence[Prompt]
    problems: pd.DataFrame


class BenchmarkManifest(Manifest, total=False):
    """The manifest of a code task, as far as it is read here."""

    task: str
    sha256: str
    chance: float
    items: int
    shots: int
    stop: list[str]


class TaskFields(TypedDict):
    """A task's entry in the output's manifest."""

    sha256: str
    chance: float
    protocol: str


class Fields(TypedDict):
    """The fields of an output's manifest, a failed one's too."""

    variant: str
    tasks: dict[str, TaskFields]


def manifest_fields(variant: str, benchmarks: Sequence[Path], spec: Spec) -> Fields:
    """Return what the manifest says of an output, a failed one too.

    Raises ValueError where the benchmarks are not the tasks of ``spec``.
    """
    manifests = [read_manifest(folder, BenchmarkManifest) for folder in benchmarks]
    names = [benchmark["task"] for benchmark in manifests]
    if names != spec.tasks:
        raise ValueError(f"tasks: {', '.join(spec.tasks)} wanted, the benchmarks are {', '.join(names)}")
    tasks: dict[str, TaskFields] = {
        benchmark["task"]: {
            "sha256": benchmark["sha256"],
            "chance": benchmark["chance"],
            "protocol": protocol(benchmark, spec),
        }
        for benchmark in manifests
    }
    return {"variant": variant, "tasks": tasks}


def protocol(benchmark: BenchmarkManifest, spec: Spec) -> str:
    """Return all that a pass rate depends on but model and problems, as one string."""
    drawn = "all" if spec.items == "all" else f"{spec.items}/{benchmark['items']} seed={spec.seed}"
    return (
        f"pass@1 greedy items={drawn} shots={benchmark['shots']} stop={json.dumps(benchmark['stop'])} "
        f"new_tokens={spec.new_tokens} batch={spec.batch} dtype=float32 seconds={spec.seconds:g} "
        f"memory_mb={spec.memory_mb} {sandbox.protocol()}"
    )


def evaluate(out: Path, variant: str, checkpoint: Path, base: Path, benchmarks: Sequence[Path], spec: Spec) -> None:
    """Write the programs of one checkpoint and what became of them.

    Raises ValueError where the checkpoint is broken and, before anything is generated, where a task has fewer items
    than asked for or prompts that are too long for the model.
    """
    tokenizer = load_tokenizer(base)
    batches = [batch for folder in benchmarks for batch in _batches(folder, tokenizer, spec)]
    model = load(checkpoint, base=base)
    if variant != "base":
        verify(model, checkpoint)
    for batch in batches:
        longest = max(len(prompt.tokens) for prompt in batch.prompts)
        check_context(model, longest, spec.new_tokens, f"prompts of {batch.task}")
    resume = resume_directory(out)
    resume.mkdir(parents=True, exist_ok=True)
    rows = pd.concat(
        [_resumed(resume / f"{batch.task}.{batch.number}", batch, model, tokenizer, spec) for batch in _shown(batches)],
        ignore_index=True,
    )
    rank = rows["task"].map({task: position for position, task in enumerate(spec.tasks)})
    rows = rows.assign(rank=rank).sort_values(["rank", "item"], ignore_index=True).drop(columns="rank")
    with writing(out) as part:
        PROGRAMS.validate(rows).to_parquet(part / "programs.parquet", index=False)
        write_manifest(part, **manifest_fields(variant, benchmarks, spec))


def draw_problems(benchmark: Path, items: int | str, seed: int) -> pd.DataFrame:
    """``items`` problems of a benchmark (or ``"all"``), drawn with ``seed``, in their order.

    Raises ValueError where it has fewer.
    """
    problems = PROBLEMS.validate(pd.read_parquet(benchmark / "items.parquet")).sort_values("item", ignore_index=True)
    if items == "all":
        return problems
    if int(items) > len(problems):
        raise ValueError(f"items: {items} wanted, the task at {benchmark} has {len(problems)}")
    return problems.iloc[sorted(random.Random(seed).sample(range(len(problems)), int(items)))]


def _batches(benchmark: Path, tokenizer: PreTrainedTokenizerBase, spec: Spec) -> Iterator[Batch]:
    manifest = read_manifest(benchmark, BenchmarkManifest)
    problems = draw_problems(benchmark, spec.items, spec.seed)
    prompts = {
        int(row.item): Prompt(
            int(row.item),
            str(row.prompt),
            [*leading(tokenizer), *tokenizer(row.prompt, add_special_tokens=False, verbose=False)["input_ids"]],
        )
        for row in problems.itertuples()
    }
    # Prompts of one length are in one batch: little padding is read.
    order = sorted(prompts.values(), key=lambda prompt: len(prompt.tokens))
    for number, first in enumerate(range(0, len(order), spec.batch)):
        taken = order[first : first + spec.batch]
        rows = problems.set_index("item").loc[[prompt.item for prompt in taken]]
        yield Batch(manifest["task"], number, manifest["stop"], taken, rows)


def _shown(batches: Sequence[Batch]) -> Iterator[Batch]:
    with tqdm(batches, desc="batches", mininterval=5) as progress:
        for batch in progress:
            progress.set_postfix_str(batch.task, refresh=False)
            yield batch


def _resumed(
    file: Path, batch: Batch, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: Spec
) -> pd.DataFrame:
    """Return the rows of a batch, from ``file`` where an earlier job of the same output has left them there."""
    if not file.exists():
        unfinished = file.with_name(f"{file.name}.part")
        _rows(batch, model, tokenizer, spec).to_parquet(unfinished, index=False)
        unfinished.rename(file)
    return pd.read_parquet(file)


def _rows(batch: Batch, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: Spec) -> pd.DataFrame:
    rows = []
    completions = complete(model, tokenizer, batch.prompts, spec.new_tokens, batch.stops)
    for (item, problem), completion in zip(batch.problems.iterrows(), completions, strict=True):
        tests = sandbox.Checks(problem["tests"], tuple(problem["asked"]), problem["given"])
        result = sandbox.run(program_of(problem["prefix"], completion), spec.seconds, spec.memory_mb, tests)
        rows.append(
            {
                "task": batch.task,
                "item": item,
                "completion": completion,
                "status": result.status,
                "detail": result.detail,
                "correct": result.status == "passed",
                "seconds": result.seconds,
                "cpu_seconds": result.cpu_seconds,
            }
        )
    return pd.DataFrame(rows)


def program_of(prefix: object, completion: str) -> str:
    """Return the program that is run: the completion behind its prefix, or where it has none the text as ``answer``."""
    return prefix + completion if isinstance(prefix, str) else f"answer = {completion!r}\n"


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    new_tokens: int,
    stops: Sequence[str],
) -> list[str]:
    """Return greedy continuations of ``prompts``, read as one left-padded batch, each cut before its first stop string.

    A sequence ends at a stop string, at the model's end of sequence, or after ``new_tokens`` tokens. Prompts of
    different lengths are read one by one where the model does not mask padding. Raises ValueError for prompts that are
    empty or, with ``new_tokens`` more, longer than the model's context.
    """
    if len({len(prompt.tokens) for prompt in prompts}) > 1 and not masks_padding(model):
        return [text for prompt in prompts for text in complete(model, tokenizer, [prompt], new_tokens, stops)]
    from transformers import GenerationConfig

    special = special_tokens(model)
    ids, mask = (tensor.to(model.device) for tensor in pad_left(prompts, special["pad_token_id"]))
    check(model, ids, mask, new_tokens)
    with torch.no_grad(), hide_defaults(model, GenerationConfig(**special)):
        sequences = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(**NEUTRAL, **special, max_new_tokens=new_tokens),
            stopping_criteria=Stops(tokenizer, stops).criteria(ids.shape[1]),
        )
    generated = [until_end(tokens, end_tokens(model)) for tokens in sequences[:, ids.shape[1] :].tolist()]
    return [
        before_stop(decode_continuation(tokenizer, prompt.tokens, tokens), stops)
        for prompt, tokens in zip(prompts, generated, strict=True)
    ]


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.evaluate.code_tasks")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--benchmarks", type=Path, nargs="+", required=True)
    parser.add_argument("--spec", required=True)
    given = parser.parse_args()
    step.start()
    spec = Spec.model_validate_json(given.spec)
    unavailable = sandbox.missing()
    if unavailable:
        sys.exit(unavailable)
    fields = manifest_fields(given.variant, given.benchmarks, spec)
    reason = failure(given.checkpoint)
    if reason:
        with writing(given.out) as part:
            write_manifest(part, failure=f"not evaluated: {reason}", **fields)
        return
    with failure_recorded(given.out, **fields):
        try:
            evaluate(given.out, given.variant, given.checkpoint, given.base, given.benchmarks, spec)
        except sandbox.UnavailableError as error:
            # Of this machine, not of the variant: what is done stays for the next attempt.
            sys.exit(str(error))
    shutil.rmtree(resume_directory(given.out), ignore_errors=True)


if __name__ == "__main__":
    main()
