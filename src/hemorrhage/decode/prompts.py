"""Prompts that the strategies continue: task items with a right answer, beginnings of documents, instructions."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from hemorrhage.decode.answers import plain_number
from hemorrhage.decode.spec import ClosedEnded, OpenEnded
from hemorrhage.models.checkpoint import load_tokenizer
from hemorrhage.models.tokenizer import leading
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALCULATION = re.compile(r"<<[^>]*>>")
"""GSM8K's calculator annotations, as in ``48/2 = <<48/2=24>>24``."""

TO_THE_NUMBER = "Think step by step. End with a line that holds #### and the final number alone."
TO_THE_POINT = "Summarize the article in one sentence."


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    ``right`` is the right answer of a closed-ended task, None where there is none; it is the ``plain_number`` of a
    solution where it is ``worked``. ``tests`` decide about the program that ``prefix`` and the continuation make, None
    where it is none; ``asked`` and ``given`` are as in hemorrhage.sandbox.runner.Checks. ``human`` are the tokens that
    a person wrote behind the prompt, None where nobody did.
    """

    item: int
    text: str
    tokens: list[int]
    right: str | None = None
    worked: bool = False
    prefix: str = ""
    tests: str | None = None
    asked: tuple[str, ...] = ()
    given: str = ""
    human: list[int] | None = None


def closed_prompts(
    task: Path, tokenizer: PreTrainedTokenizerBase, spec: ClosedEnded, seed: int, chat: bool = False
) -> list[Prompt]:
    """Return ``spec.items`` items of a prepared task, drawn with ``seed``, in the order of their items.

    ``task`` holds ``items.parquet`` with the columns ``item, prompt, choices, answer`` of a generated task or ``item,
    prompt, prefix, tests, asked, given`` of a code task, or, as the benchmark step leaves GSM8K,
    ``gsm8k/test.parquet`` and ``gsm8k/train.parquet`` with ``question, answer``. Raises ValueError when the task has
    fewer items or shots, or one of the items has an empty prompt.
    """
    worked = worked_problems(task)
    items = pd.read_parquet(worked or task / "items.parquet")
    if "item" not in items:
        items.insert(0, "item", range(len(items)))
    if len(items) < spec.items:
        raise ValueError(f"closed_ended.items: {spec.items} wanted, the task at {task} has {len(items)}")
    drawn = items.sort_values("item").iloc[sorted(random.Random(seed).sample(range(len(items)), spec.items))]
    column = "question" if "question" in drawn else "prompt"
    for item, prompt in zip(drawn["item"], drawn[column], strict=True):
        if not prompt.strip():
            raise ValueError(f"item {item} of the task at {task} has an empty prompt")
    if "tests" in drawn:
        return program_prompts(drawn, tokenizer)
    if column == "prompt":
        return list(_choice_prompts(drawn, tokenizer))
    if chat or worked is None:
        return worked_prompts(drawn, drawn.iloc[:0], tokenizer, chat)
    shots = pd.read_parquet(worked.with_name("train.parquet"))
    if len(shots) < spec.shots:
        raise ValueError(f"closed_ended.shots: {spec.shots} wanted, the task at {task} has {len(shots)}")
    return worked_prompts(drawn, shots.sample(spec.shots, random_state=seed % 2**32), tokenizer, chat=False)


def worked_problems(task: Path) -> Path | None:
    """Return the problems whose solutions are worked, as the benchmark step of lm-eval's tasks leaves them."""
    return next(task.glob("*/test.parquet"), None)


def program_prompts(items: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Return the problems whose answers are programs: columns ``item, prompt, prefix, tests, asked, given``."""
    prompts = []
    for row in items.itertuples():
        tokens = [*leading(tokenizer), *_tokens(tokenizer, row.prompt)]
        deciding = {"prefix": row.prefix, "tests": row.tests, "asked": tuple(row.asked), "given": row.given}
        prompts.append(Prompt(int(row.item), row.prompt, tokens, **deciding))
    return prompts


def _choice_prompts(items: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> Iterator[Prompt]:
    for row in items.itertuples():
        tokens = [*leading(tokenizer), *_tokens(tokenizer, row.prompt)]
        yield Prompt(int(row.item), row.prompt, tokens, row.choices[row.answer].strip())


def worked_prompts(
    items: pd.DataFrame, shots: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> list[Prompt]:
    """Return the questions whose answers are solutions that end in ``#### number``: columns ``item, question, answer``.

    A chat model is asked without an example. Another one is shown ``shots`` (``question, answer``) in the form
    ``Question: ...``, ``Answer: ...``, calculator annotations left out; the model continues after ``Answer:``.
    """
    examples = "".join(
        f"Question: {row.question.strip()}\nAnswer: {CALCULATION.sub('', row.answer).strip()}\n\n"
        for row in shots.itertuples()
    )
    prompts = []
    for row in items.itertuples():
        question = row.question.strip()
        text = f"{question}\n{TO_THE_NUMBER}" if chat else f"{examples}Question: {question}\nAnswer:"
        tokens = _prompt_tokens(tokenizer, text, chat)
        prompts.append(Prompt(int(row.item), text, tokens, plain_number(row.answer), worked=True))
    return prompts


def open_prompts(
    text: Path, tokenizer: PreTrainedTokenizerBase, spec: OpenEnded, seed: int, chat: bool = False
) -> list[Prompt]:
    """Return ``spec.items`` prompts without a right answer, drawn with ``seed``, in the order of their items.

    ``text`` holds ``documents.parquet``, whose evaluation documents are to be continued, or ``items.parquet`` with
    the columns ``item, document, summary`` (XSum) or ``item, prompt, reference`` (MT-Bench). Raises ValueError where
    there are too few.
    """
    if (text / "documents.parquet").is_file():
        return _continuations(text, tokenizer, spec, seed)
    items = pd.read_parquet(text / "items.parquet")
    if len(items) < spec.items:
        raise ValueError(f"open_ended.items: {spec.items} wanted, {text} has {len(items)}")
    drawn = items.sort_values("item").iloc[sorted(random.Random(seed).sample(range(len(items)), spec.items))]
    if "document" in drawn:
        if spec.prefix is None:
            raise ValueError(f"open_ended.prefix: the articles of {spec.task} need one")
        return summary_prompts(drawn, tokenizer, spec.prefix, chat)
    return instruction_prompts(drawn, tokenizer, chat)


def _continuations(text: Path, tokenizer: PreTrainedTokenizerBase, spec: OpenEnded, seed: int) -> list[Prompt]:
    """Return the first ``spec.prefix`` tokens of documents.

    A document must hold prefix and new tokens, so that the continuation its author wrote is there to
    compare with.
    """
    documents = pd.read_parquet(text / "documents.parquet", filters=[("split", "==", "evaluation")])
    order = list(documents.sort_values("document")[["document", "text"]].itertuples(index=False, name=None))
    random.Random(seed).shuffle(order)
    if spec.prefix is None:
        raise ValueError(f"open_ended.prefix: the documents of {spec.task} need one")
    enough = spec.prefix + spec.new_tokens
    prompts: list[Prompt] = []
    for document, content in tqdm(order, desc="documents", mininterval=5):
        if len(prompts) == spec.items:
            break
        # No token is longer than 64 characters on average; a book need not be tokenised for its first page.
        tokens = _tokens(tokenizer, content[: 64 * enough])
        if len(tokens) >= enough:
            prefix, rest = tokens[: spec.prefix], tokens[spec.prefix : enough]
            shown = str(tokenizer.decode(prefix, clean_up_tokenization_spaces=False))
            prompts.append(Prompt(int(document), shown, [*leading(tokenizer), *prefix], human=rest))
    if len(prompts) < spec.items:
        raise ValueError(
            f"open_ended.items: {spec.items} wanted, the text at {text} has {len(prompts)} evaluation documents "
            f"of at least prefix + new_tokens = {enough} tokens"
        )
    return sorted(prompts, key=lambda prompt: prompt.item)


def summary_prompts(items: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, prefix: int, chat: bool) -> list[Prompt]:
    """Return the articles to sum up: columns ``item, document, summary``; of a document its first ``prefix`` tokens."""
    prompts = []
    for row in items.itertuples():
        tokens = _tokens(tokenizer, row.document.strip())
        article = row.document.strip()
        if len(tokens) > prefix:
            article = str(tokenizer.decode(tokens[:prefix], clean_up_tokenization_spaces=False))
        text = f"{TO_THE_POINT}\n\nArticle: {article}" + ("" if chat else "\n\nSummary:")
        written = _tokens(tokenizer, row.summary.strip() if chat else f" {row.summary.strip()}")
        prompts.append(Prompt(int(row.item), text, _prompt_tokens(tokenizer, text, chat), human=written))
    return prompts


def instruction_prompts(items: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[Prompt]:
    """Instructions: columns ``item, prompt, reference``, lists of turns of which the first counts.

    ``reference`` may be empty. Without chat template an instruction is a question to go on behind.
    """
    prompts = []
    for row in items.itertuples():
        text = row.prompt[0].strip() if chat else f"Question: {row.prompt[0].strip()}\nAnswer:"
        written = None
        if len(row.reference):
            written = _tokens(tokenizer, row.reference[0].strip() if chat else f" {row.reference[0].strip()}")
        prompts.append(Prompt(int(row.item), text, _prompt_tokens(tokenizer, text, chat), human=written))
    return prompts


def uses_chat(tokenizer: PreTrainedTokenizerBase, wanted: bool | None) -> bool:
    """Return whether prompts go through the chat template: as ``wanted``, or where there is one when that is None.

    Raises ValueError when a chat template is wanted and there is none.
    """
    has_template = tokenizer.chat_template is not None
    if wanted and not has_template:
        raise ValueError("chat: true, but the model's tokenizer has no chat template")
    return has_template if wanted is None else wanted


def template_digest(base: Path, wanted: bool | None) -> str | None:
    """Return the SHA-256 of the chat template of a base model that prompts go through; None where they go through none.

    As ``uses_chat``, but that a template which is wanted and not there is None, too.
    """
    if not (base / "tokenizer.json").is_file() or wanted is False:
        return None
    template = load_tokenizer(base).chat_template
    return None if template is None else hashlib.sha256(json.dumps(template).encode()).hexdigest()


def pad_left(prompts: Sequence[Prompt], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``input_ids`` and ``attention_mask``, int64 [prompts, longest], padding on the left."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    ids = torch.full((len(prompts), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, longest - len(prompt.tokens) :] = 1
    return ids, mask


def _prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str, chat: bool) -> list[int]:
    if not chat:
        return [*leading(tokenizer), *_tokens(tokenizer, text)]
    # The template writes the special tokens itself.
    turn: Any = [{"role": "user", "content": text}]
    return _tokens(tokenizer, str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)))


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens
