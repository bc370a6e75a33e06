"""The decode sweep of one variant: every strategy on the same batches of prompts, resumable by batch.

A batch of prompts is read once by the variant and once by the base model; the strategies start from copies
of what that left in the cache, those that need one forward pass a token together (hemorrhage.decode.batching).
Finished batches lie in ``<out>.resume`` until the output is in place.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import quote

import numpy as np
import pandas as pd
from tqdm import tqdm

from hemorrhage.decode import batching
from hemorrhage.decode.answers import extract, flexible_number, is_right, plain_number, strict_number
from hemorrhage.decode.frontier import LEAST_TEXTS
from hemorrhage.decode.generation import (
    Prompts,
    Reading,
    check_context,
    end_tokens,
    forward,
    generate,
    read,
    special_tokens,
    until_end,
)
from hemorrhage.decode.prompts import (
    Prompt,
    closed_prompts,
    open_prompts,
    pad_left,
    template_digest,
    uses_chat,
    worked_problems,
)
from hemorrhage.decode.schema import GENERATIONS, HUMAN
from hemorrhage.decode.spec import Spec
from hemorrhage.decode.stops import Stops, StopsAt, before_stop, stop_position
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.artifact import Manifest, disk_is_full, read_manifest, write_manifest, writing
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Strategy:
    """A strategy of the sweep under its name in params.yaml, and the number of the draw where it samples.

    ``facts``: what it says of itself with a model, besides its settings.
    """

    name: str
    module: str
    settings: Any
    implementation: ModuleType
    draw: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """JSON of the module and all its settings, defaults too, and of its facts."""
        return json.dumps({"strategy": self.module, **self.settings.model_dump(), **self.facts}, sort_keys=True)


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated at once: ``number`` counts within the data set; any of ``stops`` ends a text.

    ``featured``: the data set has texts enough to be compared with people's, and the features of each are kept.
    """

    task: str
    dataset: str
    number: int
    new_tokens: int
    prompts: Sequence[Prompt]
    stops: Sequence[str] = ()
    featured: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.tokens) for prompt in self.prompts)


def strategies(entries: Mapping[str, Mapping[str, Any]]) -> list[Strategy]:
    """Return the strategies of a spec. Raises ValueError (pydantic's) where settings are impossible."""
    parsed = []
    for name, entry in entries.items():
        if "strategy" not in entry:
            raise ValueError(f"strategies.{name}: the key strategy is missing")
        module = importlib.import_module(f"hemorrhage.decode.strategies.{entry['strategy']}")
        settings = module.Settings(**{key: value for key, value in entry.items() if key != "strategy"})
        parsed.append(Strategy(name, entry["strategy"], settings, module))
    return parsed


def resume_directory(out: Path) -> Path:
    """Where the finished batches of a job lie until its output is in place."""
    return out.with_name(f"{out.name}.resume")


def sweep(
    out: Path, variant: str, checkpoint: Path, base: Path, closed: Sequence[Path], opened: Sequence[Path], spec: Spec
) -> None:
    """Generate everything ``spec`` asks for and write the output directory ``out``.

    ``closed`` and ``opened`` are the folders of its tasks, in its order. Raises ValueError, before anything is
    generated, for prompts that are empty, too few or too long for the model, and for settings that the model cannot
    follow.
    """
    chosen = strategies(spec.strategies)
    tokenizer = load_tokenizer(base)
    chat = uses_chat(tokenizer, spec.chat)
    batches = [*_closed_batches(closed, tokenizer, spec, chat), *_open_batches(opened, tokenizer, spec, chat)]
    model = load(checkpoint, base=base)
    of_base = model if checkpoint.resolve() == base.resolve() else load(base)
    if not (checkpoint / "generation_config.json").is_file():
        model.generation_config = of_base.generation_config
    for batch in batches:
        check_context(model, batch.longest, batch.new_tokens, f"{batch.task} prompts of {batch.dataset}")
    gaps = check_strategies(model, chosen, batches, tokenizer)
    possible = draws(model, [strategy for strategy in chosen if strategy.name not in gaps], spec.draws, tokenizer)

    parts = list(_parts(resume_directory(out), possible, batches, model, of_base, tokenizer, spec, gaps))
    if len(gaps) == len(chosen):
        raise ValueError(next(f"strategies.{name}: {reason}" for name, reason in gaps.items()))
    names = [strategy.name for strategy in chosen if strategy.name not in gaps]
    # A strategy that failed on a later batch has no rows of the earlier ones.
    parts = [part[~part["strategy"].isin(gaps)] if "strategy" in part else part for part in parts]
    rows = _ordered([part for part in parts if "strategy" in part], batches, names)
    human = _ordered([_NO_HUMAN, *(part for part in parts if "strategy" not in part)], batches)
    featured = {batch.dataset for batch in batches if batch.featured}
    kept, people = (side[side["dataset"].isin(featured)] for side in (rows, human))
    features = {f"{dataset}.strategy.{name}": texts for (dataset, name), texts in kept.groupby(["dataset", "strategy"])}
    features |= {f"{dataset}.human": texts for dataset, texts in people.groupby("dataset")}
    with writing(out) as part:
        GENERATIONS.validate(rows.drop(columns="feature")).to_parquet(part / "generations.parquet", index=False)
        HUMAN.validate(human.drop(columns="feature")).to_parquet(part / "human.parquet", index=False)
        _save_features(features, part / "features.safetensors")
        fields = manifest_fields(variant, base, closed, opened, spec)
        write_manifest(part, **fields, distinct=distinct_texts(rows), **({"gaps": gaps} if gaps else {}))


_NO_HUMAN = pd.DataFrame(
    {
        "dataset": pd.Series(dtype=str),
        "item": pd.Series(dtype="int64"),
        "text": pd.Series(dtype=str),
        "tokens": pd.Series(dtype=object),
        "base_nll": pd.Series(dtype="float64"),
        "feature": pd.Series(dtype=object),
    }
)


def _ordered(parts: list[pd.DataFrame], batches: Sequence[Batch], names: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows of all batches: by strategy where there are ``names``, then data set, then item."""
    rows = pd.concat(parts, ignore_index=True)
    datasets = list(dict.fromkeys(batch.dataset for batch in batches))
    keys = {"_dataset": rows["dataset"].map(datasets.index)}
    if names:
        keys = {"_strategy": rows["strategy"].map(list(names).index), **keys}
    order = [*keys, "item", *(["draw"] if names else [])]
    return rows.assign(**keys).sort_values(order, ignore_index=True).drop(columns=list(keys))


class Distinct(TypedDict):
    """Texts of a data set's prompts by all strategies and draws, and how many of them are different."""

    texts: int
    distinct: int


def distinct_texts(rows: pd.DataFrame) -> dict[str, Distinct]:
    """Count the texts of each data set, and the different ones: samplers that agree are not several observations."""
    tokens = rows.assign(tokens=[tuple(text) for text in rows["tokens"]])
    return {
        str(dataset): {"texts": len(texts), "distinct": len(texts[["item", "tokens"]].drop_duplicates())}
        for dataset, texts in tokens.groupby("dataset", sort=False)
    }


def check_strategies(
    model: PreTrainedModel, chosen: Sequence[Strategy], batches: Sequence[Batch], tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """Return the strategies that do not go with ``model``, each with the reason.

    Raises ValueError, in a line that names the strategy, where ``model`` cannot follow its settings.
    """
    refused: dict[str, str] = {}
    longest = max(batches, key=lambda batch: batch.longest + batch.new_tokens)
    prompts = Prompts(torch.ones(1, longest.longest, dtype=torch.long), longest.new_tokens, tokenizer)
    for strategy in chosen:
        try:
            strategy.implementation.parameters(model, strategy.settings, prompts)
        except RefusedError as error:
            refused[strategy.name] = str(error)
        except ValueError as error:
            raise ValueError(f"strategies.{strategy.name}: {error}") from None
    return refused


def draws(
    model: PreTrainedModel, chosen: Sequence[Strategy], number: int, tokenizer: PreTrainedTokenizerBase
) -> list[Strategy]:
    """Return each strategy with what it says of itself, and those that sample ``number`` times, a draw each."""
    token = Prompts(torch.ones(1, 1, dtype=torch.long), 1, tokenizer)
    runs = []
    for strategy in chosen:
        describe = getattr(strategy.implementation, "describe", None)
        known = replace(strategy, facts=describe(model, strategy.settings)) if describe else strategy
        samples = strategy.implementation.parameters(model, strategy.settings, token).samples
        runs += [replace(known, draw=draw) for draw in range(number if samples else 1)]
    return runs


class DatasetFields(TypedDict, total=False):
    """A data set's entry: digest of its texts, and what guessing gets right of a closed-ended task."""

    sha256: str
    chance: float | str


class TaskManifest(Manifest, total=False):
    """The manifest of a task or text, as far as the sweep reads it."""

    sha256: str
    chance: float | str
    stop: list[str]
    shots: int


class Conditions(TypedDict):
    """How the prompts of a data set are put: SHA-256 of the chat template that they go through, None without one; the
    worked examples before a question; the most tokens of a text."""

    chat_template: str | None
    shots: int
    new_tokens: int


class Fields(TypedDict):
    """The fields of a decode output's manifest, a failed one's too."""

    variant: str
    datasets: dict[str, DatasetFields]
    protocol: dict[str, str]
    conditions: dict[str, Conditions]
    seed: int


def manifest_fields(variant: str, base: Path, closed: Sequence[Path], opened: Sequence[Path], spec: Spec) -> Fields:
    """Return what the manifest says of a decode output, a failed one too.

    ``protocol`` is how the texts of a data set were made, but for the strategy: texts of one protocol are comparable.
    """
    template = template_digest(base, spec.chat)
    shared = f"batch={spec.batch}; dtype=float32"
    datasets: dict[str, DatasetFields] = {}
    protocol: dict[str, str] = {}
    conditions: dict[str, Conditions] = {}
    for folder, task in zip(closed, spec.closed_ended, strict=True):
        manifest = read_manifest(folder, TaskManifest)
        datasets[task.task] = {"sha256": manifest["sha256"], "chance": manifest["chance"]}
        is_worked, is_code = worked_problems(folder) is not None, "stop" in manifest
        shots = manifest.get("shots", 0) if is_code else task.shots if is_worked and template is None else 0
        asked = Conditions(chat_template=template if is_worked else None, shots=shots, new_tokens=task.new_tokens)
        conditions[task.task] = asked
        ends = f"; stop={json.dumps(manifest['stop'])}" if "stop" in manifest else ""
        limits = f"; seconds={spec.code_tasks.seconds:g}" if spec.code_tasks and "stop" in manifest else ""
        protocol[task.task] = f"items={task.items} {_stated(asked)}; {shared}{ends}{limits}"
    for folder, beginnings in zip(opened, spec.open_ended, strict=True):
        manifest = read_manifest(folder, TaskManifest)
        datasets[beginnings.task] = {"sha256": manifest["sha256"]}
        prefix = f" prefix={beginnings.prefix}" if beginnings.prefix else ""
        is_instruction = (folder / "items.parquet").is_file()
        asked = Conditions(
            chat_template=template if is_instruction else None, shots=0, new_tokens=beginnings.new_tokens
        )
        conditions[beginnings.task] = asked
        protocol[beginnings.task] = f"items={beginnings.items}{prefix} {_stated(asked)}; {shared}"
    return {
        "variant": variant,
        "datasets": datasets,
        "protocol": protocol,
        "conditions": conditions,
        "seed": spec.seed,
    }


def _stated(asked: Conditions) -> str:
    """Return the words of a protocol about how prompts are put."""
    template = asked["chat_template"]
    chat = "none" if template is None else template[:8]
    return f"new_tokens={asked['new_tokens']} chat={chat} shots={asked['shots']}"


ANOTHER_QUESTION = ("Question:",)
"""Continuation of a model that was shown examples, with which the answer is over."""


def _closed_batches(
    folders: Sequence[Path], tokenizer: PreTrainedTokenizerBase, spec: Spec, chat: bool
) -> Iterator[Batch]:
    for folder, task in zip(folders, spec.closed_ended, strict=True):
        prompts = closed_prompts(folder, tokenizer, task, spec.seed, chat)
        stops = tuple(read_manifest(folder, TaskManifest).get("stop", ()))
        if worked_problems(folder) and not chat:
            stops = ANOTHER_QUESTION
        yield from _batches("closed_ended", task.task, prompts, task.new_tokens, spec.batch, stops)


def _open_batches(
    folders: Sequence[Path], tokenizer: PreTrainedTokenizerBase, spec: Spec, chat: bool
) -> Iterator[Batch]:
    for folder, task in zip(folders, spec.open_ended, strict=True):
        prompts = open_prompts(folder, tokenizer, task, spec.seed, chat)
        featured = sum(bool(prompt.human) for prompt in prompts) >= LEAST_TEXTS
        for batch in _batches("open_ended", task.task, prompts, task.new_tokens, spec.batch):
            yield replace(batch, featured=featured)


def _batches(
    task: str, dataset: str, prompts: list[Prompt], new_tokens: int, size: int, stops: Sequence[str] = ()
) -> Iterator[Batch]:
    # Prompts of one length are in one batch: little padding is read.
    prompts = sorted(prompts, key=lambda prompt: len(prompt.tokens))
    for number, start in enumerate(range(0, len(prompts), size)):
        yield Batch(task, dataset, number, new_tokens, prompts[start : start + size], stops)


def _parts(
    resume: Path,
    chosen: Sequence[Strategy],
    batches: Sequence[Batch],
    model: PreTrainedModel,
    of_base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: Spec,
    gaps: dict[str, str],
) -> Iterator[pd.DataFrame]:
    """Yield the rows of every strategy and batch, and with each open-ended batch what people wrote.

    A strategy that runs alone and fails, since the model has not what it needs, goes into ``gaps`` with the reason, and
    leaves the others' texts as they are.
    """
    resume.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(chosen) * len(batches), desc="batches", mininterval=5) as progress:
        for batch in batches:
            suffix = f"{batch.dataset}.{batch.number}"
            files = {(s.name, s.draw): resume / f"{quote(s.name, safe='')}.{s.draw}.{suffix}" for s in chosen}
            # No quoted name has a bracket: this is not a strategy's file.
            written = resume / f"(human).{suffix}"
            wanted = [*files.values(), *([written] if batch.task == "open_ended" else [])]
            if not all(file.exists() for file in wanted):
                read_batch = _ReadBatch(batch, model, of_base, tokenizer, spec)
            if batch.task == "open_ended":
                if not written.exists():
                    _save(read_batch.human(), written)
                yield pd.read_parquet(written)
            for group in rounds(model, chosen, batch, tokenizer):
                progress.set_postfix_str(f"{batch.dataset} {group[0].name}", refresh=False)
                # Those that run together do so again, where one is missing: rounding may depend on the company.
                missing = not all(files[s.name, s.draw].exists() for s in group)
                if missing and not any(s.name in gaps for s in group):
                    for strategy, rows in zip(group, _rows(read_batch, group, gaps), strict=False):
                        _save(rows, files[strategy.name, strategy.draw])
                progress.update(len(group))
            for strategy in chosen:
                if strategy.name not in gaps:
                    yield pd.read_parquet(files[strategy.name, strategy.draw])


def _rows(read_batch: _ReadBatch, group: Sequence[Strategy], gaps: dict[str, str]) -> list[pd.DataFrame]:
    try:
        return read_batch.rows(group)
    except Exception as error:
        if len(group) > 1 or disk_is_full(error):
            raise
        gaps[group[0].name] = " ".join(f"{type(error).__name__}: {error}".split())
        return []


def rounds(
    model: PreTrainedModel, chosen: Sequence[Strategy], batch: Batch, tokenizer: PreTrainedTokenizerBase
) -> list[list[Strategy]]:
    """Return the strategies in the groups that run together on a batch, each at most batching.TOKENS tokens large."""
    mask = torch.ones(1, batch.longest, dtype=torch.long)
    prompts = Prompts(mask, batch.new_tokens, tokenizer)
    joining: list[Strategy] = []
    alone: list[Strategy] = []
    for strategy in chosen:
        parameters = strategy.implementation.parameters(model, strategy.settings, prompts)
        (joining if batching.is_batchable(parameters) else alone).append(strategy)
    size = max(1, batching.TOKENS // (len(batch.prompts) * (batch.longest + batch.new_tokens)))
    joined = [joining[start : start + size] for start in range(0, len(joining), size)]
    return [*joined, *([strategy] for strategy in alone)]


def _save_features(rows: Mapping[str, pd.DataFrame], file: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.array(texts["feature"].tolist(), np.float32) for name, texts in rows.items()}, file)


def _save(rows: pd.DataFrame, file: Path) -> None:
    unfinished = file.with_name(f"{file.name}.part-{os.getpid()}")
    rows.to_parquet(unfinished, index=False)
    unfinished.rename(file)


class Judgement(TypedDict):
    """The answer in a text, or what became of the program, and whether it is right: columns of GENERATIONS."""

    answer: str
    correct: bool
    strict_answer: str
    strict_correct: bool


class Row(Judgement):
    """A generated text: columns of GENERATIONS."""

    item: int
    draw: int
    prompt: str
    text: str
    tokens: list[int]
    finish: Finish


Finish = Literal["eos", "stop", "limit"]
"""What ended a text."""


@dataclass(frozen=True)
class Ended:
    """A generated text: its tokens, with the one that ended it, and what did."""

    tokens: list[int]
    finish: Finish


class _ReadBatch:
    """A batch that both models have read, ready for the strategies."""

    def __init__(
        self,
        batch: Batch,
        model: PreTrainedModel,
        of_base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: Spec,
    ) -> None:
        self.batch, self.model, self.of_base, self.tokenizer = batch, model, of_base, tokenizer
        ids, mask = pad_left(batch.prompts, special_tokens(model)["pad_token_id"])
        self.ids, self.mask = ids.to(model.device), mask.to(model.device)
        self.reading = read(model, self.ids, self.mask)
        self.opened = batch.task == "open_ended"
        self.base_reading: Reading | None = None
        if self.opened:
            self.base_reading = self.reading if of_base is model else read(of_base, self.ids, self.mask)
        self.spec = spec
        self.limits = spec.code_tasks

    def rows(self, group: Sequence[Strategy]) -> list[pd.DataFrame]:
        """Return the rows of ``generations.parquet`` for this batch under each strategy of a group of ``rounds``."""
        start = time.perf_counter()
        generated = self._generate(group)
        seconds = time.perf_counter() - start
        return [self._table(strategy, texts, seconds) for strategy, texts in zip(group, generated, strict=True)]

    def _generate(self, group: Sequence[Strategy]) -> list[list[Ended]]:
        batch = self.batch
        prompts = Prompts(self.mask, batch.new_tokens, self.tokenizer)
        ways = [strategy.implementation.parameters(self.model, strategy.settings, prompts) for strategy in group]
        stops = [(*batch.stops, *way.stop) for way in ways]
        seeds = [draw_seed(self.spec, batch, strategy) for strategy in group]
        if len(group) == 1:
            strategy = group[0]
            generated = [
                generate(
                    strategy.implementation,
                    self.model,
                    self.ids,
                    self.mask,
                    batch.new_tokens,
                    strategy.settings,
                    seeds[0],
                    reading=self.reading,
                    stops=Stops(self.tokenizer, stops[0]),
                )
            ]
        else:
            length = self.ids.shape[1]
            generated = batching.continuations(
                self.model,
                self.ids,
                self.mask,
                batch.new_tokens,
                ways,
                seeds,
                self.reading,
                stopping=[StopsAt(self.tokenizer, strings, length) if strings else None for strings in stops],
            )
        return [
            [self._cut(tokens, strings) for tokens in texts.tolist()]
            for texts, strings in zip(generated, stops, strict=True)
        ]

    def _cut(self, tokens: list[int], stops: Sequence[str]) -> Ended:
        """Leave out what follows a text's end, which is padding."""
        ends = end_tokens(self.model)
        whole = until_end(tokens, ends)
        stopped = stop_position(self.tokenizer, whole, stops)
        if stopped is not None:
            return Ended(whole[:stopped], "stop")
        return Ended(whole, "eos" if whole[-1] in ends else "limit")

    def _table(self, strategy: Strategy, texts: list[Ended], seconds: float) -> pd.DataFrame:
        nll: list[float] = [math.nan] * len(texts)
        features: Sequence[Any] = [None] * len(texts)
        if self.opened:
            tokens = [text.tokens for text in texts]
            nll = score_continuations(self.of_base, self.ids, self.mask, tokens, self.base_reading)
            features = self._features(tokens)
        return pd.DataFrame(
            [
                {
                    "strategy": strategy.name,
                    "settings": strategy.description,
                    "task": self.batch.task,
                    "dataset": self.batch.dataset,
                    **self._row(prompt, strategy.draw, text),
                    "base_nll": value,
                    "seconds": seconds,
                    "feature": feature,
                }
                for prompt, text, value, feature in zip(self.batch.prompts, texts, nll, features, strict=True)
            ]
        )

    def _features(self, texts: Sequence[list[int]]) -> Sequence[list[float] | None]:
        return text_features(self.of_base, texts) if self.batch.featured and texts else [None] * len(texts)

    def human(self) -> pd.DataFrame:
        """Return the rows of ``human.parquet`` for this batch: what people wrote behind its prompts."""
        written = [row for row, prompt in enumerate(self.batch.prompts) if prompt.human]
        texts = [(self.batch.prompts[row].human or [])[: self.batch.new_tokens] for row in written]
        reading = self.base_reading if len(written) == len(self.batch.prompts) else None
        nll: list[float] = []
        if written:
            ids, mask = self.ids[written], self.mask[written]
            nll = score_continuations(self.of_base, ids, mask, texts, reading)
        return pd.DataFrame(
            {
                "dataset": self.batch.dataset,
                "item": [self.batch.prompts[row].item for row in written],
                "text": [
                    decode_continuation(
                        self.tokenizer, self.batch.prompts[row].tokens, self.batch.prompts[row].human or []
                    )
                    for row in written
                ],
                "tokens": texts,
                "base_nll": nll,
                "feature": self._features(texts),
            }
        ).astype({"item": "int64", "base_nll": "float64"})

    def _row(self, prompt: Prompt, draw: int, ended: Ended) -> Row:
        text = decode_continuation(self.tokenizer, prompt.tokens, ended.tokens)
        return {
            "item": prompt.item,
            "draw": draw,
            "prompt": prompt.text,
            "text": text,
            "tokens": ended.tokens,
            "finish": ended.finish,
            **self._judge(prompt, text),
        }

    def _judge(self, prompt: Prompt, text: str) -> Judgement:
        """Return the answer, or what became of the program, and whether it is right; nothing without a question."""
        if prompt.tests is not None:
            status = self._run(prompt, text)
            return judged(status, status == "passed")
        if prompt.right is None:
            return judged("", False)
        if not prompt.worked:
            answer = extract(text, prompt.right)
            return judged(answer, is_right(answer, prompt.right))
        solution = before_stop(text, self.batch.stops)
        answer, strict = flexible_number(solution), strict_number(solution)
        return {
            "answer": answer,
            "correct": plain_number(answer) == prompt.right,
            "strict_answer": strict,
            "strict_correct": plain_number(strict) == prompt.right,
        }

    def _run(self, prompt: Prompt, text: str) -> str:
        if self.limits is None:
            raise ValueError(f"code_tasks: limits are wanted for {self.batch.dataset}")
        # Found by name: only sweeps with code tasks depend on it, and the plan says which.
        sandbox = importlib.import_module("hemorrhage.sandbox.runner")
        program = f"{prompt.prefix}{before_stop(text, self.batch.stops)}"
        checks = sandbox.Checks(prompt.tests, prompt.asked, prompt.given)
        status: str = sandbox.run(program, self.limits.seconds, self.limits.memory_mb, checks).status
        return status


def judged(answer: str, correct: bool) -> Judgement:
    """Return the judgement of a task that reads answers in one way."""
    return {"answer": answer, "correct": correct, "strict_answer": answer, "strict_correct": correct}


def draw_seed(spec: Spec, batch: Batch, strategy: Strategy) -> int:
    """Return the seed of a strategy's draws for a batch, the same for every variant.

    Two variants that sample from nearly the same distributions draw nearly the same texts, which makes their difference
    easier to measure. Strategies draw independently of one another, unless the spec asks for common random numbers:
    with those, samplers that truncate little are near copies, and what they agree in is no second observation.
    """
    own = getattr(strategy.settings, "seed", None)
    key = f"{spec.seed if own is None else own} {batch.dataset} {batch.number} {strategy.draw}"
    if spec.random_numbers == "independent":
        key = f"{key} {strategy.name}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1


def decode_continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], tokens: list[int]) -> str:
    """Return the text of ``tokens`` as they follow ``prompt``, special tokens left out.

    Decoded with the prompt, because a sentencepiece decoder drops the space in front of what it decodes.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = str(tokenizer.decode(prompt, **options))
    whole = str(tokenizer.decode([*prompt, *tokens], **options))
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(tokens, **options))


def score_continuations(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    texts: Sequence[list[int]],
    reading: Reading | None,
) -> list[float]:
    """Return the mean negative log-likelihood of ``texts`` by ``model`` behind the prompts, nats per token.

    ``texts`` are not empty; an end-of-sequence token counts as one of theirs. ``reading`` is what ``model`` has read of
    the prompts.
    """
    from transformers import DynamicCache

    longest = max(map(len, texts))
    lengths = torch.tensor([len(text) for text in texts], device=input_ids.device)
    targets = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=input_ids.device)
    tokens = torch.cat([input_ids[:, -1:], targets[:, :-1]], dim=1)
    # Filling behind a text's end needs no mask: nothing in front of it attends to it.
    mask = torch.cat([attention_mask, attention_mask.new_ones(len(texts), longest - 1)], dim=1)
    if reading is None:
        cache: Cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        tokens = torch.cat([input_ids[:, :-1], tokens], dim=1)
    else:
        cache = reading.copied_cache()
    with torch.no_grad():
        logits, _ = forward(model, tokens, mask, cache, logits=longest)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    inside = torch.arange(longest, device=lengths.device) < lengths[:, None]
    means: list[float] = ((nll.view_as(targets) * inside).sum(1) / lengths).tolist()
    return means


def text_features(model: PreTrainedModel, texts: Sequence[list[int]]) -> list[list[float]]:
    """Return what MAUVE compares of each of ``texts``, lists of tokens that are not empty: floats [texts, width].

    It is the mean of the final hidden states at a text's tokens, each text read alone, behind the token that begins a
    text: behind its prompt it would hold the prompt, which the person's text shares. The first token's own state is
    left out: attention sinks there, and it is the same for all.
    """
    from transformers import DynamicCache

    known, longest = special_tokens(model), max(map(len, texts))
    begin = known["pad_token_id"] if known["bos_token_id"] is None else known["bos_token_id"]
    tokens = torch.tensor([[begin, *text] + [0] * (longest - len(text)) for text in texts], device=model.device)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with torch.no_grad():
        # Filling behind a text's end needs no mask: nothing in front of it attends to it.
        _, states = forward(model, tokens, torch.ones_like(tokens), cache)
    lengths = torch.tensor([len(text) for text in texts], device=states.device)[:, None]
    inside = torch.arange(longest, device=states.device) < lengths
    means: list[list[float]] = ((states[:, 1:].float() * inside[..., None]).sum(1) / lengths).tolist()
    return means
