"""Step ``reference``: the base model's side of every comparison, computed once.

    python -m hemorrhage.evaluate.reference OUT --base DIR --texts DIR... --tasks DIR... --spec JSON
        --memory-gb GB

Windows are consecutive and do not overlap; where fewer are asked for than the text has, they are spread
evenly over it. Those of a ``stage`` are a choice of their own: none is among the windows that references of ``avoided``
numbers of windows have, and only what a verdict needs is measured on them. Those of a user's file stay inside a
segment, a conversation say, and may score some tokens only (hemorrhage.evaluate.segments). A model whose tokenizer adds
BOS sees it at the start of each window, in the place of the window's first token. All of this is the protocol, and the
protocol is part of every metric's identity. A model that would take more than ``--memory-gb`` is read block by block,
with the same numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.evaluate import membership
from hemorrhage.evaluate.choices import answers
from hemorrhage.evaluate.diagnostics import collect
from hemorrhage.evaluate.language import SCORED, write_base_side
from hemorrhage.evaluate.precision import compute_in
from hemorrhage.evaluate.schema import ANSWERS, WINDOWS
from hemorrhage.evaluate.segments import Segmented, cut_segments, spread_evenly
from hemorrhage.models.checkpoint import load, load_tokenizer, size
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import Manifest, read_manifest, sha256, write_manifest, writing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast


class CorpusFields(TypedDict):
    """A corpus's entry in the manifest: digest of its text, and all that a metric depends on but model and text."""

    sha256: str
    protocol: str


class TaskFields(CorpusFields):
    """A task's entry in the manifest; ``chance``: what guessing gets right."""

    chance: float


class DiagnosticsFields(CorpusFields):
    """The diagnostics' entry in the manifest; ``corpus``: the one whose windows they are of."""

    corpus: str


class ReferenceManifest(Manifest, total=False):
    """The manifest of the base model's side."""

    corpora: dict[str, CorpusFields]
    tasks: dict[str, TaskFields]
    first_predicted: int
    diagnostics: DiagnosticsFields | None
    dtype: str
    stage: str
    membership: dict[str, membership.Membership]


class TextManifest(Manifest, total=False):
    """The manifest of a text, as far as it is read here; ``join``: what its documents are joined with; ``score``: all
    tokens or the assistant's, of a user's file."""

    corpus: str
    sha256: str
    join: str
    score: str


@dataclass(frozen=True)
class Text:
    """A text and its windows int32 ``[n, window]``; ``tokens``: its evaluation split, int32 ``[n]``.

    ``unmeasured``: windows of the calibration split, None where it is too short. ``segmented``: the windows of a user's
    file.
    """

    corpus: str
    sha256: str
    tokens: torch.Tensor
    windows: torch.Tensor
    protocol: str
    unmeasured: torch.Tensor | None
    segmented: Segmented | None


class TaskManifest(Manifest, total=False):
    """The manifest of a task, as far as it is read here."""

    task: str
    sha256: str
    chance: float
    items: int


class DiagnosticsSpec(TypedDict):
    """Windows of the diagnostics, none for 0, and the tokens of each."""

    windows: int
    window: int


class Spec(TypedDict):
    """Windows of the evaluation, or ``"all"``, the tokens of each, and the dtype of products."""

    window: int
    windows: int | Literal["all"]
    dtype: str
    diagnostics: DiagnosticsSpec
    stage: NotRequired[str]
    avoided: NotRequired[list[int]]


FILES = ("windows", "counts", "hidden", "figures", "top")
"""Safetensors files of every reference."""


def cut_windows(
    tokens: torch.Tensor, window: int, count: int | str, leading: Sequence[int], avoided: Sequence[int] = ()
) -> torch.Tensor:
    """Cut ``count`` (or ``"all"``) windows of a token stream: int32 ``[count, window]`` of int32 ``[n]``.

    Each begins with the tokens ``leading`` that the tokenizer puts in front of a text. ``avoided``: see
    hemorrhage.evaluate.segments.spread_evenly.

    Raises ValueError when the stream is too short.
    """
    taken = window - len(leading)
    available = len(tokens) // taken
    wanted = available if count == "all" else int(count)
    if available < (2 if avoided else max(wanted, 2)):
        raise ValueError(f"{len(tokens)} tokens make {available} windows of {window}, not {max(wanted, 2)}")
    grid = tokens[: available * taken].view(available, taken)
    chosen = grid[spread_evenly(available, wanted, avoided)]
    return torch.cat([torch.tensor(leading, dtype=chosen.dtype).expand(len(chosen), -1), chosen], dim=1)


def _control(tokens: torch.Tensor | None, window: int, leading: Sequence[int]) -> torch.Tensor | None:
    """Return the windows of the calibration split, as many as there are; None where they are fewer than two."""
    if tokens is None or len(tokens) < 2 * window:
        return None
    return cut_windows(tokens, window, "all", leading)


def first_predicted(leading: Sequence[int]) -> int:
    """Return the position of the first token of a window that is predicted: none of ``leading`` is, nor a first one."""
    return max(len(leading), 1)


def protocol(
    window: int,
    windows: int,
    available: int,
    leading: Sequence[int],
    join: str,
    dtype: str = "float32",
    predicted: int | None = None,
) -> str:
    """Return all that a perplexity depends on but model and text, as one string; ``predicted``: tokens, where not all
    are."""
    if predicted is None:
        predicted = windows * (window - first_predicted(leading))
    return (
        f"window={window} stride={window} windows={windows}/{available} bos={len(leading)} "
        f"join={json.dumps(join)} predicted={predicted} dtype={dtype}"
    )


def cut_text(folder: Path, spec: Spec, leading: Sequence[int]) -> Text:
    """Cut the evaluation split of a prepared text into windows.

    Raises InputError where it is too short.
    """
    manifest, splits = read_manifest(folder, TextManifest), load_file(folder / "tokens.safetensors")
    tokens, corpus, join = splits["evaluation"], manifest["corpus"], manifest["join"]
    window, count, dtype, avoided = int(spec["window"]), spec["windows"], spec["dtype"], spec.get("avoided", ())
    stage = f" stage={spec['stage']}" if "stage" in spec else ""
    segments = folder / "segments.parquet"
    try:
        if segments.is_file():
            cut = cut_segments(tokens, splits["scored"], pd.read_parquet(segments), window, count, leading, avoided)
            of_windows = protocol(
                window, len(cut.windows), cut.available, leading, join, dtype, predicted=int(cut.scored.sum())
            )
            stated = f"{of_windows} cut=segments score={manifest['score']}{stage}"
            return Text(corpus, manifest["sha256"], tokens, cut.windows, stated, None, cut)
        windows = cut_windows(tokens, window, count, leading, avoided)
    except ValueError as error:
        raise step.InputError(f"corpus {corpus}: {error}") from error
    available = len(tokens) // (window - len(leading))
    stated = protocol(window, len(windows), available, leading, join, dtype) + stage
    unmeasured = None if stage else _control(splits.get("calibration"), window, leading)
    return Text(corpus, manifest["sha256"], tokens, windows, stated, unmeasured, None)


def spread(windows: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` of the windows int32 ``[n, window]``, evenly spread. Raises ValueError where there are fewer."""
    if count > len(windows):
        raise ValueError(f"diagnostics.windows: {count} wanted, and evaluate.windows leaves {len(windows)}")
    return windows[[index * len(windows) // count for index in range(count)]]


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return the bytes of text that each token stands for, int64 ``[vocabulary]``; special tokens stand for none.

    Exact where a token holds a part of a character, too. A byte-level tokenizer writes each byte as one character;
    others write a space as U+2581 and bytes that are in no piece as ``<0xE2>``.
    """
    backend = tokenizer.backend_tokenizer
    byte_level = '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])
    added = backend.get_added_tokens_decoder()
    sizes = torch.zeros(max(backend.get_vocab().values()) + 1, dtype=torch.int64)
    for piece, token in backend.get_vocab().items():
        if token in added:
            sizes[token] = 0 if added[token].special else len(added[token].content.encode())
        elif byte_level:
            sizes[token] = len(piece)
        elif re.fullmatch("<0x[0-9A-F]{2}>", piece):
            sizes[token] = 1
        else:
            sizes[token] = len(piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode())
    return sizes


def text_sizes(
    windows: torch.Tensor, tokenizer: PreTrainedTokenizerFast, corpus: str, first_place: int = 1
) -> pd.DataFrame:
    """Tokens, words and bytes that are predicted in each of the windows int32 ``[n, window]``; columns as in WINDOWS.

    Those before ``first_place`` are not predicted.

    Words are what is between white space, counted where they begin: one that the first token, which is not
    predicted, begins is not counted.
    """
    sizes = token_bytes(tokenizer)
    backend = tokenizer.backend_tokenizer
    first, whole = (backend.decode_batch(part.tolist()) for part in (windows[:, :first_place], windows))
    return pd.DataFrame(
        {
            "corpus": corpus,
            "window": range(len(windows)),
            "tokens": windows.shape[1] - first_place,
            "words": [len(text.split()) - len(start.split()) for text, start in zip(whole, first, strict=True)],
            "bytes": sizes[windows[:, first_place:].long()].sum(1).numpy(),
        }
    )


def _sizes(text: Text, tokenizer: PreTrainedTokenizerFast, first_place: int) -> pd.DataFrame:
    """Return WINDOWS' rows of a text, with the category of each where it has some."""
    if text.segmented is None:
        return text_sizes(text.windows, tokenizer, text.corpus, first_place)
    sizes = scored_sizes(text.windows, text.segmented.scored, tokenizer, text.corpus)
    return sizes.assign(category=text.segmented.categories) if any(text.segmented.categories) else sizes


def scored_sizes(
    windows: torch.Tensor, scored: torch.Tensor, tokenizer: PreTrainedTokenizerFast, corpus: str
) -> pd.DataFrame:
    """Return the same of windows int32 ``[n, window]`` of which the tokens of ``scored`` are, bool ``[n, window]``.

    A word counts where it begins in a scored token.
    """
    backend = tokenizer.backend_tokenizer
    words, outside = [], torch.zeros(1, dtype=torch.int32)
    for window, mask in zip(windows.tolist(), scored, strict=True):
        # Where scored tokens begin and end: every run adds the words up to its end, less those before it.
        edges = torch.diff(mask.int(), prepend=outside, append=outside).nonzero()[:, 0].tolist()
        until = [len(text.split()) for text in backend.decode_batch([window[:edge] for edge in edges])]
        words.append(sum(until[1::2]) - sum(until[0::2]))
    sizes = token_bytes(tokenizer)[windows.long()] * scored
    return pd.DataFrame(
        {
            "corpus": corpus,
            "window": range(len(windows)),
            "tokens": scored.sum(1).numpy(),
            "words": words,
            "bytes": sizes.sum(1).numpy(),
        }
    )


def reference(
    out: Path, base: Path, texts: list[Path], tasks: list[Path], spec: Spec, memory_gb: float = math.inf
) -> None:
    """Write the base model's side. Raises ValueError where a text is too short and where the model is broken."""
    model = load(base, streamed=(size(base) or 0) > 1e9 * memory_gb)
    tokenizer = load_tokenizer(base)
    leading = read_manifest(base)["leading"]
    vocabulary = model.get_output_embeddings().weight.shape[0]

    cut = [cut_text(text, spec, leading) for text in texts]
    windows = {text.corpus: text.windows for text in cut}
    counts = {text.corpus: torch.bincount(text.tokens, minlength=vocabulary) for text in cut}
    scored = {text.corpus: text.segmented.scored for text in cut if text.segmented}
    corpora: dict[str, CorpusFields] = {text.corpus: {"sha256": text.sha256, "protocol": text.protocol} for text in cut}

    of_tasks: dict[str, TaskFields] = {}
    answered = []
    stage = f" stage={spec['stage']}" if "stage" in spec else ""
    for folder in tasks:
        task = read_manifest(folder, TaskManifest)
        with compute_in(model, spec["dtype"]):
            answered.append(answers(model, tokenizer, folder).assign(task=task["task"]))
        of_tasks[task["task"]] = {
            "sha256": task["sha256"],
            "chance": task["chance"],
            "protocol": f"choice=summed-log-likelihood items={task['items']} shots=0 dtype={spec['dtype']}{stage}",
        }

    first = next(iter(windows))
    diagnosed: DiagnosticsFields | None = None
    with writing(out) as part:
        save_file(windows, part / "windows.safetensors")
        save_file(counts, part / "counts.safetensors")
        if scored:
            save_file(scored, part / SCORED)
        with compute_in(model, spec["dtype"]):
            write_base_side(model, windows, part)
        first_place = first_predicted(leading)
        sizes = pd.concat([_sizes(text, tokenizer, first_place) for text in cut], ignore_index=True)
        if "category" in sizes:
            sizes["category"] = sizes["category"].fillna("")
        WINDOWS.validate(sizes).to_parquet(part / "windows.parquet", index=False)
        if answered:
            columns = list(ANSWERS.columns)
            ANSWERS.validate(pd.concat(answered, ignore_index=True)[columns]).to_parquet(part / "items.parquet")
        if spec["diagnostics"]["windows"]:
            of_first = spread(windows[first], spec["diagnostics"]["windows"])[
                :, : spec["diagnostics"]["window"]
            ].contiguous()
            save_file(collect.base_side(model, of_first), part / "diagnostics.safetensors")
            diagnosed = {
                "corpus": first,
                "sha256": corpora[first]["sha256"],
                "protocol": collect.protocol(*of_first.shape),
            }
        write_manifest(
            part,
            corpora=corpora,
            tasks=of_tasks,
            first_predicted=first_place,
            diagnostics=diagnosed,
            dtype=spec["dtype"],
            **({"stage": spec["stage"]} if "stage" in spec else {}),
            membership={
                text.corpus: membership.membership_scores(model, text.windows, text.unmeasured)
                for text in cut
                if text.unmeasured is not None
            },
            sha256={name: sha256(part / f"{name}.safetensors") for name in FILES},
        )


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.evaluate.reference")
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--tasks", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--spec",
        type=json.loads,
        required=True,
        help="{dtype, window, windows, diagnostics: {windows, window}}: of products, tokens, windows of a corpus, and"
        " what the diagnostics read: the first tokens of so many windows of the first corpus",
    )
    parser.add_argument("--memory-gb", type=float, default=math.inf, help="above it a model is read block by block")
    arguments = parser.parse_args()
    step.start()
    reference(arguments.out, arguments.base, arguments.texts, arguments.tasks, arguments.spec, arguments.memory_gb)


if __name__ == "__main__":
    main()
