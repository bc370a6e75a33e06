"""What methods read of a calibration set, stored or collected while they go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hemorrhage.calibrate.reader import Statistics, Streamed
from hemorrhage.calibrate.statistics import collect
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from tests.calibration import calibrated


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("calibrate"))


def test_second_moments_beyond_the_limit_are_not_stored_but_collected(
    tiny: Path, calibration: Path, tmp_path: Path
) -> None:
    base = load(tiny)
    found = collect(base, load_file(calibration / "tokens.safetensors")["tokens"], tmp_path, limit=1e5)
    stored_file = load_file(calibration / "hessian.safetensors")
    assert found == {"hessian_bytes": sum(4 * len(value) for value in stored_file.values()), "hessian_stored": False}
    assert not load_file(tmp_path / "hessian.safetensors")
    stored, streamed = Statistics(calibration), Streamed(calibration, None, base, propagated=False)
    assert list(streamed.shared()) == list(stored.shared())
    for first in stored.shared():
        torch.testing.assert_close(streamed.second_moment(first), stored.second_moment(first), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(streamed.norms(first), stored.norms(first), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(streamed.max_abs(first), stored.max_abs(first))


def test_propagated_statistics_are_those_behind_the_altered_blocks(tiny: Path, calibration: Path) -> None:
    model = load(tiny)
    statistics = Streamed(calibration, None, model, propagated=True)
    firsts = list(statistics.shared())
    statistics.second_moment(firsts[0])
    for linear in linears_of(model).values():
        # What lies ahead counts only when it is reached; block 0 counts because block 1 is asked for.
        linear.weight.data *= 0.5
    ahead = next(first for first in firsts if ".layers.1." in first)
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(ahead).register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        model(statistics.tokens())
    hook.remove()
    expected = seen[0].T @ seen[0] / len(seen[0])
    torch.testing.assert_close(statistics.second_moment(ahead), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="was passed"):
        statistics.second_moment(firsts[0])
