"""Step ``decode``: what a variant writes under every decoding strategy.

    python -m hemorrhage.decode OUT --variant V --checkpoint DIR --base DIR --closed-ended DIR...
        --open-ended DIR... --spec JSON

``--closed-ended`` and ``--open-ended`` are the folders of the tasks of ``--spec``, hemorrhage.decode.spec.Spec as JSON,
in its order. Where code tasks are asked for and this machine has no sandbox, the step ends in one line. A killed job
resumes at the next batch; a variant that can't be decoded becomes an output that says why.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from pathlib import Path

from hemorrhage.decode.spec import Spec
from hemorrhage.decode.sweep import manifest_fields, resume_directory, sweep
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import failure, failure_recorded, write_manifest, writing


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.decode")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--closed-ended", type=Path, nargs="*", default=[])
    parser.add_argument("--open-ended", type=Path, nargs="*", default=[])
    parser.add_argument("--spec", required=True)
    given = parser.parse_args()
    step.start()
    spec = Spec.model_validate_json(given.spec)
    if spec.code_tasks is not None:
        sandbox = importlib.import_module("hemorrhage.sandbox.runner")
        unavailable = sandbox.missing()
        if unavailable:
            sys.exit(unavailable)
    fields = manifest_fields(given.variant, given.base, given.closed_ended, given.open_ended, spec)
    reason = failure(given.checkpoint)
    if reason:
        with writing(given.out) as part:
            write_manifest(part, failure=f"not decoded: {reason}", **fields)
        return
    with failure_recorded(given.out, **fields):
        try:
            sweep(given.out, given.variant, given.checkpoint, given.base, given.closed_ended, given.open_ended, spec)
        except Exception as error:
            # Of this machine, not of the variant: what is done stays for the next attempt.
            if spec.code_tasks is not None and isinstance(error, sandbox.UnavailableError):
                sys.exit(str(error))
            raise
    shutil.rmtree(resume_directory(given.out), ignore_errors=True)


if __name__ == "__main__":
    main()
