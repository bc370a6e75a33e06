"""False alarms and power of ``hemorrhage identify``: a table in Markdown.

python -m benchmarks.identify MODEL [--windows 200] [--window 64] [--trials 100]

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
from hemorrhage.engines.identity import distances, identify, identify_samples, margins, predicted, sampled
from hemorrhage.engines.topk import Floats
from hemorrhage.models.checkpoint import load

BITS = (8, 6, 5, 4, 3)
TEMPLATE = (1, 2)
TOP = 20


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


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--trials", type=int, default=100)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    base = load(arguments.model)
    models: dict[str, torch.nn.Module] = {"base": base, **{f"rtn-{bits}": rounded(base, bits) for bits in BITS}}
    honest = {
        "float64": copy.deepcopy(base).double(),
        "bfloat16": copy.deepcopy(base).bfloat16(),
        "float16": copy.deepcopy(base).half(),
    }
    windows = generated(base, arguments.windows, arguments.window)
    own = {name: rows(model, windows) for name, model in models.items()}
    templated = rows(base, windows, TEMPLATE)
    noisy = rows(honest["bfloat16"], windows)
    served = {**{f"base in {name}": rows(model, windows) for name, model in honest.items()}, **own}
    served |= {"base at temperature 0.7": own["base"] / 0.7, "base with a template": templated}
    served["base at temperature 0.7"] -= np.log(np.exp(served["base at temperature 0.7"]).sum(-1, keepdims=True))
    rng = np.random.default_rng(0)
    for top in (TOP, 0):
        print(f"\n## Log-probabilities, {f'top {top}' if top else 'of the text alone'}\n")
        print("| served | tokens | same | unclear | other (right one) | unknown |\n|---|---|---|---|---|---|")
        for name, given in served.items():
            said = answers(given, windows, top)
            variants = {
                **{
                    each: [predicted(r, t, a) for r, t, a in zip(own[each], windows.numpy(), said, strict=True)]
                    for each in own
                },
                "base at temperature 0.7": [
                    predicted(r, t, a, 0.7) for r, t, a in zip(own["base"], windows.numpy(), said, strict=True)
                ],
                "base with a template": [
                    predicted(r, t, a) for r, t, a in zip(templated, windows.numpy(), said, strict=True)
                ],
            }
            apart = {
                each: [distances(a, p) for a, p in zip(said, values, strict=True)] for each, values in variants.items()
            }
            of_noise = [
                distances(a, predicted(r, t, a))
                for r, t, a in zip(own["base"], windows.numpy(), answers(noisy, windows, top), strict=True)
            ]
            for count in (2, 5, 10):
                verdicts: Counter[str] = Counter()
                for _ in range(arguments.trials):
                    drawn = rng.integers(len(windows), size=count)
                    part = {each: np.concatenate([values[i] for i in drawn]) for each, values in apart.items()}
                    result = identify(part, "base", np.concatenate([of_noise[i] for i in drawn]))
                    verdicts[result.verdict] += 1
                    verdicts["right"] += result.verdict == "other" and result.nearest == name
                print(
                    f"| {name} | {count * (arguments.window - 1)} | {verdicts['same']} | {verdicts['unclear']} |"
                    f" {verdicts['other']} ({verdicts['right']}) | {verdicts['unknown']} |"
                )
    for temperature in (1.0, 0.0):
        print(f"\n## Tokens sampled at temperature {temperature:g}\n")
        print("| served | tokens | same | unclear | other (right one) | unknown |\n|---|---|---|---|---|---|")
        for name, model in {**{f"base in {key}": value for key, value in honest.items()}, **models}.items():
            drawn_windows = generated(model, arguments.windows, arguments.window, temperature)
            mine = {each: rows(other, drawn_windows)[:, 3:] for each, other in models.items()}
            of_bfloat16 = rows(honest["bfloat16"], drawn_windows)[:, 3:].argmax(-1)
            tokens = drawn_windows[:, 4:].numpy()
            for count in (2, 5, 10):
                verdicts = Counter()
                for _ in range(arguments.trials):
                    drawn = rng.integers(len(tokens), size=count)
                    flat = tokens[drawn].reshape(-1)
                    parts = {each: values[drawn].reshape(len(flat), -1) for each, values in mine.items()}
                    if temperature:
                        likelihoods = {each: sampled(part, flat, temperature) for each, part in parts.items()}
                        warmer = {f"base at temperature {t:g}": sampled(parts["base"], flat, t) for t in (0.7, 1.3)}
                        result = identify_samples({**likelihoods, **warmer}, "base")
                    else:
                        noise = margins(parts["base"], of_bfloat16[drawn].reshape(-1))
                        result = identify({each: margins(part, flat) for each, part in parts.items()}, "base", noise)
                    verdicts[result.verdict] += 1
                    verdicts["right"] += result.verdict == "other" and result.nearest == name
                print(
                    f"| {name} | {len(flat)} | {verdicts['same']} | {verdicts['unclear']} |"
                    f" {verdicts['other']} ({verdicts['right']}) | {verdicts['unknown']} |"
                )


if __name__ == "__main__":
    main()
