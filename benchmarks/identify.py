"""False alarms and power of ``hemorrhage identify``: a table in Markdown.

python -m benchmarks.identify MODEL [--windows 200] [--window 64] [--trials 100] [--only samples]

MODEL is a checkpoint's folder. It samples windows from itself. Honest servers compute it in float64, bfloat16 and
float16 and give the top 20 in float32; others are round-to-nearest at 8 to 3 bits by row, another temperature, a
template of two tokens. Each trial asks a few of the windows, drawn with replacement; the claim is always "base".
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from hemorrhage.engines.endpoint_dialects import Answer
from hemorrhage.engines.identity import (
    Identification,
    distances,
    identify,
    identify_samples,
    margins,
    predicted,
    sampled,
)
from hemorrhage.engines.topk import Floats
from hemorrhage.models.checkpoint import load

BITS = (8, 6, 5, 4, 3)
TEMPLATE = (1, 2)
TOP = 20

COUNTS = (2, 5, 10)
"""Windows of a trial."""


def rounded(model: torch.nn.Module, bits: int) -> torch.nn.Module:
    """Return the model with its projections rounded to nearest, symmetric, by row."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "proj" in name and weight.ndim == 2:
                step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                weight.copy_((weight / step).round() * step)
    return made


@torch.no_grad()
def rows(model: torch.nn.Module, windows: torch.Tensor, prefix: tuple[int, ...] = ()) -> Floats:
    """Return log-probabilities of windows ``[w, n]`` at all positions but the last: ``[w, n - 1, vocabulary]``."""
    before = torch.tensor(prefix, dtype=torch.long).expand(len(windows), -1)
    parts = torch.cat([before, windows], 1).split(16)
    logits = torch.cat([model(part).logits[:, len(prefix) : -1].double() for part in parts])
    return np.asarray(torch.log_softmax(logits, -1).numpy())


@torch.no_grad()
def generated(model: torch.nn.Module, count: int, length: int, temperature: float = 1.0) -> torch.Tensor:
    """Return windows that the model samples, from its first tokens on."""
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    tokens = torch.randint(3, int(vocabulary), (count, 4))
    while tokens.shape[1] < length:
        logits = model(tokens).logits[:, -1].double()
        chosen = logits.argmax(-1) if temperature == 0 else torch.distributions.Categorical(
            logits=logits / temperature
        ).sample()  # fmt: skip
        tokens = torch.cat([tokens, chosen[:, None]], 1)
    return tokens


def answers(served: Floats, windows: torch.Tensor, top: int) -> list[Answer]:
    """Return what a server with these log-probabilities says, in float32."""
    given = []
    for each, tokens in zip(served.astype(np.float32).astype(float), windows.numpy(), strict=True):
        ids = np.argsort(-each, axis=1)[:, :top]
        values = np.take_along_axis(each, ids, 1)
        cap = values[:, -1] if top else np.zeros(len(each))
        given.append(Answer(each[np.arange(len(each)), tokens[1:]], ids, values, cap))
    return given


Tables = dict[str, Floats]
HEAD = "| served | tokens | same | unclear | other (the right one) | unknown |\n|---|---|---|---|---|---|"


def line(name: str, tokens: int, results: list[Identification]) -> str:
    """Return a row of a table: how often each verdict was given."""
    times = Counter(result.verdict for result in results)
    right = sum(result.verdict == "other" and result.nearest == name for result in results)
    other = f"{times['other']} ({right})"
    return f"| {name} | {tokens} | {times['same']} | {times['unclear']} | {other} | {times['unknown']} |"


def log_probabilities(
    base: Tables, noisy: Floats, served: Tables, windows: torch.Tensor, top: int, trials: int
) -> None:
    """Print the table of servers that give log-probabilities; ``base``: of each variant."""
    rng, texts = np.random.default_rng(0), windows.numpy()
    print(f"\n## Log-probabilities, {f'top {top}' if top else 'of the text alone'}\n\n{HEAD}")
    own = base["base"]
    honest = [
        distances(said, predicted(rows, tokens, said))
        for rows, tokens, said in zip(own, texts, answers(noisy, windows, top), strict=True)
    ]
    for name, given in served.items():
        said = answers(given, windows, top)
        variants = [*((each, rows, 1.0) for each, rows in base.items()), ("base at temperature 0.7", own, 0.7)]
        apart = {
            each: [
                distances(answer, predicted(of_window, tokens, answer, temperature))
                for of_window, tokens, answer in zip(rows, texts, said, strict=True)
            ]
            for each, rows, temperature in variants
        }
        for count in COUNTS:
            results = []
            for _ in range(trials):
                drawn = rng.integers(len(windows), size=count)
                part = {each: np.concatenate([values[i] for i in drawn]) for each, values in apart.items()}
                results.append(identify(part, "base", np.concatenate([honest[i] for i in drawn])))
            print(line(name, count * (windows.shape[1] - 1), results), flush=True)


def samples(
    models: dict[str, torch.nn.Module],
    honest: dict[str, torch.nn.Module],
    shape: tuple[int, int],
    temperature: float,
    trials: int,
) -> None:
    """Print the table of servers that give tokens alone."""
    rng = np.random.default_rng(0)
    print(f"\n## Tokens sampled at temperature {temperature:g}\n\n{HEAD}")
    for name, model in {**{f"base in {key}": value for key, value in honest.items()}, **models}.items():
        windows = generated(model, *shape, temperature)
        mine = {each: rows(other, windows)[:, 3:] for each, other in models.items()}
        of_bfloat16 = rows(honest["bfloat16"], windows)[:, 3:].argmax(-1)
        tokens = windows[:, 4:].numpy()
        for count in COUNTS:
            results = []
            for _ in range(trials):
                drawn = rng.integers(len(tokens), size=count)
                flat = tokens[drawn].reshape(-1)
                parts = {each: values[drawn].reshape(len(flat), -1) for each, values in mine.items()}
                if temperature:
                    each = {key: sampled(part, flat, temperature) for key, part in parts.items()}
                    each |= {f"base at temperature {t:g}": sampled(parts["base"], flat, t) for t in (0.7, 1.3)}
                    results.append(identify_samples(each, "base"))
                else:
                    noise = margins(parts["base"], of_bfloat16[drawn].reshape(-1))
                    results.append(identify({key: margins(part, flat) for key, part in parts.items()}, "base", noise))
            print(line(name, count * tokens.shape[1], results), flush=True)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--only", choices=["log-probabilities", "samples"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    base = load(arguments.model)
    models: dict[str, torch.nn.Module] = {"base": base, **{f"rtn-{bits}": rounded(base, bits) for bits in BITS}}
    honest = {
        "float64": copy.deepcopy(base).double(),
        "bfloat16": copy.deepcopy(base).bfloat16(),
        "float16": copy.deepcopy(base).half(),
    }
    if arguments.only != "samples":
        windows = generated(base, arguments.windows, arguments.window)
        known = {name: rows(model, windows) for name, model in models.items()}
        known["base with a template"] = rows(base, windows, TEMPLATE)
        cooled = known["base"] / 0.7
        served = {**{f"base in {name}": rows(model, windows) for name, model in honest.items()}, **known}
        served["base at temperature 0.7"] = cooled - np.log(np.exp(cooled).sum(-1, keepdims=True))
        for top in (TOP, 0):
            log_probabilities(known, served["base in bfloat16"], served, windows, top, arguments.trials)
    if arguments.only != "log-probabilities":
        for temperature in (1.0, 0.0):
            samples(models, honest, (arguments.windows, arguments.window), temperature, arguments.trials)


if __name__ == "__main__":
    main()
