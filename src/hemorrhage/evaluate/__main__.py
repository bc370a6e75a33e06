"""Step ``evaluate``: a variant's damage, token by token, item by item and inside the network.

    python -m hemorrhage.evaluate OUT --variant V --checkpoint DIR --base DIR --reference DIR --tasks DIR... --spec JSON
        --memory-gb GB

The checkpoint is loaded in this fresh process from what lies on disk, and must give the logits that the
compress step computed in memory. A variant that can't be evaluated becomes an output that says why.

The base model is a variant, too: it reads its windows in batches of another size than the reference did, so that what
it differs by from itself is the noise of sums in another order.

A model that would take more than ``--memory-gb`` is read block by block, with the same numbers; what it costs to run is
not measured then, nor of a screening or a confirmation, whose reference names its stage.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from safetensors import safe_open
from safetensors.torch import load_file

from hemorrhage.evaluate import cost
from hemorrhage.evaluate.choices import answers
from hemorrhage.evaluate.diagnostics import collect
from hemorrhage.evaluate.language import (
    TOKENS_PER_BATCH,
    corpus_damage,
    mapped_head,
    resume_tables,
    windows_per_batch,
    write_tokens,
)
from hemorrhage.evaluate.precision import compute_in
from hemorrhage.evaluate.reference import ReferenceManifest
from hemorrhage.evaluate.schema import ITEMS
from hemorrhage.models.blockwise import is_streamed
from hemorrhage.models.checkpoint import load, load_tokenizer, size
from hemorrhage.models.head import head_of
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import CHECK
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import (
    Manifest,
    failure,
    failure_recorded,
    read_manifest,
    resuming,
    whole,
    write_manifest,
    writing,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE = "base"


class AlteredManifest(Manifest, total=False):
    """A checkpoint's manifest, as far as it is read here; ``blocks``: the base's block that each was made from."""

    blocks: list[int | None]


def evaluate(
    out: Path,
    variant: str,
    checkpoint: Path,
    base: Path,
    reference: Path,
    tasks: list[Path],
    ablate: bool = False,
    memory_gb: float = math.inf,
) -> None:
    """Write the evaluation of one checkpoint; ``ablate``: repair by other layers is measured, too, which takes long.

    Raises ValueError where the checkpoint is broken or not made from ``base``.
    """
    reason = failure(checkpoint)
    if reason:
        raise ValueError(f"not made: {reason}")
    of_base, altered = read_manifest(reference, ReferenceManifest), read_manifest(checkpoint, AlteredManifest)
    same_tokenizer(checkpoint, base)
    of_file = mapped_head(base)
    model = open_model(checkpoint, base, len(of_file), memory_gb)
    if variant != BASE:
        if not (checkpoint / CHECK).is_file():
            raise ValueError(f"{checkpoint}: no {CHECK}, so it can't be compared with what compress made")
        verify(model, checkpoint)

    windows, window = smallest_corpus(reference)
    at_once, tokens_at_once = windows_per_batch(window), TOKENS_PER_BATCH
    noise: dict[str, str] = {}
    if variant == BASE:
        usual = min(windows, at_once)
        at_once = another_size(usual)
        tokens_at_once = at_once * window
        noise = {"noise": f"batches of {at_once} instead of {usual} windows"}

    head = head_of(model)
    base_head = None if head.is_linear and head.equals(of_file) else of_file.float().to(model.device)

    def damage(corpus: str, skip: int) -> Iterator[pd.DataFrame]:
        return corpus_damage(model, reference, corpus, base_head, at_once, skip, of_base["first_predicted"])

    gaps: dict[str, str] = {}
    with resuming(out) as unfinished, writing(out) as part:
        with compute_in(model, of_base["dtype"]):
            write_tokens(resume_tables(of_base["corpora"], damage, unfinished), part / "tokens.parquet")
            answered = _answers(unfinished, model, base, tasks, tokens_at_once) if tasks else []
        shutil.copyfile(reference / "windows.parquet", part / "windows.parquet")
        if tasks:
            items = pd.concat(answered)
            base_items = pd.read_parquet(reference / "items.parquet")[["task", "item", "choice", "correct"]]
            base_items = base_items.rename(columns={"choice": "base_choice", "correct": "base_correct"})
            items = items.merge(base_items, on=["task", "item"], validate="one_to_one")[list(ITEMS.columns)]
            ITEMS.validate(items).to_parquet(part / "items.parquet", index=False)
        if of_base["diagnostics"]:
            base_side = load_file(reference / "diagnostics.safetensors")
            diagnostics = collect.measure(model, base_side, altered.get("blocks"), ablate, gaps)
            collect.DIAGNOSTICS.validate(diagnostics).to_parquet(part / "diagnostics.parquet", index=False)
        if "stage" not in of_base:
            # The speed of a disk is none of a model's.
            reason = cost.theoretical(checkpoint)
            costs: cost.Cost = {} if is_streamed(model) else _cost(model, gaps, is_timed=not reason)
            costs["theoretical"] = reason
            (part / "cost.json").write_text(json.dumps(costs, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_manifest(
            part,
            variant=variant,
            corpora=of_base["corpora"],
            tasks=of_base["tasks"],
            diagnostics=of_base["diagnostics"],
            dtype=of_base["dtype"],
            **({"membership": of_base["membership"]} if variant == BASE and "membership" in of_base else {}),
            **({"gaps": gaps} if gaps else {}),
            **noise,
        )


def _cost(model: PreTrainedModel, gaps: dict[str, str], is_timed: bool) -> cost.Cost:
    """Measure what running the model costs; where it can't be run like others, note a gap."""
    try:
        return cost.measure(model, is_timed)
    except Exception as error:
        gaps["cost"] = " ".join(f"{type(error).__name__}: {error}".split())
        return {}


def _answers(
    unfinished: Path, model: PreTrainedModel, base: Path, tasks: list[Path], tokens_at_once: int
) -> list[pd.DataFrame]:
    """Return the model's answers to each task, from the folder ``unfinished`` where an earlier job left them."""
    tokenizer = load_tokenizer(base)
    answered = []
    for task in tasks:
        file = unfinished / f"{task.parent.name}.answers"
        if not file.is_file():
            with whole(file) as part:
                answers(model, tokenizer, task, tokens_at_once).assign(task=task.parent.name).to_parquet(part)
        answered.append(pd.read_parquet(file))
    return answered


def same_tokenizer(checkpoint: Path, base: Path) -> None:
    """Raise ValueError where the checkpoint brings along a tokenizer that is not the base's."""
    altered, original = (folder / "tokenizer.json" for folder in (checkpoint, base))
    if not altered.is_file() or altered.read_bytes() == original.read_bytes():
        return
    if json.loads(altered.read_bytes()) != json.loads(original.read_bytes()):
        raise ValueError(f"{altered} differs from the base model's: its tokens would be compared with other tokens")


def open_model(checkpoint: Path, base: Path, vocabulary: int, memory_gb: float = math.inf) -> PreTrainedModel:
    """Return the checkpoint's model; ValueError where it can't be read and where its vocabulary is another."""
    try:
        model = load(checkpoint, base=base, streamed=(size(checkpoint) or 0) > 1e9 * memory_gb)
    except Exception as error:
        raise ValueError(f"{checkpoint} can't be loaded: {type(error).__name__}: {error}") from error
    rows = model.get_output_embeddings().weight.shape[0]
    if rows != vocabulary:
        raise ValueError(f"{checkpoint} has a vocabulary of {rows} tokens, and the base model of {vocabulary}")
    return model


def smallest_corpus(reference: Path) -> tuple[int, int]:
    """Return the windows of the corpus that has the fewest, and tokens of a window."""
    with safe_open(reference / "windows.safetensors", "pt") as file:
        shapes = [file.get_slice(corpus).get_shape() for corpus in file.keys()]  # noqa: SIM118, no mapping
    windows, window = min(shapes)
    return windows, window


def another_size(at_once: int) -> int:
    """Return the windows in a batch where the reference read ``at_once``."""
    return at_once // 2 if at_once > 1 else 2


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.evaluate")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, nargs="*", default=[])
    parser.add_argument("--spec", type=json.loads, required=True, help="{ablate}: measure repair by other layers")
    parser.add_argument("--memory-gb", type=float, default=math.inf, help="above it a model is read block by block")
    arguments = parser.parse_args()
    step.start()
    of_base = read_manifest(arguments.reference, ReferenceManifest)
    with failure_recorded(
        arguments.out,
        variant=arguments.variant,
        corpora=of_base["corpora"],
        tasks=of_base["tasks"],
        diagnostics=of_base["diagnostics"],
    ):
        evaluate(
            arguments.out,
            arguments.variant,
            arguments.checkpoint,
            arguments.base,
            arguments.reference,
            arguments.tasks,
            arguments.spec["ablate"],
            arguments.memory_gb,
        )


if __name__ == "__main__":
    main()
