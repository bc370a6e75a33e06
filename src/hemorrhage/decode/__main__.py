"""Step ``decode``: what a variant writes under every decoding strategy.

    python -m hemorrhage.decode OUT --variant V --checkpoint DIR --base DIR --text DIR --task DIR --spec JSON

``--spec`` is hemorrhage.decode.spec.Spec as JSON. A killed job resumes at the next batch; a variant that
can't be decoded becomes an output that says why.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from hemorrhage import step
from hemorrhage.artifact import failure, failure_recorded, write_manifest, writing
from hemorrhage.decode.spec import Spec
from hemorrhage.decode.sweep import about, resume_directory, sweep


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.decode")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--spec", required=True)
    given = parser.parse_args()
    step.start()
    spec = Spec.model_validate_json(given.spec)
    facts = about(given.variant, given.text, given.task, spec)
    reason = failure(given.checkpoint)
    if reason:
        with writing(given.out) as part:
            write_manifest(part, failure=f"not decoded: {reason}", **facts)
        return
    with failure_recorded(given.out, **facts):
        sweep(given.out, given.variant, given.checkpoint, given.base, given.text, given.task, spec)
    shutil.rmtree(resume_directory(given.out), ignore_errors=True)


if __name__ == "__main__":
    main()
