"""Step ``mitigate``: corrections of a variant's decoding, fitted on one half of a text and scored on the other.

    python -m hemorrhage.mitigate OUT --variant V --checkpoint DIR --base DIR --reference DIR --spec JSON

``spec``: ``corpus`` (of the reference), ``tokens`` of the first half of its windows that are fitted to, ``buckets`` of
entropy, ``steps`` of the gains' fit, ``p`` of the nucleus, ``open_ended`` (``items``, ``prefix``, ``new_tokens``),
``seed``.
Besides the second half, corrections are scored on what the corrected model samples itself: continuations of the second
half's windows, with the same random numbers for every correction. Each correction has its control: see
``corrections``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd
import torch
from torch import Tensor

from hemorrhage.decode import generation
from hemorrhage.evaluate.language import batches, hidden_states, read_slice, stored_head, windows_per_batch
from hemorrhage.mitigate import corrections
from hemorrhage.mitigate.corrections import Correction, Model
from hemorrhage.mitigate.schema import TOKENS
from hemorrhage.models.checkpoint import load
from hemorrhage.models.head import Head, head_of
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import failure, failure_recorded, read_manifest, write_manifest, writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Corrections = dict[tuple[str, int], Correction]
"""Corrections by name and number of the control's shuffle, 0 for the correction itself."""


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


def mitigate(out: Path, variant: str, checkpoint: Path, base: Path, reference: Path, spec: Mapping[str, Any]) -> None:
    """Fit and score the corrections of one variant.

    Raises ValueError where the variant was not made, and where its vocabulary is not the base's.
    """
    reason = failure(checkpoint)
    if reason:
        raise ValueError(f"not made: {reason}")
    corpus, open_ended = spec["corpus"], spec["open_ended"]
    manifest = read_manifest(reference)
    source, start = manifest["corpora"][corpus], manifest["first_predicted"]
    windows = read_slice(reference / "windows.safetensors", corpus, slice(None)).long()
    states = read_slice(reference / "hidden.safetensors", corpus, slice(None))
    base_head, half = stored_head(base).folded(), len(windows) // 2
    model = load(checkpoint, base=base)
    head = head_of(model).folded()
    if len(head) != len(base_head):
        raise ValueError(f"a vocabulary of {len(head)} tokens, and the base model's has {len(base_head)}")
    altered = all_states(model, windows)
    device = head.weight.device
    states, base_head = states.to(device), base_head.to(device)

    first, second = slice(0, half), slice(half, None)
    chosen = spread(half * (windows.shape[1] - start), spec["tokens"]).to(device)
    fitted = corrections.fit(
        Model(predicting(altered[first], start), head).at(chosen),
        Model(predicting(states[first], start), base_head).at(chosen),
        spec["buckets"],
        spec["steps"],
        spec["p"],
        spec["seed"],
    )
    sides = Model(altered[second], head), Model(states[second], base_head)
    table = score_windows(fitted, windows[second], *sides, spec["p"], start)
    tables = [table.assign(part="text", window=table["window"] + half)]
    if open_ended["items"]:
        uncontrolled = {name: correction for name, correction in fitted.items() if not name[1]}
        texts = sample(model, uncontrolled, windows[half : half + open_ended["items"]], open_ended, spec["seed"])
        altered_by = {name: all_states(model, tokens) for name, tokens in texts.items()}
        del model
        original = load(base)
        for name, tokens in texts.items():
            sides = Model(altered_by[name], head), Model(all_states(original, tokens), base_head)
            table = score_windows({name: fitted[name]}, tokens.cpu(), *sides, spec["p"], open_ended["prefix"])
            tables.append(table.assign(part="generation", window=table["window"] + half))
    table = pd.concat(tables, ignore_index=True)[list(TOKENS.columns)]
    with writing(out) as scratch:
        TOKENS.validate(table).to_parquet(scratch / "tokens.parquet", index=False)
        fits = {_title(name): parameters(correction) for name, correction in fitted.items()}
        (scratch / "fits.json").write_text(json.dumps(fits, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_manifest(
            scratch,
            variant=variant,
            corpus=corpus,
            sha256=source["sha256"],
            protocol=protocol(source["protocol"], len(windows) - half, windows.shape[1] - start),
            fitted=len(chosen),
            spec=spec,
        )


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


def sample(
    model: PreTrainedModel, fitted: Corrections, windows: Tensor, open_ended: dict[str, int], seed: int
) -> dict[tuple[str, int], Tensor]:
    """Sample a continuation under each correction: int64 [items, prefix + new_tokens], beginning with the prefix.

    The n-th token of an item is drawn by the same uniform number under every correction, from the tokens in the order
    of the vocabulary, so that equal distributions give equal texts. No text ends early.
    """
    prefix = windows[:, : open_ended["prefix"]].to(model.device)
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand((open_ended["new_tokens"], len(prefix), 1), generator=generator, dtype=torch.float64)
    head = head_of(model).folded()
    reading = generation.read(model, prefix, torch.ones_like(prefix))
    return {name: _continued(model, correction, prefix, uniforms, head, reading) for name, correction in fitted.items()}


def _continued(
    model: PreTrainedModel,
    correction: Correction,
    prefix: Tensor,
    uniforms: Tensor,
    head: Head,
    reading: generation.Reading | None,
) -> Tensor:
    from transformers import DynamicCache

    cache: Any = reading and reading.copied_cache()
    if cache is None and generation.takes_cache(model):
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    tokens = prefix
    with torch.inference_mode():
        for uniform in uniforms:
            if cache is None:
                # A state-space model goes on from no cache that it is given: it reads all of the text again.
                states = hidden_states(model, tokens)
            else:
                _, states = generation.forward(model, tokens[:, -1:], torch.ones_like(tokens), cache)
            states = states[:, -1].float()
            mass = correction.logits(corrections.logits_of(states, head), states, head).double().softmax(-1).cumsum(-1)
            drawn = torch.searchsorted(mass, uniform.to(mass.device) * mass[:, -1:])
            tokens = torch.cat([tokens, drawn.clamp(max=mass.shape[1] - 1)], dim=1)
    return tokens


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


def protocol(whole: str, windows: int, predicted: int) -> str:
    """Return the reference's protocol of a corpus for its last ``windows``, each of so many ``predicted`` tokens."""
    last = re.sub(r"windows=(\S+)", rf"windows=last-{windows}-of-\1", whole)
    return re.sub(r"predicted=\d+", f"predicted={windows * predicted}", last)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.mitigate")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True)
    for name in ("checkpoint", "base", "reference"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--spec", type=json.loads, required=True)
    arguments = parser.parse_args()
    step.start()
    spec = arguments.spec
    source = read_manifest(arguments.reference)["corpora"][spec["corpus"]]
    identity = {"variant": arguments.variant, "corpus": spec["corpus"], "spec": spec}
    with failure_recorded(arguments.out, **identity, sha256=source["sha256"], protocol=source["protocol"]):
        mitigate(
            arguments.out, arguments.variant, arguments.checkpoint, arguments.base, arguments.reference, arguments.spec
        )


if __name__ == "__main__":
    main()
