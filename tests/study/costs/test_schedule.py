"""A schedule is that of a simulation by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from hemorrhage.study.costs.schedule import critical_path, makespan
from hemorrhage.study.kinds import Key


def by_hand(
    seconds: Mapping[Key, float], needs: Mapping[Key, Sequence[Key]], threads: Mapping[Key, int], cores: int
) -> float:
    """In steps of one second: begin what is ready and fits, in order."""
    left, waiting, now = dict(seconds), list(seconds), 0
    running: dict[Key, float] = {}
    while waiting or running:
        for key in list(waiting):
            ready = all(need not in waiting and need not in running for need in needs[key] if need in seconds)
            if ready and sum(threads[each] for each in running) + threads[key] <= cores:
                running[key] = left[key]
                waiting.remove(key)
        now += 1
        running = {key: rest - 1 for key, rest in running.items() if rest > 1}
    return now


def test_makespan_and_critical_path_against_a_simulation_by_hand() -> None:
    keys = [("evaluations", name) for name in "abcdef"]
    needs = {key: [keys[index // 2 - 1]] if index > 1 else [] for index, key in enumerate(keys)}
    for lengths in itertools.islice(itertools.permutations((1, 2, 3, 5, 8, 13)), 0, 720, 37):
        seconds = dict(zip(keys, map(float, lengths), strict=True))
        for cores in (1, 2, 3):
            threads = dict(zip(keys, (1, 2, 1, 1, 2, 1), strict=True))
            threads = {key: min(count, cores) for key, count in threads.items()}
            assert makespan(seconds, needs, threads, cores) == by_hand(seconds, needs, threads, cores)
        path = critical_path(seconds, needs)
        chains = [[keys[0], keys[2]], [keys[0], keys[3]], [keys[1], keys[4]], [keys[1], keys[5]]]
        assert sum(seconds[key] for key in path) == max(sum(seconds[key] for key in chain) for chain in chains)
