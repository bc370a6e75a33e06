"""Numbers of tokens of a prompt, and that params.yaml is checked with them without torch."""

from __future__ import annotations

import subprocess
import sys

from hemorrhage.models.emulation.evicted import evicted_tokens, scored_prompt
from tests.conftest import ROOT


def test_a_share_of_the_first_half_goes() -> None:
    assert [scored_prompt(tokens) for tokens in (64, 65, 1)] == [32, 32, 0]
    assert [evicted_tokens(32, ratio) for ratio in (0.0, 0.01, 0.5, 0.95)] == [0, 0, 16, 30]


def test_settings_are_checked_without_torch() -> None:
    code = (
        "import sys\n"
        "from hemorrhage.compress.methods.cache_eviction.eviction import Settings\n"
        "Settings(score='snapkv', ratio=0.5).check_text(64)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
