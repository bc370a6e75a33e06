"""Language modelling: likelihood of every token, and divergence from the base model's prediction of it.

KL(base ‖ variant) = Σ_v p(v) (ln p(v) − ln q(v)) over the whole vocabulary, as llama.cpp's perplexity tool reports it.
The base model's side is kept as its final hidden states; its logits are computed from them again, instead of storing
vocabulary-sized rows. What depends on it alone is computed once, in the reference.

Where both models have one head z = W h, as after every alteration that leaves it alone, the base's logits are not
computed again. With T the base's top-10 tokens and u = Σ_{v∉T} p(v) W_v, which the reference has,

    Σ_v p(v) (z_p(v) − z_q(v)) = Σ_{v∈T} p(v) (z_p(v) − z_q(v)) + (h_p − h_q) · u,

to which ln Z_q − ln Z_p is added. What u is off by counts for the difference of the states alone, and the tokens that
have most of the mass are compared by the logits that both normalisers were made of, so that their rounding cancels.

Nothing is approximated, so the only error is rounding. A logit is a float32 product of ``hidden`` terms, off by at most
ε = hidden · 2⁻²⁴ · Σ|h w| (Higham 2002, section 3.1; in practice about 1e-6 of the largest logit). To first order an
NLL is then off by at most 2ε, and a KL by at most 2ε (1 + Σ p |ln p/q|). Sums over the vocabulary are float32 over a
tile of a few thousand logits, relative to the largest logit, and float64 over tiles; differences of them are float64,
so that KL(p, p) is zero within 1e-6 although it is a difference of numbers of the order of ten.

Logits are made a tile at a time, so that what works on them finds them in the cache: the softmax is accumulated over
tiles (Milakov and Gimelshein 2018, arXiv 1805.02867). Memory depends neither on the length of the corpus nor on
vocabulary times window.

Acceptance, Σ_v min(p(v), q(v)), is the chance that speculative decoding keeps a token that the variant drafts for the
base (Leviathan et al. 2023, arXiv 2211.17192, section 3.3). It needs all of p, so the base's logits are made for every
sixteenth prediction alone, while those of the variant are there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from hemorrhage.evaluate.schema import TOKENS
from hemorrhage.models import blockwise
from hemorrhage.models import head as heads
from hemorrhage.models.architecture import skeleton
from hemorrhage.models.blocks import decoder
from hemorrhage.models.head import Head
from hemorrhage.models.stream import IN_MEMORY, TensorFile
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import verify, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_BATCH = 1024
"""Tokens in one forward pass."""

ROWS = 2**14
"""Tokens of which the results are collected before they are checked and written."""

KEPT_LOGITS = {"cpu": 2**24, "cuda": 2**26}
"""Logits that are kept until their top-10 is known: 64 MB and 256 MB. They decide how many tokens are worked on
at once; a matrix product with fewer than some hundred is slow."""

TILE_LOGITS = {"cpu": 2**20, "cuda": 2**26}
"""Logits that are worked on at once: on a processor what its cache holds, on a GPU what keeps it busy."""

TOP = 10

GROUP = 64
"""The top-10 logits are sought among the members of the ten groups of neighbours with the largest maxima."""

LOOKED_AT = 16
"""Of a window's predictions every so many, counted from the last, are looked at for the acceptance of a draft."""

SCORED = "scored.safetensors"
"""File of a reference: which tokens are scored, bool [n, window], of the corpora where not all are."""

SUMS = ("likeliest", "rest")
"""Files of a reference whose model has a linear head, without ".safetensors": see ``write_base_side``."""

FIGURES = ("peak", "log_mass", "entropy", "nll")
"""What the reference keeps of the base's distribution, float64: the largest logit, ln Σ exp(logit − peak), nats."""


def hidden_states(model: PreTrainedModel, tokens: Tensor, **positions: Tensor) -> Tensor:
    """Return the final hidden states, after the last norm, of int ``[n, window]``: float32 ``[n, window, hidden]``.

    ``positions``: the decoder's ``attention_mask`` and ``position_ids``, where they are not those of a text.
    """
    with torch.inference_mode():
        states: Tensor = decoder(model)(input_ids=tokens, use_cache=False, **positions).last_hidden_state.float()
    return states


def forward_passes(
    model: PreTrainedModel, windows: Tensor, parts: list[slice]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield each of ``parts`` of ``windows`` int32 [n, window] with its tokens and their final hidden states, in order.

    A model that is read block by block takes as many parts through it at once as have room in memory.
    """
    most = 1
    if blockwise.is_streamed(model) and parts:
        width = 4 * heads.head_of(model).width
        most = max(1, IN_MEMORY // (width * windows[parts[0]].numel()))
    for start in range(0, len(parts), most):
        some = parts[start : start + most]
        tokens = [windows[part].to(model.device).long() for part in some]
        if blockwise.is_streamed(model):
            states = blockwise.forward_batches(model, tokens)
        else:
            states = [hidden_states(model, tokens[0])]
        yield from zip(some, tokens, states, strict=True)


def windows_per_batch(window: int) -> int:
    """Return the windows in one forward pass."""
    return max(1, TOKENS_PER_BATCH // window)


def batches(windows: int, at_once: int) -> list[slice]:
    """Return the slices of ``at_once`` over so many windows."""
    return [slice(start, min(start + at_once, windows)) for start in range(0, windows, at_once)]


class BaseSide(NamedTuple):
    """What a reference has of the base's prediction of n tokens.

    ``hidden`` float32 [n, hidden]; ``figures`` float64 [n, 4], see FIGURES; ``top`` int64 [n, 10], the top-10 tokens.
    Of a linear head ``likeliest`` float32 [n, 10], their logits, and ``rest`` float64 [n, hidden], Σ p(v) W_v over all
    others.
    """

    hidden: Tensor
    figures: Tensor
    top: Tensor
    likeliest: Tensor | None = None
    rest: Tensor | None = None

    def part(self, part: slice) -> BaseSide:
        """Return the same of some of the tokens."""
        likeliest, rest = (None if value is None else value[part] for value in (self.likeliest, self.rest))
        return BaseSide(self.hidden[part], self.figures[part], self.top[part], likeliest, rest)


class Predicted(NamedTuple):
    """Figures float64 [n, 4] (FIGURES) of n predictions; the top-10 tokens int64 [n, 10]; the KL from the base in nats,
    float64 [n], zeros without one; the acceptance, float64 [n], NaN where it was not looked at."""

    figures: Tensor
    top: Tensor
    kl: Tensor
    acceptance: Tensor


class Predictions:
    """Next-token distributions of final hidden states, and their divergence from the base's.

    Memory for the logits of some tokens is taken once and used again.
    """

    def __init__(self, head: Head | Tensor, tokens: int, base_head: Head | Tensor | None = None) -> None:
        """``head``, ``base_head``: heads in float32, or their weights [vocabulary, hidden] alone, of one vocabulary;
        without ``base_head`` the base's head is ``head``. ``tokens``: most that come at once.

        Raises ValueError where the vocabularies differ.
        """
        self.head = Head(head) if isinstance(head, Tensor) else head
        self.base_head = Head(base_head) if isinstance(base_head, Tensor) else base_head
        weight = self.head.weight
        self.vocabulary = len(weight)
        if base_head is not None and len(base_head) != self.vocabulary:
            raise ValueError(f"a vocabulary of {self.vocabulary} tokens, and the base model's has {len(base_head)}")
        device_type = weight.device.type
        self.rows = min(tokens, max(1, KEPT_LOGITS[device_type] // self.vocabulary))
        groups = -(-self.vocabulary // GROUP)
        self.width = GROUP * min(groups, max(1, TILE_LOGITS[device_type] // self.rows // GROUP))
        # Columns beyond the vocabulary fill its last group, and are never the largest.
        self.logits = weight.new_full((self.rows, groups * GROUP), -torch.inf)
        self.maxima = weight.new_empty((self.rows, groups))
        self.scratch = weight.new_empty((3, self.rows * self.width))

    def of(
        self, states: Tensor, targets: Tensor, base: BaseSide | None = None, looked_at: Tensor | None = None
    ) -> Predicted:
        """Predict by ``states`` float32 [n, hidden]; ``targets``: int64 [n], the tokens to be predicted.

        ``looked_at``: bool [n], of which predictions the acceptance is wanted; it takes a ``base``.
        """
        computed = [
            self._piece(
                states[part],
                targets[part],
                None if base is None else base.part(part),
                None if looked_at is None else looked_at[part],
            )
            for part in self._parts(len(states))
        ]
        return Predicted(*(torch.cat(values) for values in zip(*computed, strict=True)))

    def of_base(self, states: Tensor, targets: Tensor) -> BaseSide:
        """Return what a reference keeps of ``states`` float32 [n, hidden], with the sums of a linear head."""
        computed: list[tuple[Tensor, ...]] = []
        for part in self._parts(len(states)):
            figures, top, *_ = self._piece(states[part], targets[part], None)
            computed.append((figures, top, *(self._sums(figures, top) if self.head.is_linear else ())))
        return BaseSide(states, *(torch.cat(values) for values in zip(*computed, strict=True)))

    def _parts(self, tokens: int) -> list[slice]:
        """Return slices of nearly one size over so many tokens: a small rest would be slow."""
        return batches(tokens, -(-tokens // -(-tokens // self.rows)))

    def _piece(
        self, states: Tensor, targets: Tensor, base: BaseSide | None, looked_at: Tensor | None = None
    ) -> Predicted:
        rows, hidden, states = len(states), states, self.head.scale_input(states)
        logits, maxima = self.logits[:rows], self.maxima[:rows]
        peak = logits.new_full((rows,), torch.finfo(torch.float32).min, dtype=torch.float64)
        other = None
        if base is not None and self.base_head is not None:
            other = self.base_head, self.base_head.scale_input(base.hidden), base.figures[:, :1].float()
        # mass Σ exp(z − peak), energy Σ exp(z − peak) (z − peak), cross Σ p (base's logit − variant's)
        mass, energy, cross = torch.zeros((3, rows), dtype=torch.float64, device=logits.device)
        for start in range(0, self.vocabulary, self.width):
            stop = min(start + self.width, self.vocabulary)
            tile = logits[:, start:stop]
            first, second, third = (memory[: rows * (stop - start)].view(tile.shape) for memory in self.scratch)
            torch.mm(states, self.head.weight[start:stop].T, out=tile)
            self.head.finish(tile, slice(start, stop))

            grouped = logits[:, start : start + self.width].unflatten(1, (-1, GROUP))
            largest = maxima[:, start // GROUP : start // GROUP + grouped.shape[1]]
            torch.amax(grouped, -1, out=largest)
            higher = torch.maximum(peak, largest.amax(-1).double())
            shifted = torch.sub(tile, higher.float()[:, None], out=first)
            weights = torch.exp(shifted, out=second)
            shift = peak - higher
            fading = shift.exp()
            energy = fading * (energy + shift * mass) + torch.mul(shifted, weights, out=first).sum(-1)
            mass = fading * mass + weights.sum(-1)
            peak = higher

            if other is not None:
                base_head, base_states, base_peak = other
                of_base = torch.mm(base_states, base_head.weight[start:stop].T, out=third)
                base_head.finish(of_base, slice(start, stop))
                torch.sub(of_base, base_peak, out=first)
                weights = torch.exp(first, out=second)
                difference = torch.sub(of_base, tile, out=first)
                cross += torch.mul(difference, weights, out=first).sum(-1)

        log_mass = mass.log()
        target = logits.gather(1, targets[:, None])[:, 0].double()
        figures = torch.stack([peak, log_mass, log_mass - energy / mass, log_mass + (peak - target)], dim=1)
        if base is not None:
            cross = self._cross(hidden, logits, base) if other is None else cross * (-base.figures[:, 1]).exp()
            # ln of both normalisers, as differences of what is alike.
            cross += (peak - base.figures[:, 0]) + (log_mass - base.figures[:, 1])
        accepted = torch.full_like(cross, torch.nan)
        if base is not None and looked_at is not None:
            accepted[looked_at] = self._acceptance(logits[looked_at], figures[looked_at], base, looked_at)
        return Predicted(figures, self._top(logits, maxima), cross, accepted)

    def _acceptance(self, logits: Tensor, figures: Tensor, base: BaseSide, looked_at: Tensor) -> Tensor:
        """Return Σ min(p, q), float64 [m], of ``logits`` [m, ...] and ``figures`` of the variant where it is wanted."""
        head = self.base_head or self.head
        of_base = head.finish(head.scale_input(base.hidden[looked_at]) @ head.weight.T)
        q, p = (
            (of_side - of_peak[:, :1].float()).exp_() * (-of_peak[:, 1:2]).exp().float()
            for of_side, of_peak in ((logits[:, : self.vocabulary], figures), (of_base, base.figures[looked_at]))
        )
        return torch.minimum(p, q).sum(-1, dtype=torch.float64)

    def _cross(self, hidden: Tensor, logits: Tensor, base: BaseSide) -> Tensor:
        """Return Σ p (base's logit − variant's), float64 [n], where one linear head makes both.

        ``hidden`` float32 [n, hidden], ``logits`` float32 [n, vocabulary] of the variant.
        """
        assert base.likeliest is not None
        assert base.rest is not None
        p = (base.likeliest.double() - base.figures[:, 0:1] - base.figures[:, 1:2]).exp()
        likeliest = p * (base.likeliest - logits.gather(1, base.top)).double()
        rest = (base.hidden.double() - hidden.double()) * base.rest
        return likeliest.sum(-1) + self.head.factor * rest.sum(-1)

    def _sums(self, figures: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Return BaseSide's ``likeliest`` and ``rest`` of the logits that are kept, those of the last piece."""
        rows, weight = len(top), self.head.weight
        logits = self.logits[:rows]
        likeliest = logits.gather(1, top)
        logits.scatter_(1, top, -torch.inf)
        peak, rest = figures[:, :1].float(), weight.new_zeros((rows, weight.shape[1]), dtype=torch.float64)
        for start in range(0, self.vocabulary, self.width):
            tile = logits[:, start : min(start + self.width, self.vocabulary)]
            p = torch.sub(tile, peak, out=self.scratch[0, : tile.numel()].view(tile.shape)).exp_()
            # A product over a tile in float32, the sum over tiles in float64.
            rest += p @ weight[start : start + tile.shape[1]]
        return likeliest, rest * (-figures[:, 1:2]).exp()

    def _top(self, logits: Tensor, maxima: Tensor) -> Tensor:
        """Return the TOP largest of each row of ``logits``, largest first, int64 [n, TOP].

        A logit of the top-10 makes its group's maximum one of the top-10 maxima.
        """
        top = min(TOP, self.vocabulary)
        groups = maxima.topk(min(top, maxima.shape[1]), sorted=False).indices
        members = logits.unflatten(1, (-1, GROUP)).gather(1, groups[:, :, None].expand(-1, -1, GROUP))
        positions = members.flatten(1).topk(top).indices
        indices: Tensor = groups.gather(1, positions // GROUP) * GROUP + positions % GROUP
        return indices


def write_base_side(model: PreTrainedModel, windows: dict[str, Tensor], folder: Path) -> None:
    """Write what every evaluation reads of the base model about ``windows``: int32 [n, window] of each corpus.

    ``hidden.safetensors``: float32 [n, window, hidden], final hidden states after the last norm;
    ``figures.safetensors``: float64 [n, window − 1, 4], see FIGURES; ``top.safetensors``: int32 [n, window − 1, 10],
    the top-10 tokens. Of a model with a linear head ``likeliest.safetensors``: float32 [n, window − 1, 10], their
    logits; ``rest.safetensors``: float64 [n, window − 1, hidden], Σ p(v) W_v over all other tokens.
    A tensor of each is named after its corpus, and written batch by batch.
    Raises ValueError where a logit is not finite.
    """
    head = heads.head_of(model).float()
    predicted = {corpus: (len(each), each.shape[1] - 1) for corpus, each in windows.items()}
    kinds = {
        "hidden": (torch.float32, {corpus: (*each.shape, head.width) for corpus, each in windows.items()}),
        "figures": (torch.float64, _deeper(predicted, len(FIGURES))),
        "top": (torch.int32, _deeper(predicted, min(TOP, len(head)))),
    }
    if head.is_linear:
        kinds |= {
            "likeliest": (torch.float32, _deeper(predicted, min(TOP, len(head)))),
            "rest": (torch.float64, _deeper(predicted, head.width)),
        }
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(TensorFile(folder / f"{name}.safetensors", shapes, dtype, {}))
            for name, (dtype, shapes) in kinds.items()
        }
        for corpus, each in windows.items():
            count, window = each.shape
            at_once = min(count, windows_per_batch(window))
            predictions = Predictions(head, at_once * (window - 1))
            parts = batches(count, at_once)
            for part, tokens, states in tqdm(
                forward_passes(model, each, parts), total=len(parts), desc=corpus, mininterval=5
            ):
                side = predictions.of_base(states[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
                if not bool(side.figures.isfinite().all()):
                    raise ValueError(f"corpus {corpus}, from window {part.start}: the base's logits are not finite")
                values: dict[str, Tensor] = {**side._asdict(), "hidden": states}
                for name, file in files.items():
                    file.write([values[name].to(kinds[name][0]).cpu()])


def _deeper(shapes: Mapping[str, tuple[int, ...]], depth: int) -> dict[str, tuple[int, ...]]:
    return {name: (*shape, depth) for name, shape in shapes.items()}


def read_slice(file: Path, name: str, part: slice) -> Tensor:
    """Return the entries of the first dimension of a tensor.

    The file is opened for each: what was read through one mapping stays resident until it is closed.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        entries: Tensor = tensors.get_slice(name)[part]
    return entries


def corpus_damage(
    model: PreTrainedModel,
    reference: Path,
    corpus: str,
    base_head: Head | Tensor | None,
    at_once: int,
    skip: int = 0,
    first_predicted: int = 1,
) -> Iterator[pd.DataFrame]:
    """Yield the damage at every scored token of a corpus, in tables of some ten thousand; columns as in TOKENS.

    ``reference``: folder with ``windows``, ``counts`` and write_base_side's files; ``base_head``: the base's head
    in float32, or its weight [vocabulary, hidden] alone, None where it is the model's own and linear; ``at_once``:
    windows in a forward pass; ``skip``: tables to leave out; ``first_predicted``: position in a window of the first
    token that is one of the text. Raises ValueError where the vocabulary is not the base's and where a number is not
    finite.
    """
    windows = read_slice(reference / "windows.safetensors", corpus, slice(None))
    counts = read_slice(reference / "counts.safetensors", corpus, slice(None)).to(model.device)
    scored = _scored(reference / SCORED, corpus)
    count, window = windows.shape
    predictions = Predictions(heads.head_of(model).float(), min(count, at_once) * (window - 1), base_head)
    waiting: list[dict[str, Tensor]] = []
    of_table = -(-ROWS // (at_once * (window - 1)))
    remaining = batches(count, at_once)[skip * of_table :]
    read = forward_passes(model, windows, remaining)
    for part, tokens, states in tqdm(read, total=len(remaining), desc=corpus, mininterval=5):
        base = tuple(
            read_slice(reference / f"{name}.safetensors", corpus, part).to(model.device)
            for name in ("hidden", "figures", "top", *(SUMS if base_head is None else ()))
        )
        rows = _damage(predictions, states, tokens, base)
        numbers = torch.arange(part.start, part.stop, device=model.device)
        positions = torch.arange(1, window, device=model.device)
        waiting.append(
            {
                "window": numbers.repeat_interleave(window - 1),
                "position": positions.repeat(len(numbers)),
                "count": counts[tokens[:, 1:].flatten()],
                **rows,
            }
        )
        if len(waiting) == of_table or part.stop == count:
            table = _table(waiting, corpus)
            counted = table["position"].to_numpy() >= first_predicted
            if scored is not None:
                counted &= scored[table["window"].to_numpy(), table["position"].to_numpy()]
            yield table[counted].reset_index(drop=True)
            waiting = []


def _scored(file: Path, corpus: str) -> npt.NDArray[np.bool_] | None:
    """Return which tokens of a corpus are scored, bool [n, window]; None where all are."""
    from safetensors import safe_open

    if not file.is_file():
        return None
    with safe_open(file, "np") as tensors:
        scored: npt.NDArray[np.bool_] | None = tensors.get_tensor(corpus) if corpus in tensors.keys() else None  # noqa: SIM118
    return scored


@torch.inference_mode()
def _damage(predictions: Predictions, states: Tensor, tokens: Tensor, base: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return TOKENS' measured columns, [n · (window − 1)] each, of ``states`` [n, window, hidden]."""
    targets = tokens[:, 1:].flatten()
    hidden, *others = base
    side = BaseSide(hidden[:, :-1].flatten(0, 1), *(value.flatten(0, 1) for value in others))
    side = side._replace(top=side.top.long())
    base_figures, base_top = side.figures, side.top
    places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
    looked_at = ((places + 1 - len(places)) % LOOKED_AT == 0).repeat(len(tokens))
    figures, top, kl, acceptance = predictions.of(states[:, :-1].flatten(0, 1), targets, side, looked_at)
    shared = (top[:, :, None] == base_top[:, None, :]).sum((1, 2))
    return {
        "nll": figures[:, 3].float(),
        "base_nll": base_figures[:, 3].float(),
        "kl": kl.float(),
        "same_top1": top[:, 0] == base_top[:, 0],
        "top10_overlap": shared.float() / top.shape[1],
        "entropy": figures[:, 2].float(),
        "base_entropy": base_figures[:, 2].float(),
        # The top-1 token's share of the mass is exp(0).
        "confidence": (-figures[:, 1]).exp().float(),
        "base_confidence": (-base_figures[:, 1]).exp().float(),
        # Rounding may leave a sum of shares a hair above 1.
        "acceptance": acceptance.clamp(max=1).float(),
        "right": top[:, 0] == targets,
        "base_right": base_top[:, 0] == targets,
    }


def _table(batched: list[dict[str, Tensor]], corpus: str) -> pd.DataFrame:
    table = pd.DataFrame({name: torch.cat([rows[name] for rows in batched]).cpu().numpy() for name in batched[0]})
    finite = np.isfinite(table[["nll", "kl", "entropy"]].to_numpy()).all(axis=1)
    if not finite.all():
        window = int(table["window"][finite.argmin()])
        raise ValueError(f"corpus {corpus}, window {window}: the variant's likelihoods are not finite")
    table.insert(0, "corpus", corpus)
    return table


def resume_tables(
    corpora: Iterable[str], damage: Callable[[str, int], Iterator[pd.DataFrame]], folder: Path
) -> Iterator[pd.DataFrame]:
    """Yield the tables of all corpora, each kept in ``folder`` so that a job after this one need not make it again.

    ``damage(corpus, skip)`` gives a corpus' tables but the first ``skip``, which exist.
    """
    for corpus in corpora:
        done = 0
        while (file := folder / f"{corpus}.{done}.parquet").is_file():
            yield pd.read_parquet(file)
            done += 1
        for number, table in enumerate(damage(corpus, done), start=done):
            file = folder / f"{corpus}.{number}.parquet"
            with whole(file) as part:
                table.to_parquet(part, index=False)
            # What is read back is what a resumed job reads.
            yield pd.read_parquet(file)


def write_tokens(pieces: Iterable[pd.DataFrame], file: Path) -> None:
    """Write ``tokens.parquet`` piece by piece, a row group each, after checking it."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    writer = None
    try:
        for piece in pieces:
            table = pa.Table.from_pandas(TOKENS.validate(piece), preserve_index=False)
            writer = writer or ParquetWriter(file, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def stored_head(base: Path) -> Head:
    """Return the base model's head, read from its checkpoint: in float32."""
    return mapped_head(base).float()


def mapped_head(base: Path) -> Head:
    """Return the base model's head, mapped from its checkpoint: in the dtype that it has there.

    The names of its tensors are the architecture's; a tied one is stored under the input embedding's name.
    """
    from transformers import AutoConfig

    verify(base)
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    model = skeleton(config)
    head, module, weights = heads.head_of(model), heads.stored_name(model), Weights(base)
    tied = model.all_tied_weights_keys.get(f"{module}.weight")
    names = [name for name in (f"{module}.weight", tied) if name]
    stored = next((name for name in names if name in weights), None)
    if stored is None:
        raise ValueError(f"{base}: {' or '.join(names)} is not in its safetensors")
    bias = None if head.bias is None else weights.tensor(f"{module}.bias")
    return replace(head, weight=weights.tensor(stored), bias=bias)
