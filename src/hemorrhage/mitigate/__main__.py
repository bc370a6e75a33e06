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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from hemorrhage.decode import generation
from hemorrhage.evaluate.language import (
    batches,
    head_of,
    hidden_states,
    output_embedding,
    read_slice,
    windows_per_batch,
)
from hemorrhage.mitigate import corrections
from hemorrhage.mitigate.corrections import Correction, Model
from hemorrhage.mitigate.schema import TOKENS
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import failure, failure_recorded, read_manifest, write_manifest, writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Corrections = dict[tuple[str, int], Correction]


def mitigate(out: Path, variant: str, checkpoint: Path, base: Path, reference: Path, spec: dict[str, Any]) -> None:
    """Fit and score the corrections of one variant.

    Raises ValueError where the variant was not made, and where its vocabulary is not the base's.
    """
    reason = failure(checkpoint)
    if reason:
        raise ValueError(f"not made: {reason}")
    corpus, asked = spec["corpus"], spec["open_ended"]
    of_reference = read_manifest(reference)
    facts, start = of_reference["corpora"][corpus], of_reference["first_predicted"]
    windows = read_slice(reference / "windows.safetensors", corpus, slice(None)).long()
    states = read_slice(reference / "hidden.safetensors", corpus, slice(None))
    base_head, half = head_of(base), len(windows) // 2
    model = load(checkpoint, base=base)
    head = output_embedding(model)
    if len(head) != len(base_head):
        raise ValueError(f"a vocabulary of {len(head)} tokens, and the base model's has {len(base_head)}")
    altered = all_states(model, windows)
    states, base_head = states.to(head.device), base_head.to(head.device)

    first, second = slice(0, half), slice(half, None)
    fitted = spread((half) * (windows.shape[1] - start), spec["tokens"]).to(head.device)
    found = corrections.fit(
        Model(predicting(altered[first], start), head).at(fitted),
        Model(predicting(states[first], start), base_head).at(fitted),
        spec["buckets"],
        spec["steps"],
        spec["p"],
        spec["seed"],
    )
    tables = [
        scored(found, windows[second], Model(altered[second], head), Model(states[second], base_head), spec["p"], start)
    ]
    tables[0] = tables[0].assign(part="text", window=tables[0]["window"] + half)
    if asked["items"]:
        own = {name: one for name, one in found.items() if not name[1]}
        texts = sampled(model, own, windows[half : half + asked["items"]], asked, spec["seed"])
        altered_by = {name: all_states(model, tokens) for name, tokens in texts.items()}
        del model
        tables.append(_generated(own, texts, altered_by, head, base, base_head, asked["prefix"], spec["p"], half))
    table = pd.concat(tables, ignore_index=True)[list(TOKENS.columns)]
    with writing(out) as part:
        TOKENS.validate(table).to_parquet(part / "tokens.parquet", index=False)
        fits = {_title(name): parameters(one) for name, one in found.items()}
        (part / "fits.json").write_text(json.dumps(fits, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_manifest(
            part,
            variant=variant,
            corpus=corpus,
            sha256=facts["sha256"],
            protocol=protocol(facts["protocol"], len(windows) - half, windows.shape[1] - start),
            fitted=len(fitted),
            spec=spec,
        )


def all_states(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Final hidden states float32 [n, window, hidden] of ``windows`` int64 [n, window]."""
    parts = batches(len(windows), windows_per_batch(windows.shape[1]))
    return torch.cat([hidden_states(model, windows[part].to(model.device)) for part in parts])


def predicting(states: Tensor, start: int) -> Tensor:
    """Return the states that predict the tokens of their window from place ``start`` on.

    [n (window - start), hidden] of [n, window, hidden].
    """
    return states[:, start - 1 : -1].flatten(0, 1)


def spread(there: int, wanted: int) -> Tensor:
    """At most ``wanted`` of so many places, evenly spread: int64."""
    count = min(there, wanted)
    return torch.arange(count) * there // count


def scored(found: Corrections, windows: Tensor, variant: Model, base: Model, p: float, start: int) -> pd.DataFrame:
    """TOKENS' rows, but ``part``, of ``windows`` int64 [n, window] from position ``start`` on.

    ``variant``, ``base``: states [n, window, hidden] and heads.
    """
    number, length = windows.shape
    targets = windows[:, start:].flatten().to(variant.head.device)
    sides = [Model(side.states[:, start - 1 : -1].flatten(0, 1), side.head) for side in (variant, base)]
    tables = []
    with torch.inference_mode():
        for (name, control), columns in corrections.score(found, sides[0], sides[1], targets, p).items():
            table = pd.DataFrame({key: value.cpu().numpy() for key, value in columns.items()})
            places = pd.DataFrame(
                {
                    "window": torch.arange(number).repeat_interleave(length - start).numpy(),
                    "position": torch.arange(start, length).repeat(number).numpy(),
                }
            )
            tables.append(pd.concat([places, table], axis=1).assign(correction=name, shuffled=control))
    return pd.concat(tables, ignore_index=True)


def sampled(
    model: PreTrainedModel, found: Corrections, windows: Tensor, asked: dict[str, int], seed: int
) -> dict[tuple[str, int], Tensor]:
    """What the model says under each correction: int64 [items, prefix + new_tokens], beginning with the prefix.

    The n-th token of an item is drawn by the same uniform number under every correction, from the tokens in the order
    of the vocabulary, so that equal distributions give equal texts. No text ends early.
    """
    prefix = windows[:, : asked["prefix"]].to(model.device)
    generator = torch.Generator().manual_seed(seed)
    lots = torch.rand((asked["new_tokens"], len(prefix), 1), generator=generator, dtype=torch.float64)
    head = output_embedding(model)
    reading = generation.read(model, prefix, torch.ones_like(prefix))
    return {name: _continued(model, one, prefix, lots, head, reading) for name, one in found.items()}


def _continued(
    model: PreTrainedModel,
    correction: Correction,
    prefix: Tensor,
    lots: Tensor,
    head: Tensor,
    reading: generation.Reading | None,
) -> Tensor:
    from transformers import DynamicCache

    cache: Any = reading and reading.copied_cache()
    if cache is None and generation.cache_name(model) == "past_key_values":
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    tokens = prefix
    with torch.inference_mode():
        for lot in lots:
            if cache is None:
                # A state-space model goes on from no cache that it is given: it reads all of the text again.
                states = hidden_states(model, tokens)
            else:
                _, states = generation.forward(model, tokens[:, -1:], torch.ones_like(tokens), cache)
            states = states[:, -1].float()
            mass = correction.logits(states @ head.T, states, head).double().softmax(-1).cumsum(-1)
            drawn = torch.searchsorted(mass, lot.to(mass.device) * mass[:, -1:])
            tokens = torch.cat([tokens, drawn.clamp(max=mass.shape[1] - 1)], dim=1)
    return tokens


def _generated(
    found: Corrections,
    texts: dict[tuple[str, int], Tensor],
    altered: dict[tuple[str, int], Tensor],
    head: Tensor,
    base: Path,
    base_head: Tensor,
    prefix: int,
    p: float,
    half: int,
) -> pd.DataFrame:
    """Rows of what the corrected model generated: each correction on its own texts."""
    model = load(base)
    tables = []
    for name, tokens in texts.items():
        sides = Model(altered[name], head), Model(all_states(model, tokens), base_head)
        table = scored({name: found[name]}, tokens.cpu(), *sides, p, prefix)
        tables.append(table.assign(part="generation", window=table["window"] + half))
    return pd.concat(tables, ignore_index=True)


def parameters(correction: Correction) -> dict[str, Any]:
    """What was fitted, as people read it; vectors as their size."""
    found: dict[str, Any] = {"temperature": [1 / one for one in correction.beta.tolist()]}
    if len(correction.edges):
        found["entropy_edges"] = correction.edges.tolist()
    for name, values in (("bias", correction.bias), ("gain", correction.gain)):
        if values is not None:
            found[name] = {"least": values.min().item(), "greatest": values.max().item(), "rms": _rms(values)}
    if correction.top_p is not None:
        found["top_p"] = correction.top_p
    return found


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _title(name: tuple[str, int]) -> str:
    return f"{name[0]}, control {name[1]}" if name[1] else name[0]


def protocol(whole: str, windows: int, predicted: int) -> str:
    """The reference's protocol of a corpus, as it is for the last ``windows`` of it, each of so many ``predicted``."""
    found = re.sub(r"windows=(\S+)", rf"windows=last-{windows}-of-\1", whole)
    return re.sub(r"predicted=\d+", f"predicted={windows * predicted}", found)


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
    facts = read_manifest(arguments.reference)["corpora"][spec["corpus"]]
    about = {"variant": arguments.variant, "corpus": spec["corpus"], "spec": spec}
    with failure_recorded(arguments.out, **about, sha256=facts["sha256"], protocol=facts["protocol"]):
        mitigate(
            arguments.out, arguments.variant, arguments.checkpoint, arguments.base, arguments.reference, arguments.spec
        )


if __name__ == "__main__":
    main()
