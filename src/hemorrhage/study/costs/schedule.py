"""Duration of a run: the jobs that are missing, assigned to cores as Snakemake's greedy scheduler does."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from hemorrhage.study.kinds import KINDS, Key


def critical_path(seconds: Mapping[Key, float], needs: Mapping[Key, Sequence[Key]]) -> list[Key]:
    """Return the chain of jobs that takes longest; keys of ``seconds`` are in an order in which they can run.

    ``needs`` that are no key of ``seconds`` exist already.
    """
    ends: dict[Key, float] = {}
    before: dict[Key, Key | None] = {}
    for key, duration in seconds.items():
        last = max((need for need in needs[key] if need in ends), key=lambda need: ends[need], default=None)
        ends[key] = duration + (ends[last] if last else 0.0)
        before[key] = last
    at: Key | None = max(ends, key=lambda key: ends[key], default=None)
    path: list[Key] = []
    while at:
        path.append(at)
        at = before[at]
    return path[::-1]


def makespan(
    seconds: Mapping[Key, float], needs: Mapping[Key, Sequence[Key]], threads: Mapping[Key, int], cores: int
) -> float:
    """Seconds until all jobs have run on ``cores`` cores; a job takes its seconds on its threads, at most the cores."""
    waiting = {key: {need for need in needs[key] if need in seconds} for key in seconds}
    order = {key: (-KINDS[key[0]].priority if key[0] in KINDS else 0, place) for place, key in enumerate(seconds)}
    running: list[tuple[float, int, Key]] = []
    free, now = cores, 0.0
    while waiting or running:
        for key in sorted((key for key, open_ in waiting.items() if not open_), key=order.__getitem__):
            taken = min(threads[key], cores)
            if taken <= free:
                free -= taken
                heapq.heappush(running, (now + seconds[key], taken, key))
                del waiting[key]
        now, taken, done = heapq.heappop(running)
        free += taken
        for open_ in waiting.values():
            open_.discard(done)
    return now
