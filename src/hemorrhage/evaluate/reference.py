"""Step ``reference``: the base model's side of every comparison, computed once.

    python -m hemorrhage.evaluate.reference OUT --base DIR --texts DIR... --tasks DIR... --spec JSON
        --memory-gb GB

Windows are consecutive and do not overlap; where fewer are asked for than the text has, they are spread
evenly over it. A model whose tokenizer adds BOS sees it at the start of each window, in the place of the
window's first token. All of this is the protocol, and the protocol is part of every metric's identity.
A model that would take more than ``--memory-gb`` is read block by block, with the same numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.evaluate import membership
from hemorrhage.evaluate.choices import answers
from hemorrhage.evaluate.diagnostics import collect
from hemorrhage.evaluate.language import write_base_side
from hemorrhage.evaluate.precision import compute_in
from hemorrhage.evaluate.schema import ANSWERS, WINDOWS
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
    membership: dict[str, membership.Membership]


class TextManifest(Manifest, total=False):
    """The manifest of a text, as far as it is read here; ``join``: what its documents are joined with."""

    corpus: str
    sha256: str
    join: str


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


FILES = ("windows", "counts", "hidden", "figures", "top")
"""Safetensors files of every reference."""


def cut_windows(tokens: torch.Tensor, window: int, count: int | str, leading: Sequence[int]) -> torch.Tensor:
    """Cut ``count`` (or ``"all"``) windows of a token stream: int32 ``[count, window]`` of int32 ``[n]``.

    Each begins with the tokens ``leading`` that the tokenizer puts in front of a text.

    Raises ValueError when the stream is too short.
    """
    taken = window - len(leading)
    available = len(tokens) // taken
    wanted = available if count == "all" else int(count)
    if available < wanted or available < 2:
        raise ValueError(f"{len(tokens)} tokens make {available} windows of {window}, not {max(wanted, 2)}")
    grid = tokens[: available * taken].view(available, taken)
    chosen = grid[[index * available // wanted for index in range(wanted)]]
    return torch.cat([torch.tensor(leading, dtype=chosen.dtype).expand(wanted, -1), chosen], dim=1)


def _control(tokens: torch.Tensor | None, window: int, leading: Sequence[int]) -> torch.Tensor | None:
    """Return the windows of the calibration split, as many as there are; None where they are fewer than two."""
    if tokens is None or len(tokens) < 2 * window:
        return None
    return cut_windows(tokens, window, "all", leading)


def first_predicted(leading: Sequence[int]) -> int:
    """Return the position of the first token of a window that is predicted: none of ``leading`` is, nor a first one."""
    return max(len(leading), 1)


def protocol(
    window: int, windows: int, available: int, leading: Sequence[int], join: str, dtype: str = "float32"
) -> str:
    """Return all that a perplexity depends on but model and text, as one string."""
    predicted = windows * (window - first_predicted(leading))
    return (
        f"window={window} stride={window} windows={windows}/{available} bos={len(leading)} "
        f"join={json.dumps(join)} predicted={predicted} dtype={dtype}"
    )


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


def reference(
    out: Path, base: Path, texts: list[Path], tasks: list[Path], spec: Spec, memory_gb: float = math.inf
) -> None:
    """Write the base model's side. Raises ValueError where a text is too short and where the model is broken."""
    model = load(base, streamed=(size(base) or 0) > 1e9 * memory_gb)
    tokenizer = load_tokenizer(base)
    leading = read_manifest(base)["leading"]
    window, vocabulary = int(spec["window"]), model.get_output_embeddings().weight.shape[0]

    windows: dict[str, torch.Tensor] = {}
    unmeasured: dict[str, torch.Tensor | None] = {}
    counts: dict[str, torch.Tensor] = {}
    corpora: dict[str, CorpusFields] = {}
    for text in texts:
        manifest = read_manifest(text, TextManifest)
        corpus = manifest["corpus"]
        splits = load_file(text / "tokens.safetensors")
        tokens = splits["evaluation"]
        try:
            windows[corpus] = cut_windows(tokens, window, spec["windows"], leading)
        except ValueError as error:
            raise step.InputError(f"corpus {corpus}: {error}") from error
        counts[corpus] = torch.bincount(tokens, minlength=vocabulary)
        unmeasured[corpus] = _control(splits.get("calibration"), window, leading)
        available = len(tokens) // (window - len(leading))
        corpora[corpus] = {
            "sha256": manifest["sha256"],
            "protocol": protocol(window, len(windows[corpus]), available, leading, manifest["join"], spec["dtype"]),
        }

    of_tasks: dict[str, TaskFields] = {}
    answered = []
    for folder in tasks:
        task = read_manifest(folder, TaskManifest)
        with compute_in(model, spec["dtype"]):
            answered.append(answers(model, tokenizer, folder).assign(task=task["task"]))
        of_tasks[task["task"]] = {
            "sha256": task["sha256"],
            "chance": task["chance"],
            "protocol": f"choice=summed-log-likelihood items={task['items']} shots=0 dtype={spec['dtype']}",
        }

    first = next(iter(windows))
    diagnosed: DiagnosticsFields | None = None
    with writing(out) as part:
        save_file(windows, part / "windows.safetensors")
        save_file(counts, part / "counts.safetensors")
        with compute_in(model, spec["dtype"]):
            write_base_side(model, windows, part)
        first_place = first_predicted(leading)
        sizes = pd.concat(
            [text_sizes(each, tokenizer, corpus, first_place) for corpus, each in windows.items()], ignore_index=True
        )
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
            membership={
                corpus: membership.membership_scores(model, windows[corpus], control)
                for corpus, control in unmeasured.items()
                if control is not None
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
