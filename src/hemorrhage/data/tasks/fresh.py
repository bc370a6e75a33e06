"""Step ``fresh_task``: items of a probe task that no other step reads, for a confirmation.

    python -m hemorrhage.data.tasks.fresh OUT --task recall --items 400 --skip 48 --seed 0

They are those that follow the first ``--skip`` of the same seed, from the next group on: as many as are asked for, or
as there are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hemorrhage.data.tasks.probes import TASKS, Item, make_at_most, write
from hemorrhage.runtime.step import InputError, start


def make_fresh(task: str, items: int, skip: int, seed: int) -> list[Item]:
    """Make up to ``items`` items whose groups come after those of the first ``skip``. Raises InputError without any."""
    # A group may be cut at the end of those that are skipped; none has more than four items.
    rows = make_at_most(task, skip + items + 4, seed)
    groups = {row["group"] for row in rows[:skip]}
    left = [row for row in rows if row["group"] not in groups][:items]
    if not left:
        raise InputError(f"task {task} has {len(rows)} items, and the evaluation takes {skip}: none is left")
    return [{**row, "item": number} for number, row in enumerate(left)]


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.data.tasks.fresh")
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--skip", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    rows = make_fresh(arguments.task, arguments.items, arguments.skip, arguments.seed)
    write(arguments.task, rows, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
