"""The chart of trainings: a line for the loss, points for what is held out."""

from __future__ import annotations

from hemorrhage.analyze.report.charts.learning import learning_curves
from tests.analyze.report.sections.test_training import TRAINING


def test_lines_are_the_loss_and_points_what_is_held_out() -> None:
    line, points = learning_curves([TRAINING], "nats a token")["data"]
    assert (line["x"], line["y"]) == ([10, 20], [3.0, 2.0])
    assert (points["x"], points["y"]) == ([20], [2.5])
    assert points["text"] == ["small-1 after 20 tokens: 2.500"]
