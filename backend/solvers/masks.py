"""Which weights to keep: given a score for each, or learned.

Learned masks: of each M consecutive inputs of a row N are kept, in one of K = C(M, N) patterns P_k [M].

    p = softmax((κ g + e) / τ) over the patterns [K, groups],  e = -log(-log U) Gumbel noise,  g logits
    m = Σ_k p_k P_k   while learning,      the pattern of the largest g in the end
    start: g = n + 0.01 alpha (P_k · m0 - N²/M),   n ~ N(0, 0.01²),  m0 a mask to start from
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

# Spread of the logits where nothing is known.
SPREAD = 0.01
# κ; and τ at the first and at the last step.
_SCALE = 100.0
_TEMPERATURE = (1.0, 0.1)


def keep_pattern(scores: Tensor, pattern: str) -> Tensor:
    """Mask [rows, in] of the N highest scores of every M consecutive inputs; the first of equals wins."""
    keep, of = (int(number) for number in pattern.split(":"))
    grouped = scores.reshape(-1, of)
    best = grouped.argsort(dim=-1, descending=True, stable=True)[:, :keep]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, best, True).view(scores.shape)


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """Mask without the int(n * sparsity) lowest of the n scores of each row; exact, also with ties."""
    drop = int(scores.shape[-1] * sparsity)
    worst = scores.argsort(dim=-1, stable=True)[..., :drop]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, worst, False)


def patterns_of(pattern: str) -> Tensor:
    """Every way [K, M] float32 to keep N of M, in the order 1100, 1010, .. 0011."""
    keep, of = (int(number) for number in pattern.split(":"))
    table = torch.zeros(0, of)
    for ones in combinations(range(of), keep):
        row = torch.zeros(1, of)
        row[0, list(ones)] = 1
        table = torch.cat([table, row])
    return table


def first_logits(
    start: Tensor, table: Tensor, alpha: float, rng: torch.Generator, noise: float = 1.0
) -> Tensor:
    """Logits [K, groups] that lean towards `start` [rows, in], the more the larger `alpha`.

    start     a mask, or numbers from 0 to N that sum to N in each group of M and tell how much each is wanted
    noise     share of the random part, which alone would make every pattern as likely
    """
    shape = (len(table), start.numel() // table.shape[1])
    random = (SPREAD * noise * torch.randn(shape, generator=rng)).to(start.device)
    shared = table @ start.reshape(-1, table.shape[1]).T.to(table)
    return random + alpha * SPREAD * (shared - table[0].sum().square() / table.shape[1])


def wanted_shares(scores: Tensor, mask: Tensor, of: int) -> Tensor:
    """How much of its group's N each of `of` neighbours is wanted [rows, in]: N times its share of scores.

    Where `mask` [rows, in] keeps others than the best N, those that it keeps are lifted above the rest, so
    that it holds what is wanted most in any case.
    """
    grouped, kept = scores.reshape(-1, of), mask.reshape(-1, of)
    least = grouped.masked_fill(~kept, torch.inf).amin(dim=1, keepdim=True)
    most = grouped.masked_fill(kept, 0.0).amax(dim=1, keepdim=True)
    lift = 2 * most + 0.01 * grouped.sum(dim=1, keepdim=True)
    lifted = torch.where((least <= most) & kept, grouped + lift, grouped)
    # Where no score tells anything, the mask does.
    lifted = torch.where(lifted.sum(dim=1, keepdim=True) > 0, lifted, kept.to(lifted))
    return (kept.sum(dim=1, keepdim=True) * lifted / lifted.sum(dim=1, keepdim=True)).view(scores.shape)


def gumbel(logits: Tensor, rng: torch.Generator) -> Tensor:
    """Noise whose addition makes the largest logit a draw from their softmax."""
    return torch.rand(logits.shape, generator=rng).log_().neg_().log_().neg_().to(logits)


def soft_mask(scaled: Tensor, table: Tensor, temperature: float, shape: tuple[int, ...]) -> Tensor:
    """A convex mix of patterns for each group, as a mask [rows, in] with entries from 0 to 1.

    scaled    κ g + e [K, groups]
    """
    odds = torch.softmax(scaled / temperature, dim=0)
    return (table.T @ odds).T.reshape(shape)


def hard_mask(logits: Tensor, table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask [rows, in], bool, of each group's most likely pattern."""
    return table.bool()[logits.argmax(dim=0)].view(shape)


def decided(logits: Tensor) -> Tensor:
    """Logits [K, groups] under which no noise changes the choice."""
    best = torch.zeros_like(logits, dtype=torch.bool).scatter_(0, logits.argmax(dim=0, keepdim=True), True)
    return torch.zeros_like(logits).masked_fill_(~best, -torch.inf)


@dataclass(frozen=True)
class Choice:
    """Patterns [K, M], how firmly a start is believed, and the share of noise in start and draws."""

    table: Tensor
    alpha: float
    noise: float

    def first(self, start: Tensor, rng: torch.Generator) -> Tensor:
        """Logits [K, groups] to start from."""
        return first_logits(start, self.table.to(start), self.alpha, rng, self.noise)

    def soft(self, logits: Tensor, shape: tuple[int, ...], share: float, rng: torch.Generator) -> Tensor:
        """A soft mask at a share of the way; it hardens from step to step."""
        scaled, (hot, cold) = _SCALE * logits, _TEMPERATURE
        if self.noise:
            scaled = scaled + self.noise * gumbel(logits, rng)
        return soft_mask(scaled, self.table.to(logits), hot * (cold / hot) ** share, shape)

    def hard(self, logits: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The mask that the logits stand for."""
        return hard_mask(logits, self.table.to(logits), shape)
