"""k-means by Lloyd's steps, in pieces that fit in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

# Rows whose distances to all centres exist at once.
_ROWS = 4096


def k_means(
    rows: Tensor, count: int, steps: int, rng: torch.Generator, told: Callable[[int], None]
) -> Tensor:
    """The cluster [n] int64 of each row [n, d] float32; none of the `count` clusters is empty.

    Begins with rows drawn at random and ends when no row moves or after so many steps. A centre that no row
    is nearest to moves to the row that is farthest from its own.
    """
    count = min(count, len(rows))
    centres = rows[torch.randperm(len(rows), generator=rng)[:count].to(rows.device)]
    before: Tensor | None = None
    for step in range(steps + 1):
        told(step)
        clusters, apart = _nearest(rows, centres)
        empty = (torch.bincount(clusters, minlength=count) == 0).nonzero()[:, 0]
        if len(empty):
            far = apart.topk(len(empty)).indices
            clusters[far] = empty
            if bool((torch.bincount(clusters, minlength=count) == 0).any()):
                # A row that was alone in its cluster has moved: the next step mends it.
                before = None
        if before is not None and torch.equal(clusters, before):
            break
        before = clusters
        centres = means(rows, clusters, count)
    return _filled(clusters, count)


def means(rows: Tensor, clusters: Tensor, count: int) -> Tensor:
    """Mean of each cluster's rows [count, d] in float32; zero where there is none."""
    total = torch.zeros(count, rows.shape[1], dtype=torch.float64, device=rows.device)
    total.index_add_(0, clusters, rows.double())
    sizes = torch.bincount(clusters, minlength=count).clamp(min=1)
    return (total / sizes[:, None]).float()


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(number of the nearest centre, squared distance to it) of each row."""
    lengths = centres.square().sum(dim=1)
    found = []
    for some in rows.split(_ROWS):
        best = torch.addmm(lengths, some, centres.T, beta=1, alpha=-2).min(dim=1)
        found.append((best.indices, best.values + some.square().sum(dim=1)))
    return torch.cat([numbers for numbers, _ in found]), torch.cat([apart for _, apart in found])


def _filled(clusters: Tensor, count: int) -> Tensor:
    """Give each empty cluster a row of the largest one."""
    for number in (torch.bincount(clusters, minlength=count) == 0).nonzero()[:, 0].tolist():
        largest = int(torch.bincount(clusters, minlength=count).argmax())
        clusters[int((clusters == largest).nonzero()[0])] = number
    return clusters
