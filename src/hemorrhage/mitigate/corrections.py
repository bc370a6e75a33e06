"""Corrections of an altered model's next-token distribution, fitted so that KL(base ‖ corrected) is least.

A corrected logit is ``β_k z(h ∘ g)_v + b_v``: h is the final hidden state behind the last norm, z the model's head,
g a gain of the norm's features, b a bias of the token, and β_k = 1 / T the inverse temperature of the bucket k that the
entropy of the model's own prediction falls into. With ``top_p`` what lies outside the nucleus is cut off after that.

The objective is ``Σ_t ln Σ_v exp z_tv - E_p[z_t]``, the KL plus a constant, where p is the base's prediction. It is
convex in β and in b, and in g where the head multiplies by a matrix W. All that the base model then contributes to the
fits is a vector a token, ``E_p[z] = g ∘ h · E_p[W]``, and they need logits of the altered model alone. A head that adds
a bias or caps its logits needs the base's whole predictions at every step of the fit of g. Nothing is approximated:
softmaxes run over the whole vocabulary, some tokens at a time, so that memory depends on neither text nor model.

The control of a fit shuffles the base's information: every token gets the difference ``p - q`` of another token, with a
random sign, for a matrix as ``E_p[W] - E_q[W]``; a nucleus does so with differences of surprise. Biases, which only
know averages over tokens, are shuffled among tokens of the vocabulary that are about as frequent. There are two
shuffles, the second with the opposite signs: what one gains by chance the other loses, which shows how much it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hemorrhage.models.head import Head

LOGITS = 2**24
"""Logits of one slice of tokens: 64 MB in float32."""

KEPT = 2**25
"""Logits of the tokens that are fitted to are kept where there are no more (128 MB): Newton's steps need them."""

NEWTON_STEPS = 30
TOLERANCE = 1e-5
"""Relative step of an inverse temperature below which Newton's method ends."""

LIMITS = (1e-2, 1e2)
"""Inverse temperatures that are looked at."""

ROUNDS = 3
"""Of iterative scaling of the biases."""

PRIOR = 10.0
"""Tokens that base and variant are taken to have agreed on for each entry of the vocabulary: rare ones keep a bias near
zero."""

NEIGHBOURS = 32
"""Entries of the vocabulary, in the order of their frequency, among which a control shuffles biases."""

RIDGE = 1e-3
"""Nats a token that the squared distance of all gains from 1 costs: a gain that nothing speaks for stays 1."""

NUCLEI = 400
"""Candidates for a nucleus, evenly spread in ln(p / (1 - p)) from 0.01 to 0.9999."""


Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Correction:
    """A correction of logits.

    ``beta`` float32 [buckets] with ``edges`` float32 [buckets - 1] of entropies (nats) between them, ``bias`` float32
    [vocabulary] or None, ``gain`` float32 [hidden] or None, ``top_p`` or None.
    """

    beta: Tensor
    edges: Tensor
    bias: Tensor | None = None
    gain: Tensor | None = None
    top_p: float | None = None

    def logits(self, raw: Tensor, states: Tensor, head: Head) -> Tensor:
        """Return the corrected logits float32 [n, vocabulary] of ``raw`` logits; tokens that are cut off have -inf.

        ``raw`` is what ``head`` makes of ``states`` [n, hidden].
        """
        return self.of_logits(raw if self.gain is None else logits_of(states * self.gain, head))

    def of_logits(self, logits: Tensor) -> Tensor:
        """Return the same of ``logits`` that were made with the gain."""
        if len(self.beta) > 1:
            logits = logits * self.beta[torch.bucketize(entropy(logits), self.edges)][:, None]
        elif self.beta.item() != 1:
            logits = logits * self.beta
        if self.bias is not None:
            logits = logits + self.bias
        return logits if self.top_p is None else nucleus(logits, self.top_p)


def identity() -> Correction:
    """Return the correction that changes nothing."""
    return Correction(torch.ones(1), torch.empty(0))


def logits_of(states: Tensor, head: Head) -> Tensor:
    """Return the logits float32 [n, vocabulary] that a ``head`` in float32 makes of ``states`` [n, hidden]."""
    return head.finish(head.scale_input(states) @ head.weight.T)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the softmax over the last dimension, nats."""
    log = logits.log_softmax(-1)
    return -(log.exp() * log).sum(-1)


def nucleus(logits: Tensor, p: float) -> Tensor:
    """Return ``logits`` [n, vocabulary] with -inf outside the smallest set of top tokens with a mass of ``p``.

    Tokens as probable as the last of them stay, too.
    """
    values = descending(logits)
    mass = values.softmax(-1)
    inside = (mass.cumsum(-1) - mass < p).sum(-1, keepdim=True)
    return logits.masked_fill(logits < values.gather(1, inside - 1), -torch.inf)


def descending(values: Tensor) -> Tensor:
    """Return float32 ``values``, sorted along the last dimension."""
    if values.is_cuda:
        return values.sort(-1, descending=True).values
    # On a processor torch's sort, which keeps the places, takes several times as long.
    return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1)).flip(-1)


@dataclass(frozen=True)
class Shuffle:
    """How a control shuffles ``n`` tokens' information: ``order`` int64 [n] and ``signs`` float32 [n, 1]."""

    order: Tensor
    signs: Tensor

    def of(self, differences: Tensor) -> Tensor:
        """Return the differences [n, ...] at their new positions."""
        return self.signs.view(-1, *[1] * (differences.dim() - 1)) * differences[self.order]

    def opposite(self) -> Shuffle:
        """Return the same shuffle with the other signs."""
        return Shuffle(self.order, -self.signs)


def draw_shuffle(n: int, generator: torch.Generator, device: torch.device) -> Shuffle:
    """Draw a shuffle at random."""
    order = torch.randperm(n, generator=generator)
    signs = torch.randint(2, (n, 1), generator=generator) * 2.0 - 1
    return Shuffle(order.to(device), signs.to(device))


@dataclass(frozen=True)
class Model:
    """Predictions of a model.

    Final hidden ``states`` float32 [n, hidden], behind the last norm, and its ``head`` in float32.
    """

    states: Tensor
    head: Head
    kept: Tensor | None = None

    def keeping(self) -> Model:
        """Return the same, with its logits in memory where they are few."""
        few = len(self.states) * len(self.head) <= KEPT
        return replace(self, kept=logits_of(self.states, self.head)) if few else self

    def at(self, positions: Tensor | slice) -> Model:
        """Return the predictions at some positions."""
        return Model(self.states[positions], self.head)

    def logits(self, rows: slice | Tensor) -> Tensor:
        """Return logits float32 [rows, vocabulary]."""
        return logits_of(self.states[rows], self.head) if self.kept is None else self.kept[rows]

    def slices(self) -> Iterator[slice]:
        """Return the places of which the logits are made at once."""
        rows = max(1, LOGITS // len(self.head))
        for start in range(0, len(self.states), rows):
            yield slice(start, start + rows)


@dataclass(frozen=True)
class Pairing:
    """The information of the base that fits use.

    ``frequency`` float64 [vocabulary], the mean of the base's predictions; ``target`` float32 [n, hidden of the
    variant], E_p[W] at each token, of a head that is a matrix W, else None: then the predictions p themselves are used,
    shuffled by ``shuffle`` in a control.
    """

    variant: Model
    base: Model
    target: Tensor | None
    frequency: Tensor
    entropies: Tensor
    shuffle: Shuffle | None = None

    def predictions(self, rows: slice) -> Tensor:
        """Return what the fits aim at, float32 [rows, vocabulary]: p, in a control ``q + sign (p - q)`` of another."""
        if self.shuffle is None:
            return self.base.logits(rows).softmax(-1)
        others = self.shuffle.order[rows]
        difference = self.base.logits(others).softmax(-1) - self.variant.logits(others).softmax(-1)
        return self.variant.logits(rows).softmax(-1) + self.shuffle.signs[rows] * difference

    def expected_logits(self) -> Tensor:
        """Return the mean of the variant's logits under what the fits aim at: float32 [n]."""
        variant = self.variant
        if self.target is not None:
            return (self.target * variant.states).sum(1)
        return torch.cat([(self.predictions(rows) * variant.logits(rows)).sum(1) for rows in variant.slices()])


def pair(variant: Model, base: Model) -> Pairing:
    """Return the pairing of a variant's predictions with the base's of the same tokens."""
    targets, entropies = [], []
    frequency = torch.zeros(len(base.head), dtype=torch.float64, device=base.head.weight.device)
    for rows in variant.slices():
        p = base.logits(rows).softmax(-1)
        if variant.head.multiplies:
            targets.append(p @ variant.head.weight)
        frequency += p.sum(0)
        entropies.append(entropy(variant.logits(rows)))
    target = torch.cat(targets) if targets else None
    return Pairing(variant, base, target, frequency / len(variant.states), torch.cat(entropies))


def shuffle_pairings(pairing: Pairing, shuffles: Sequence[Shuffle]) -> list[Pairing]:
    """Return the pairings with what the base predicts otherwise shuffled among the tokens."""
    variant, target = pairing.variant, pairing.target
    if target is None:
        return [replace(pairing, shuffle=each) for each in shuffles]
    expected = torch.cat([variant.logits(rows).softmax(-1) @ variant.head.weight for rows in variant.slices()])
    return [replace(pairing, target=expected + each.of(target - expected)) for each in shuffles]


def fit_temperatures(pairing: Pairing, buckets: int) -> Correction:
    """Return the inverse temperatures of equally filled ``buckets`` of the variant's entropy, by Newton's method.

    At the optimum of a bucket the mean over its tokens of E_p[z] is that of E_q,β[z]. The derivative rises with β, so
    that a step which leaves the interval known to hold the optimum is replaced by the interval's geometric middle.
    """
    shares = torch.linspace(0, 1, buckets + 1, device=pairing.entropies.device)[1:-1]
    edges = pairing.entropies.quantile(shares) if buckets > 1 else pairing.entropies.new_empty(0)
    bucket = torch.bucketize(pairing.entropies, edges)
    wanted = _by_bucket(pairing.expected_logits().double(), bucket, buckets)
    beta = torch.ones(buckets, dtype=torch.float64, device=wanted.device)
    low, high = (torch.full_like(beta, limit) for limit in LIMITS)
    for _ in range(NEWTON_STEPS):
        slope, curvature = torch.zeros_like(beta), torch.zeros_like(beta)
        for rows in pairing.variant.slices():
            z, group = pairing.variant.logits(rows), bucket[rows]
            q = (z * beta[group, None].float()).softmax(-1)
            mean = (q * z).sum(-1, keepdim=True)
            slope += _by_bucket(mean[:, 0].double(), group, buckets)
            curvature += _by_bucket((q * (z - mean).square_()).sum(-1).double(), group, buckets)
        slope -= wanted
        low, high = torch.where(slope < 0, beta, low), torch.where(slope > 0, beta, high)
        step = beta - slope / curvature.clamp(min=1e-12)
        step = torch.where((step > low) & (step < high), step, (low * high).sqrt())
        moved = ((step - beta).abs() / beta).max().item()
        beta = torch.where(slope == 0, beta, step)
        if moved < TOLERANCE:
            break
    return Correction(beta.float(), edges)


def _by_bucket(values: Tensor, bucket: Tensor, buckets: int) -> Tensor:
    return torch.zeros(buckets, dtype=values.dtype, device=values.device).index_add_(0, bucket, values)


def fit_biases(pairing: Pairing, start: Correction) -> Correction:
    """Return ``start`` with a bias for every token of the vocabulary: ``b += ln((n p̄ + c) / (n q̄ + c))``, c the PRIOR.

    Without the prior a round is one of iterative scaling (Darroch and Ratcliff 1972), which never raises the KL.
    """
    n = len(pairing.variant.states)
    bias = torch.zeros_like(pairing.frequency)
    for _ in range(ROUNDS):
        current = replace(start, bias=bias.float())
        mass = torch.zeros_like(bias)
        for rows in pairing.variant.slices():
            states = pairing.variant.states[rows]
            mass += current.logits(pairing.variant.logits(rows), states, pairing.variant.head).softmax(-1).sum(0)
        bias = bias + ((n * pairing.frequency + PRIOR) / (mass + PRIOR)).log()
    return replace(start, bias=bias.float())


def shuffle_biases(correction: Correction, frequency: Tensor, generator: torch.Generator) -> Correction:
    """Return ``correction`` with its biases shuffled among neighbours in the order of ``frequency`` [vocabulary]."""
    assert correction.bias is not None
    order = frequency.argsort(descending=True, stable=True)
    keys = torch.rand(len(order), generator=generator).to(order.device)
    block = torch.arange(len(order), device=order.device) // NEIGHBOURS
    shuffled = order[(block + keys).argsort()]
    bias = torch.empty_like(correction.bias)
    bias[order] = correction.bias[shuffled]
    return replace(correction, bias=bias)


def fit_gains(pairing: Pairing, steps: int) -> Correction:
    """Return the gains of the last norm's features.

    ``steps`` of L-BFGS from 1, on the mean over tokens and a small ridge.
    """
    variant = pairing.variant
    gain = torch.ones(variant.states.shape[1], device=variant.states.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([gain], max_iter=steps, max_eval=2 * steps, line_search_fn="strong_wolfe")
    n = len(variant.states)
    measured = _gains_of_product if pairing.target is not None else _gains_of_head

    def objective() -> float:
        with torch.no_grad():
            value, slope = measured(pairing, gain)
            gain.grad = slope / n + 2 * RIDGE * (gain - 1)
            return value.item() / n + RIDGE * (gain - 1).square().sum().item()

    optimizer.step(objective)
    return replace(identity(), gain=gain.detach().clone())


def _gains_of_product(pairing: Pairing, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over tokens of the KL but for a constant, and its gradient, of a head that multiplies."""
    assert pairing.target is not None
    variant = pairing.variant
    wanted = (pairing.target * variant.states).sum(0)
    value = torch.zeros((), dtype=torch.float64, device=gain.device)
    slope = -wanted.clone()
    for rows in variant.slices():
        states = variant.states[rows]
        z = (states * gain) @ variant.head.weight.T
        value += z.logsumexp(-1).double().sum()
        slope += ((z.softmax(-1) @ variant.head.weight) * states).sum(0)
    return value - (wanted * gain).double().sum(), slope


def _gains_of_head(pairing: Pairing, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``_gains_of_product`` does, of any head."""
    variant = pairing.variant
    value = torch.zeros((), dtype=torch.float64, device=gain.device)
    slope = torch.zeros_like(gain)
    for rows in variant.slices():
        states, p = variant.states[rows], pairing.predictions(rows)
        z = logits_of(states * gain, variant.head)
        value += (z.logsumexp(-1) - (p * z).sum(-1)).double().sum()
        of_products = (z.softmax(-1) - p) * variant.head.slope(z)
        slope += variant.head.scale_input((of_products @ variant.head.weight) * states).sum(0)
    return value, slope


def remap_nucleus(variant: Model, base: Model, p: float, shuffles: Sequence[Shuffle] = ()) -> list[Correction]:
    """Return the nucleus p' of the variant with the mean surprise of the base's nucleus ``p``, and its controls.

    There is a control for each of ``shuffles``: every token gets the difference between base and variant of another.

    Surprise is the entropy of what is left, nats.
    """
    device = base.head.weight.device
    low, high = torch.logit(torch.tensor([0.01, 0.9999], dtype=torch.float64)).tolist()
    candidates = torch.linspace(low, high, NUCLEI, dtype=torch.float64, device=device).sigmoid().float()
    nucleus_of_base = torch.tensor([p], device=device)
    curve = torch.zeros(NUCLEI, dtype=torch.float64, device=device)
    of_base, of_variant = [], []
    for rows in variant.slices():
        surprises = _surprises(variant.logits(rows), torch.cat([candidates, nucleus_of_base])).double()
        curve += surprises[:, :-1].sum(0)
        of_variant.append(surprises[:, -1])
        of_base.append(_surprises(base.logits(rows), nucleus_of_base)[:, 0].double())
    before, difference = torch.cat(of_variant), torch.cat(of_base) - torch.cat(of_variant)
    differences = (difference, *(shuffle.of(difference) for shuffle in shuffles))
    targets = [(before + wanted).sum() for wanted in differences]
    return [replace(identity(), top_p=_crossing(curve, target, candidates)) for target in targets]


def _crossing(curve: Tensor, target: Tensor, positions: Tensor) -> float:
    """Return the position where the rising ``curve`` reaches ``target``, interpolated linearly and clamped."""
    above = min(max(int((curve < target).sum()), 1), len(positions) - 1)
    share = ((target - curve[above - 1]) / (curve[above] - curve[above - 1])).clamp(0, 1).item()
    return float(positions[above - 1] + share * (positions[above] - positions[above - 1]))


def _surprises(logits: Tensor, candidates: Tensor) -> Tensor:
    """Return the entropy (nats) of each nucleus of the distributions of ``logits`` [n, vocabulary].

    Float32 [n, candidates].
    """
    log = descending(logits.log_softmax(-1))
    mass = log.exp()
    cumulated = mass.cumsum(-1)
    last = torch.searchsorted(cumulated, candidates.expand(len(log), -1).contiguous())
    last = last.clamp(max=log.shape[1] - 1)
    kept = cumulated.gather(1, last)
    return kept.log() - (mass * log).cumsum(-1).gather(1, last) / kept


def fit(
    variant: Model, base: Model, buckets: int, steps: int, p: float, seed: int
) -> dict[tuple[str, int], Correction]:
    """Return every correction, by its name and the number of its control's shuffle, 0 for the correction itself.

    ``none`` and ``top_p`` are what they start from.
    """
    generator = torch.Generator().manual_seed(seed)
    first = draw_shuffle(len(variant.states), generator, variant.states.device)
    shuffles = [first, first.opposite()]
    variant = variant.keeping()
    if not variant.head.multiplies:
        base = base.keeping()
    true = pair(variant, base)
    corrections = {("none", 0): identity(), ("top_p", 0): replace(identity(), top_p=p)}
    for number, pairing in enumerate([true, *shuffle_pairings(true, shuffles)]):
        corrections["temperature", number] = fit_temperatures(pairing, 1)
        corrections["entropy buckets", number] = fit_temperatures(pairing, buckets)
        corrections["gain", number] = fit_gains(pairing, steps)
    for number, correction in enumerate(remap_nucleus(variant, base, p, shuffles)):
        corrections["nucleus", number] = correction
    corrections["bias", 0] = fit_biases(true, corrections["temperature", 0])
    for number in (1, 2):
        start = replace(corrections["bias", 0], beta=corrections["temperature", number].beta)
        corrections["bias", number] = shuffle_biases(start, true.frequency, generator)
    return corrections


def score(
    corrections: Mapping[Name, Correction], variant: Model, base: Model, targets: Tensor, p: float
) -> dict[Name, dict[str, Tensor]]:
    """Score what each correction leaves of the damage; the values are [n] each.

    They are ``nll``, ``base_nll``, ``kl`` (nats), ``distance`` (total variation), ``same_top1``, ``confidence``,
    ``right``.

    ``targets``: int64 [n], the tokens to be predicted. A correction that cuts tokens off has no likelihood and no KL
    (NaN); its distance is that from the base's nucleus ``p``.
    """
    parts: dict[Name, list[dict[str, Tensor]]] = {name: [] for name in corrections}
    for rows in variant.slices():
        raw, logits, target = variant.logits(rows), base.logits(rows), targets[rows, None]
        log_p = logits.log_softmax(-1)
        mass = log_p.exp()
        nuclear = None
        for name, correction in corrections.items():
            log_q = correction.logits(raw, variant.states[rows], variant.head).log_softmax(-1)
            q = log_q.exp()
            nll = -log_q.gather(1, target)[:, 0]
            if correction.top_p is None:
                kl, other = (mass * (log_p - log_q)).sum(-1), mass
            else:
                nuclear = nucleus(logits, p).softmax(-1) if nuclear is None else nuclear
                nll = kl = torch.full_like(nll, torch.nan)
                other = nuclear
            confidence, top = q.max(-1)
            parts[name].append(
                {
                    "nll": nll,
                    "base_nll": -log_p.gather(1, target)[:, 0],
                    "kl": kl,
                    "distance": 0.5 * (q - other).abs().sum(-1),
                    "same_top1": top == logits.argmax(-1),
                    "confidence": confidence,
                    "right": top == target[:, 0],
                }
            )
    return {
        name: {key: torch.cat([columns[key] for columns in slices]) for key in slices[0]}
        for name, slices in parts.items()
    }
