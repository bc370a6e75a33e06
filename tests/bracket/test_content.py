"""What a screening found, written and read."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.bracket.content import Addition, Bracket, CurveBracket, Screened, read

SCREENED = Screened("rtn-8", 0.1, 0.05, 0.2, 0.6, "inside")
CURVE = CurveBracket("rtn", "bits", "rtn-8", "rtn-4", ("rtn-6",), ("rtn-5",), "")


def test_a_bracket_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = Bracket(
        4, 3, (SCREENED,), (CURVE,), (Addition("rtn-5", "rtn", {"bits": 5}),), ("rtn-8", "rtn-5"), {"x": "no luck"}
    )
    made.write(tmp_path)
    assert read(tmp_path) == made


def test_what_no_engine_uses_or_what_is_no_smaller_can_not_ship() -> None:
    assert SCREENED.could_ship
    assert not Screened("a", 0.1, 0.05, 0.2, 1.0, "inside").could_ship
    assert not Screened("a", 0.1, 0.05, 0.2, 0.5, "inside", "no engine").could_ship
