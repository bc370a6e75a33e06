"""The decode sweep of one variant: every strategy on the same batches of prompts, resumable by batch.

A batch of prompts is read once by the variant and once by the base model; the strategies start from copies
of what that left in the cache. Finished batches lie in ``<out>.resume`` until the output is in place.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from tqdm import tqdm

from hemorrhage.artifact import read_manifest, write_manifest, writing
from hemorrhage.decode.answers import extract, final_number, is_right
from hemorrhage.decode.generation import (
    Reading,
    check_context,
    ends,
    forward,
    generate,
    read,
    special_tokens,
    until_end,
)
from hemorrhage.decode.prompts import Prompt, closed_prompts, left_padded, open_prompts, uses_chat
from hemorrhage.decode.schema import GENERATIONS, HUMAN
from hemorrhage.decode.spec import Spec
from hemorrhage.lazy import torch
from hemorrhage.models.checkpoint import load, load_tokenizer

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Strategy:
    """A strategy of the sweep under its name in params.yaml."""

    name: str
    module: str
    settings: Any
    chooses: ModuleType

    @property
    def description(self) -> str:
        """JSON of the module and all its settings, those left at their defaults too."""
        return json.dumps({"strategy": self.module, **self.settings.model_dump()}, sort_keys=True)


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated at once: ``number`` counts within the data set."""

    task: str
    dataset: str
    number: int
    new_tokens: int
    prompts: Sequence[Prompt]


def strategies(entries: Mapping[str, Mapping[str, Any]]) -> list[Strategy]:
    """The strategies of a spec. Raises ValueError (pydantic's) where settings are impossible."""
    found = []
    for name, entry in entries.items():
        if "strategy" not in entry:
            raise ValueError(f"strategies.{name}: the key strategy is missing")
        module = importlib.import_module(f"hemorrhage.decode.{entry['strategy']}")
        settings = module.Settings(**{key: value for key, value in entry.items() if key != "strategy"})
        found.append(Strategy(name, entry["strategy"], settings, module))
    return found


def resume_directory(out: Path) -> Path:
    """Where the finished batches of a job lie until its output is in place."""
    return out.with_name(f"{out.name}.resume")


def sweep(out: Path, variant: str, checkpoint: Path, base: Path, text: Path, task: Path, spec: Spec) -> None:
    """Generate everything ``spec`` asks for and write the output directory ``out``.

    Raises ValueError, before anything is generated, for prompts that are empty, too few or too long for the
    model, and for settings that the model cannot follow.
    """
    chosen = strategies(spec.strategies)
    tokenizer = load_tokenizer(base)
    chat = uses_chat(tokenizer, spec.chat)
    closed = closed_prompts(task, tokenizer, spec.closed, spec.seed, chat)
    beginnings = open_prompts(text, tokenizer, spec.open, spec.seed, chat)
    batches = [
        *_batches("closed", read_manifest(task)["task"], closed, spec.closed.new_tokens, spec.batch),
        *_batches("open", read_manifest(text)["corpus"], beginnings, spec.open.new_tokens, spec.batch),
    ]
    model = load(checkpoint)
    of_base = model if checkpoint.resolve() == base.resolve() else load(base)
    for batch in batches:
        longest = max(len(prompt.tokens) for prompt in batch.prompts)
        check_context(model, longest, batch.new_tokens, f"{batch.task} prompts of {batch.dataset}")

    parts = list(_parts(resume_directory(out), chosen, batches, model, of_base, tokenizer, spec.seed))
    rank = {strategy.name: position for position, strategy in enumerate(chosen)}
    rows = pd.concat([part for part in parts if "strategy" in part], ignore_index=True)
    rows["rank"] = rows["strategy"].map(rank)
    rows = rows.sort_values(["rank", "task", "item"]).drop(columns="rank")
    human = pd.concat([part for part in parts if "strategy" not in part], ignore_index=True).sort_values("item")
    features = {f"strategy.{name}": found for name, found in rows[rows["task"] == "open"].groupby("strategy")}
    with writing(out) as part:
        GENERATIONS.validate(rows.drop(columns="feature")).to_parquet(part / "generations.parquet", index=False)
        HUMAN.validate(human.drop(columns="feature")).to_parquet(part / "human.parquet", index=False)
        _save_features({**features, "human": human}, part / "features.safetensors")
        write_manifest(part, **about(variant, text, task, spec))


def about(variant: str, text: Path, task: Path, spec: Spec) -> dict[str, Any]:
    """What the manifest says of a decode output, a failed one too.

    ``protocol`` is how the texts were made, but for the strategy: texts of one protocol are comparable.
    """
    closed, beginnings = read_manifest(task), read_manifest(text)
    return {
        "variant": variant,
        "datasets": {
            closed["task"]: {"sha256": closed["sha256"]},
            beginnings["corpus"]: {"sha256": beginnings["sha256"]},
        },
        "protocol": f"closed: items={spec.closed.items} new_tokens={spec.closed.new_tokens}; "
        f"open: items={spec.open.items} prefix={spec.open.prefix} new_tokens={spec.open.new_tokens}; "
        f"batch={spec.batch}{_asking(text, task, spec)}",
        "seed": spec.seed,
    }


def _asking(text: Path, task: Path, spec: Spec) -> str:
    """How questions and instructions are put; nothing where there are only prompts to continue."""
    shots = f"; shots={spec.closed.shots}" if (task / "shots.parquet").is_file() else ""
    asked = shots or (text / "items.parquet").is_file()
    return f"{shots}; chat={spec.chat}" if asked else ""


def _batches(task: str, dataset: str, prompts: list[Prompt], new_tokens: int, size: int) -> Iterator[Batch]:
    # Prompts of one length stand together: little padding is read.
    prompts = sorted(prompts, key=lambda prompt: len(prompt.tokens))
    for number, start in enumerate(range(0, len(prompts), size)):
        yield Batch(task, dataset, number, new_tokens, prompts[start : start + size])


def _parts(
    resume: Path,
    chosen: Sequence[Strategy],
    batches: Sequence[Batch],
    model: PreTrainedModel,
    of_base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> Iterator[pd.DataFrame]:
    """The rows of every strategy and batch, and with each open batch what people wrote."""
    resume.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(chosen) * len(batches), desc="batches", mininterval=5) as progress:
        for batch in batches:
            parts = {s.name: resume / f"{quote(s.name, safe='')}.{batch.task}.{batch.number}" for s in chosen}
            waiting = [strategy for strategy in chosen if not parts[strategy.name].exists()]
            # No quoted name has a bracket: this is not a strategy's file.
            written = resume / f"(human).{batch.task}.{batch.number}"
            if waiting or not written.exists():
                desk = _Desk(batch, model, of_base, tokenizer, seed)
            if batch.task == "open":
                if not written.exists():
                    _save(desk.human(), written)
                yield pd.read_parquet(written)
            for strategy in chosen:
                progress.set_postfix_str(f"{batch.task} {strategy.name}", refresh=False)
                if strategy in waiting:
                    _save(desk.rows(strategy), parts[strategy.name])
                yield pd.read_parquet(parts[strategy.name])
                progress.update()


def _save_features(rows: Mapping[str, pd.DataFrame], file: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.array(found["feature"].tolist(), np.float32) for name, found in rows.items()}, file)


def _save(rows: pd.DataFrame, file: Path) -> None:
    unfinished = file.with_name(f"{file.name}.part-{os.getpid()}")
    rows.to_parquet(unfinished, index=False)
    unfinished.rename(file)


class _Desk:
    """A batch that both models have read, ready for the strategies."""

    def __init__(
        self,
        batch: Batch,
        model: PreTrainedModel,
        of_base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
    ) -> None:
        self.batch, self.model, self.of_base, self.tokenizer = batch, model, of_base, tokenizer
        ids, mask = left_padded(batch.prompts, special_tokens(model)["pad_token_id"])
        self.ids, self.mask = ids.to(model.device), mask.to(model.device)
        self.reading = read(model, self.ids, self.mask)
        self.base_reading = self.reading if of_base is model else read(of_base, self.ids, self.mask)
        self.seed = batch_seed(seed, batch)

    def rows(self, strategy: Strategy) -> pd.DataFrame:
        """The rows of ``generations.parquet`` for this batch under ``strategy``."""
        start = time.perf_counter()
        generated = generate(
            strategy.chooses,
            self.model,
            self.ids,
            self.mask,
            self.batch.new_tokens,
            strategy.settings,
            self.seed,
            reading=self.reading,
        ).tolist()
        seconds = time.perf_counter() - start
        stops = ends(self.model)
        texts = [until_end(tokens, stops) for tokens in generated]
        nll, features = under(self.of_base, self.ids, self.mask, texts, self.base_reading)
        return pd.DataFrame(
            [
                {
                    "strategy": strategy.name,
                    "settings": strategy.description,
                    "task": self.batch.task,
                    "dataset": self.batch.dataset,
                    **self._row(prompt, tokens),
                    "base_nll": value,
                    "seconds": seconds,
                    "feature": feature if self.batch.task == "open" else None,
                }
                for prompt, tokens, value, feature in zip(self.batch.prompts, texts, nll, features, strict=True)
            ]
        )

    def human(self) -> pd.DataFrame:
        """The rows of ``human.parquet`` for this batch: what people wrote behind its prompts."""
        there = [row for row, prompt in enumerate(self.batch.prompts) if prompt.human]
        texts = [(self.batch.prompts[row].human or [])[: self.batch.new_tokens] for row in there]
        reading = self.base_reading if len(there) == len(self.batch.prompts) else None
        nll, features = under(self.of_base, self.ids[there], self.mask[there], texts, reading) if there else ([], [])
        return pd.DataFrame(
            {
                "dataset": self.batch.dataset,
                "item": [self.batch.prompts[row].item for row in there],
                "text": [
                    continued_text(self.tokenizer, self.batch.prompts[row].tokens, self.batch.prompts[row].human or [])
                    for row in there
                ],
                "tokens": texts,
                "base_nll": nll,
                "feature": features,
            }
        ).astype({"item": "int64", "base_nll": "float64"})

    def _row(self, prompt: Prompt, tokens: list[int]) -> dict[str, Any]:
        text = continued_text(self.tokenizer, prompt.tokens, tokens)
        answer = ""
        if prompt.right is not None:
            answer = final_number(text) if prompt.worked else extract(text, prompt.right)
        return {
            "item": prompt.item,
            "prompt": prompt.text,
            "text": text,
            "tokens": tokens,
            "answer": answer,
            "correct": prompt.right is not None and is_right(answer, prompt.right),
        }


def batch_seed(seed: int, batch: Batch) -> int:
    """The seed of a batch's draws, the same for every strategy and variant.

    Common random numbers: two variants that sample from nearly the same distributions draw nearly the same
    texts, which makes their difference easier to measure.
    """
    key = f"{seed} {batch.dataset} {batch.number}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1


def continued_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], tokens: list[int]) -> str:
    """The text of ``tokens`` as they stand behind ``prompt``, special tokens left out.

    Decoded with the prompt, because a sentencepiece decoder drops the space in front of what it decodes.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = str(tokenizer.decode(prompt, **options))
    whole = str(tokenizer.decode([*prompt, *tokens], **options))
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(tokens, **options))


def under(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    texts: Sequence[list[int]],
    reading: Reading | None,
) -> tuple[list[float], list[list[float]]]:
    """What ``model`` makes of ``texts`` as continuations of the prompts.

    Mean negative log-likelihood in nats per token, and the mean [width] of the final hidden states from which the
    model predicts them. ``texts`` are not empty; an end-of-sequence token counts as one of theirs. ``reading`` is
    what ``model`` has read of the prompts.
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
        logits, states = forward(model, tokens, mask, cache, logits=longest)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    inside = torch.arange(longest, device=lengths.device) < lengths[:, None]
    means = (states[:, -longest:].float() * inside[..., None]).sum(1) / lengths[:, None]
    return ((nll.view_as(targets) * inside).sum(1) / lengths).tolist(), means.tolist()
