"""Step ``mitigate``: corrections of a variant's decoding, fitted on one half of a text and judged on everything else.

    python -m hemorrhage.mitigate OUT --variant V --checkpoint DIR --base DIR --reference DIR --closed-ended DIR...
        --spec JSON

``spec``: ``corpus`` (of the reference), whose first half of windows is fitted to, at most ``tokens`` of it;
``corpora`` whose second halves are judged; ``buckets`` of entropy, ``steps`` of the gains' fit, ``p`` of the nucleus;
``open_ended`` (``items``, ``prefix``, ``new_tokens``); ``closed_ended``, a list of hemorrhage.decode.spec.ClosedEnded,
of which ``--closed-ended`` are the folders; ``seed``.

Corrections are judged token by token, and on what the corrected model writes itself: answers to closed-ended tasks, and
continuations of windows of the second halves (``trajectories``). Each has its control in all of it: ``corrections``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import pandas as pd
import torch
from torch import Tensor

from hemorrhage.decode.prompts import Prompt, closed_prompts, uses_chat
from hemorrhage.decode.spec import ClosedEnded
from hemorrhage.evaluate.language import batches, hidden_states, read_slice, stored_head, windows_per_batch
from hemorrhage.mitigate import corrections, trajectories
from hemorrhage.mitigate.corrections import Correction, Model
from hemorrhage.mitigate.schema import TEXTS, TOKENS
from hemorrhage.mitigate.trajectories import SAMPLING, SEARCHES, Task, Texts
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.head import Head, head_of
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import failure, failure_recorded, read_manifest, write_manifest, writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Corrections = dict[tuple[str, int], Correction]
"""Corrections by name and number of the control's shuffle, 0 for the correction itself."""

PLAIN = (("none", 0), ("top_p", 0))
"""What corrections start from, and what the base model writes under."""


class Size(TypedDict):
    """The size of a fitted vector."""

    least: float
    greatest: float
    rms: float


class Parameters(TypedDict, total=False):
    """A correction's entry in ``fits.json``."""

    temperature: list[float]
    entropy_edges: list[float]
    bias: Size
    gain: Size
    top_p: float


class Heads(NamedTuple):
    """Heads of the variant and of the base, in float32."""

    variant: Head
    base: Head


@dataclass(frozen=True)
class Text:
    """Windows of a corpus that are judged: int64 [n, window]; the ``first`` of them in the reference."""

    corpus: str
    first: int
    windows: Tensor

    def base_states(self, reference: Path, device: torch.device) -> Tensor:
        """Return the base's final hidden states, float32 [n, window, hidden]."""
        part = slice(self.first, self.first + len(self.windows))
        return read_slice(reference / "hidden.safetensors", self.corpus, part).to(device)


def halves(reference: Path, corpus: str) -> tuple[Text, Text]:
    """Return the first and the second half of a corpus's windows."""
    windows = read_slice(reference / "windows.safetensors", corpus, slice(None)).long()
    half = len(windows) // 2
    return Text(corpus, 0, windows[:half]), Text(corpus, half, windows[half:])


def mitigate(
    out: Path,
    variant: str,
    checkpoint: Path,
    base: Path,
    reference: Path,
    closed_ended: Sequence[Path],
    spec: Mapping[str, Any],
) -> None:
    """Fit and judge the corrections of one variant.

    Raises ValueError where the variant was not made, and where its vocabulary is not the base's.
    """
    reason = failure(checkpoint)
    if reason:
        raise ValueError(f"not made: {reason}")
    start = read_manifest(reference)["first_predicted"]
    model = load(checkpoint, base=base)
    heads = _heads(model, base)
    first, _ = halves(reference, spec["corpus"])
    fitted, number = fit(model, heads, first, first.base_states(reference, model.device), start, spec)
    texts = [halves(reference, corpus)[1] for corpus in spec["corpora"]]
    tables = []
    for text in texts:
        sides = _sides(heads, all_states(model, text.windows), text.base_states(reference, model.device))
        table = score_windows(fitted, text.windows, *sides, spec["p"], start)
        tables.append(table.assign(part="text", dataset=text.corpus, window=table["window"] + text.first))
    tokenizer = load_tokenizer(base)
    tasks = [*closed_tasks(closed_ended, tokenizer, spec), *open_tasks(texts, tokenizer, spec["open_ended"])]
    written = [trajectories.write(model, task, fitted, SEARCHES, spec["seed"]) for task in tasks]
    seconds = _timed(model, tasks, fitted)
    drawn = [each for task, of_task in zip(tasks, written, strict=True) for each in draw(task, of_task)]
    altered = states_of(model, drawn)
    del model
    original, rows = load(base), []
    for each, of_variant, of_base in zip(drawn, altered, states_of(original, drawn), strict=True):
        sides = _sides(heads, of_variant, of_base)
        tables.append(each.scored(fitted[each.name], *sides, spec["p"]))
    for task, of_task in zip(tasks, written, strict=True):
        own = trajectories.write(original, task, {name: fitted[name] for name in PLAIN}, SEARCHES, spec["seed"])
        rows.append(trajectories.table(task, of_task, own, original, tokenizer))
    _save(
        out,
        fitted,
        tables,
        rows,
        variant=variant,
        fitted=number,
        spec=spec,
        seconds_per_token=seconds,
        **identity(spec, reference, closed_ended),
    )


def _heads(model: PreTrainedModel, base: Path) -> Heads:
    head, of_base = head_of(model).folded(), stored_head(base).folded()
    if len(head) != len(of_base):
        raise ValueError(f"a vocabulary of {len(head)} tokens, and the base model's has {len(of_base)}")
    return Heads(head, of_base.to(head.weight.device))


def _sides(heads: Heads, variant: Tensor, base: Tensor) -> tuple[Model, Model]:
    return Model(variant, heads.variant), Model(base, heads.base)


def fit(
    model: PreTrainedModel, heads: Heads, text: Text, base_states: Tensor, start: int, spec: Mapping[str, Any]
) -> tuple[Corrections, int]:
    """Fit the corrections to a text; return them with the number of tokens that were fitted to."""
    chosen = spread(len(text.windows) * (text.windows.shape[1] - start), spec["tokens"]).to(base_states.device)
    variant, base = _sides(heads, predicting(all_states(model, text.windows), start), predicting(base_states, start))
    settings = spec["buckets"], spec["steps"], spec["p"], spec["seed"]
    return corrections.fit(variant.at(chosen), base.at(chosen), *settings), len(chosen)


def closed_tasks(
    folders: Sequence[Path], tokenizer: PreTrainedTokenizerBase, spec: Mapping[str, Any]
) -> Iterator[Task]:
    """Yield the closed-ended tasks with the prompts of the decoding sweep."""
    chat = uses_chat(tokenizer, None)
    for folder, entry in zip(folders, map(ClosedEnded.model_validate, spec["closed_ended"]), strict=True):
        yield Task(
            "closed_ended", entry.task, closed_prompts(folder, tokenizer, entry, spec["seed"], chat), entry.new_tokens
        )


def open_tasks(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, open_ended: Mapping[str, int]
) -> Iterator[Task]:
    """Yield the beginnings of windows that are continued, a task for each corpus."""
    items, prefix = open_ended["items"], open_ended["prefix"]
    for text in texts if items else ():
        beginnings = text.windows[:items, :prefix].tolist()
        prompts = [
            Prompt(text.first + row, str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)), tokens)
            for row, tokens in enumerate(beginnings)
        ]
        yield Task("open_ended", text.corpus, prompts, open_ended["new_tokens"])


def _timed(model: PreTrainedModel, tasks: Sequence[Task], fitted: Corrections) -> dict[str, float]:
    """Time the corrections, without their controls, on the last task's first prompt."""
    if not tasks:
        return {}
    once = {name: correction for (name, control), correction in fitted.items() if not control}
    return trajectories.seconds_per_token(model, tasks[-1].prompts[0], once)


@dataclass(frozen=True)
class Drawn:
    """What was sampled under a correction behind the prompts of a task: ``windows`` int64 [n, longest], prompt first
    and filled up behind the text, of which ``lengths`` tokens count."""

    task: Task
    name: tuple[str, int]
    windows: Tensor
    lengths: list[int]

    def scored(self, correction: Correction, variant: Model, base: Model, p: float) -> pd.DataFrame:
        """Return TOKENS' rows of the sampled tokens."""
        prefix = len(self.task.prompts[0].tokens)
        table = score_windows({self.name: correction}, self.windows, variant, base, p, prefix)
        table = table[table["position"] < table["window"].map(dict(enumerate(self.lengths)))]
        items = dict(enumerate(prompt.item for prompt in self.task.prompts))
        return table.assign(part="generation", dataset=self.task.dataset, window=table["window"].map(items))


def draw(task: Task, texts: Texts) -> Iterator[Drawn]:
    """Yield what was sampled of an open-ended task, with its prompts before it, under each correction."""
    if task.kind != "open_ended":
        return
    for (search, name), continued in texts.items():
        if search == SAMPLING:
            whole = [[*prompt.tokens, *tokens] for prompt, tokens in zip(task.prompts, continued, strict=True)]
            lengths = [len(tokens) for tokens in whole]
            yield Drawn(
                task, name, torch.tensor([tokens + [0] * (max(lengths) - len(tokens)) for tokens in whole]), lengths
            )


def states_of(model: PreTrainedModel, drawn: Sequence[Drawn]) -> list[Tensor]:
    """Return the final hidden states float32 [n, longest, hidden] of each one's windows.

    What several corrections wrote alike is read once, and as many windows together as a batch takes.
    """
    numbers: dict[int, dict[tuple[int, ...], int]] = {}
    rows = []
    for each in drawn:
        of_length = numbers.setdefault(each.windows.shape[1], {})
        rows.append([of_length.setdefault(tuple(window), len(of_length)) for window in each.windows.tolist()])
    states = {length: all_states(model, torch.tensor(list(texts))) for length, texts in numbers.items()}
    return [states[each.windows.shape[1]][of_each] for each, of_each in zip(drawn, rows, strict=True)]


def _save(
    out: Path, corrections: Corrections, tokens: list[pd.DataFrame], texts: list[pd.DataFrame], **manifest: Any
) -> None:
    """Write the output directory."""
    table = pd.concat(tokens, ignore_index=True)[list(TOKENS.columns)]
    of_texts = pd.concat(texts, ignore_index=True) if texts else trajectories.no_texts()
    with writing(out) as scratch:
        TOKENS.validate(table).to_parquet(scratch / "tokens.parquet", index=False)
        TEXTS.validate(of_texts).to_parquet(scratch / "texts.parquet", index=False)
        fits = {_title(name): parameters(correction) for name, correction in corrections.items()}
        (scratch / "fits.json").write_text(json.dumps(fits, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_manifest(scratch, **manifest)


def all_states(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return the final hidden states float32 [n, window, hidden] of ``windows`` int64 [n, window]."""
    slices = batches(len(windows), windows_per_batch(windows.shape[1]))
    return torch.cat([hidden_states(model, windows[batch].to(model.device)) for batch in slices])


def predicting(states: Tensor, start: int) -> Tensor:
    """Return the states that predict the tokens of their window from position ``start`` on.

    [n (window - start), hidden] of [n, window, hidden].
    """
    return states[:, start - 1 : -1].flatten(0, 1)


def spread(number: int, wanted: int) -> Tensor:
    """Return at most ``wanted`` of ``number`` positions, evenly spread: int64."""
    count = min(number, wanted)
    return torch.arange(count) * number // count


def score_windows(
    fitted: Corrections, windows: Tensor, variant: Model, base: Model, p: float, start: int
) -> pd.DataFrame:
    """Return TOKENS' rows, but ``part``, of ``windows`` int64 [n, window] from position ``start`` on.

    ``variant``, ``base``: states [n, window, hidden] and heads.
    """
    number, length = windows.shape
    targets = windows[:, start:].flatten().to(variant.states.device)
    sides = [Model(side.states[:, start - 1 : -1].flatten(0, 1), side.head) for side in (variant, base)]
    tables = []
    with torch.inference_mode():
        for (name, control), columns in corrections.score(fitted, sides[0], sides[1], targets, p).items():
            table = pd.DataFrame({key: value.cpu().numpy() for key, value in columns.items()})
            places = pd.DataFrame(
                {
                    "window": torch.arange(number).repeat_interleave(length - start).numpy(),
                    "position": torch.arange(start, length).repeat(number).numpy(),
                }
            )
            tables.append(pd.concat([places, table], axis=1).assign(correction=name, shuffled=control))
    return pd.concat(tables, ignore_index=True)


def parameters(correction: Correction) -> Parameters:
    """Return the fitted values for people; vectors by their size."""
    fitted = Parameters(temperature=[1 / beta for beta in correction.beta.tolist()])
    if len(correction.edges):
        fitted["entropy_edges"] = correction.edges.tolist()
    if correction.bias is not None:
        fitted["bias"] = _size(correction.bias)
    if correction.gain is not None:
        fitted["gain"] = _size(correction.gain)
    if correction.top_p is not None:
        fitted["top_p"] = correction.top_p
    return fitted


def _size(values: Tensor) -> Size:
    return Size(least=values.min().item(), greatest=values.max().item(), rms=values.square().mean().sqrt().item())


def _title(name: tuple[str, int]) -> str:
    return f"{name[0]}, control {name[1]}" if name[1] else name[0]


class Identity(TypedDict):
    """What a manifest says of the data that corrections were fitted to and judged on, a failed one's too."""

    corpus: str
    sha256: str
    datasets: dict[str, dict[str, Any]]
    protocol: dict[str, str]


def identity(spec: Mapping[str, Any], reference: Path, closed_ended: Sequence[Path]) -> Identity:
    """Return the data sets and the protocol of each: how it was read, or how its answers were made."""
    manifest = read_manifest(reference)
    corpora = {name: manifest["corpora"][name] for name in dict.fromkeys([spec["corpus"], *spec["corpora"]])}
    datasets: dict[str, dict[str, Any]] = {name: {"sha256": source["sha256"]} for name, source in corpora.items()}
    protocols = {name: second_half(source["protocol"]) for name, source in corpora.items()}
    for folder, entry in zip(closed_ended, spec["closed_ended"], strict=True):
        of_task = read_manifest(folder)
        datasets[entry["task"]] = {"sha256": of_task["sha256"], "chance": of_task["chance"]}
        protocols[entry["task"]] = f"items={entry['items']} new_tokens={entry['new_tokens']}"
    return Identity(
        corpus=spec["corpus"], sha256=datasets[spec["corpus"]]["sha256"], datasets=datasets, protocol=protocols
    )


def second_half(protocol: str) -> str:
    """Return the protocol of the last half of the windows of a corpus, from that of all of them."""
    windows, predicted = (
        int(protocol.split(f" {key}=")[1].split("/")[0].split()[0]) for key in ("windows", "predicted")
    )
    last = windows - windows // 2
    shortened = re.sub(r"windows=(\S+)", rf"windows=last-{last}-of-\1", protocol)
    return re.sub(r"predicted=\d+", f"predicted={predicted // windows * last}", shortened)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.mitigate")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True)
    for name in ("checkpoint", "base", "reference"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--closed-ended", type=Path, nargs="*", default=[])
    parser.add_argument("--spec", type=json.loads, required=True)
    given = parser.parse_args()
    step.start()
    spec = given.spec
    fields = identity(spec, given.reference, given.closed_ended)
    with failure_recorded(given.out, variant=given.variant, spec=spec, **fields):
        mitigate(given.out, given.variant, given.checkpoint, given.base, given.reference, given.closed_ended, spec)


if __name__ == "__main__":
    main()
