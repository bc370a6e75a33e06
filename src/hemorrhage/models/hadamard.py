"""Random orthogonal matrices that are cheap to multiply with: Hadamard matrices with random signs.

A Hadamard matrix H of order n has entries ±1 and ``H Hᵀ = n I``. Order 2n comes from order n by Sylvester's
doubling, and Paley's constructions give the order ``q + 1`` for a prime ``q ≡ 3 (mod 4)`` and ``2 (q + 1)``
for a prime ``q ≡ 1 (mod 4)``: 12, 20, 28, 36, 44 and so on. With these nearly every width of a language model
can be had: 576 = 16 · 36, 1536 = 128 · 12, 14336 = 512 · 28; 11008 = 64 · 172 cannot (not with small
factors).

With random signs, the entries of ``x Q`` all have about the same size whatever x is, which is what
rotation methods want (QuIP#, Tseng et al., arXiv 2402.04396; QuaRot, Ashkboos et al., arXiv 2404.00456).
Where the width allows no Hadamard matrix, Q is the Kronecker product of two random orthogonal matrices behind
a random permutation, as in QuIP (Chee et al., arXiv 2307.13304, section 4).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 512
"""Order of the largest factor: a larger one would cost too much for every row that is multiplied with it."""


@dataclass(frozen=True)
class Rotation:
    """The orthogonal matrix ``Q = D P (A ⊗ B)`` of order n: signs D, permutation P, A [p, p], B [q, q].

    ``signs`` float32 [n], ``order`` int64 [n] or None for no permutation, ``left`` and ``right`` float32; p q
    = n.
    """

    signs: Tensor
    order: Tensor | None
    left: Tensor
    right: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Return ``x Q`` of the rows ``x`` float32 [..., k · n]; with k > 1, each n columns are rotated alike."""
        groups: Tensor = x.unflatten(-1, (-1, len(self.signs))) * self.signs
        if self.order is not None:
            groups = groups[..., self.order]
        cells: Tensor = groups.unflatten(-1, (len(self.left), len(self.right)))
        # Transposed for the second product, which would else be one for every row.
        return ((cells @ self.right).mT @ self.left).mT.flatten(-3)

    def restore(self, x: Tensor) -> Tensor:
        """Return ``x Qᵀ`` of the rows ``x`` float32 [..., k · n]: what ``rotate`` did, undone."""
        cells: Tensor = x.unflatten(-1, (-1, len(self.left), len(self.right)))
        groups = ((cells @ self.right.T).mT @ self.left.T).mT.flatten(-2)
        if self.order is not None:
            groups = torch.empty_like(groups).index_copy_(-1, self.order, groups)
        return (groups * self.signs).flatten(-2)


@dataclass(frozen=True)
class MeanKept:
    """The orthogonal matrix ``Q G`` that leaves the vector of ones, and so the mean of a row, as it is.

    Q is ``inner``; G, the reflection that takes ``Qᵀ 1`` back to 1, has the normal ``normal`` float32 [n]. The entries
    of G beside its diagonal are of order 1/n, so that ``x Q G`` is as even as ``x Q``.
    """

    inner: Rotation
    normal: Tensor

    @classmethod
    def of(cls, inner: Rotation) -> MeanKept:
        """Make it of any rotation."""
        ones = torch.ones(len(inner.signs))
        # Qᵀ 1 is 1 Q of the row of ones.
        normal = inner.rotate(ones) - ones
        length = normal.norm()
        return cls(inner, torch.zeros_like(normal) if length < 1e-5 else normal / length)

    def rotate(self, x: Tensor) -> Tensor:
        """Return ``x Q G`` of the rows ``x`` float32 [..., n]."""
        turned = self.inner.rotate(x)
        return turned - 2 * (turned @ self.normal)[..., None] * self.normal


def rotation(seed: int, left: int, right: int, *, from_hadamard: bool) -> Rotation:
    """Return the rotation of order ``left · right`` of the number ``seed``, the same at every call.

    Hadamard matrices of the orders ``left`` and ``right`` behind random signs, or random orthogonal matrices
    of these orders behind a random permutation.
    """
    generator = torch.Generator().manual_seed(seed)
    width = left * right
    if from_hadamard:
        signs = torch.randint(2, (width,), generator=generator) * 2.0 - 1
        a, b = (hadamard(order) / order**0.5 for order in (left, right))
        return Rotation(signs, None, a.float(), b.float())
    a, b = (orthogonal(order, generator) for order in (left, right))
    return Rotation(torch.ones(width), torch.randperm(width, generator=generator), a.float(), b.float())


def factors(width: int) -> tuple[int, int, bool]:
    """``left``, ``right`` and ``from_hadamard`` for a rotation of order ``width``: the orders most alike."""
    pairs = [(p, width // p) for p in range(1, width + 1) if width % p == 0 and p * p <= width]
    for left, right in reversed(pairs):
        if right <= LARGEST and constructible(left) and constructible(right):
            return left, right, True
    return *pairs[-1], False


def orthogonal(width: int, generator: torch.Generator) -> Tensor:
    """Return a uniformly (Haar) random orthogonal matrix, float64 [width, width]."""
    q: Tensor
    r: Tensor
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


@functools.cache
def constructible(order: int) -> bool:
    """Return whether ``hadamard`` can make a matrix of this order."""
    return order in (1, 2) or _paley(order) is not None or (order % 4 == 0 and constructible(order // 2))


def hadamard(order: int) -> Tensor:
    """Return a Hadamard matrix, float64 [order, order] of ±1. Raises ValueError where none is known here."""
    if order in (1, 2):
        return torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)[:order, :order]
    if order % 4 == 0 and constructible(order // 2):
        return torch.kron(hadamard(2), hadamard(order // 2))
    construction = _paley(order)
    if construction is None:
        raise ValueError(f"no Hadamard matrix of order {order} can be made here")
    prime, doubled = construction
    core = _conference(prime)
    eye = torch.eye(prime + 1, dtype=torch.float64)
    if not doubled:
        return core + eye
    return torch.kron(core, hadamard(2)) + torch.kron(eye, torch.tensor([[1, -1], [-1, -1]]).double())


def _paley(order: int) -> tuple[int, bool] | None:
    """Return the prime, and whether it is the second construction, that give a Hadamard matrix of this order."""
    if order % 4 == 0 and (order - 1) % 4 == 3 and _is_prime(order - 1):
        return order - 1, False
    if order % 4 == 0 and (order // 2 - 1) % 4 == 1 and _is_prime(order // 2 - 1):
        return order // 2 - 1, True
    return None


def _conference(prime: int) -> Tensor:
    """Paley's matrix C [prime + 1, prime + 1]: zero diagonal, else ±1, and ``C Cᵀ = prime · I``.

    Bordered by ones: Q_ij = 1 where i - j is a square modulo the prime, -1 where it is none. Symmetric for
    primes of the form 4k + 1; skew for 4k + 3, so that ``I + C`` is a Hadamard matrix.
    """
    difference = (torch.arange(prime)[:, None] - torch.arange(prime)[None]) % prime
    square = torch.full((prime,), -1.0, dtype=torch.float64)
    square[torch.arange(1, prime).square() % prime] = 1
    square[0] = 0
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[1:, 1:] = square[difference]
    matrix[0, 1:] = 1
    matrix[1:, 0] = 1 if prime % 4 == 1 else -1
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
