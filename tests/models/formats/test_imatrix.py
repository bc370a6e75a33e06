"""Importance matrices: both formats are written and read, as llama.cpp has them."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from hemorrhage.models.formats.imatrix import Seen, of_parts, problem, read, write

SEEN = {
    "blk.0.attn_q.weight": Seen(torch.tensor([[1.0, 2.0, 0.5, 0.0]]), torch.tensor([48.0])),
    # The second expert saw no token.
    "blk.0.ffn_up_exps.weight": Seen(
        torch.tensor([[4.0, 1.0], [0.0, 0.0], [9.0, 3.0]]), torch.tensor([32.0, 0.0, 16.0])
    ),
}
READ = {
    "blk.0.attn_q.weight": [1.0, 2.0, 0.5, 0.0],
    "blk.0.ffn_up_exps.weight": [4.0, 1.0, 1.0, 1.0, 9.0, 3.0],
}


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_what_is_written_is_read_back(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"model{suffix}", SEEN, 16, ["prose", "code"])
    assert {name: values.tolist() for name, values in read(tmp_path / f"model{suffix}").items()} == READ
    assert problem(tmp_path / f"model{suffix}") is None


def test_a_gguf_file_has_sums_and_counts_of_tokens(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", SEEN, 16, ["prose", "code"])
    reader = GGUFReader(tmp_path / "model.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert said == {
        "general.type": "imatrix",
        "imatrix.datasets": ["prose", "code"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 16,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.attn_q.weight.in_sum2"].data.tolist() == [[48, 96, 24, 0]]
    experts = tensors["blk.0.ffn_up_exps.weight.counts"]
    # ggml has the inputs first.
    assert (experts.shape.tolist(), experts.data.tolist()) == ([1, 3], [[32], [0], [16]])


def test_the_older_format_is_a_list_of_records(tmp_path: Path) -> None:
    """Written record by record, as llama.cpp reads it: name, chunks, numbers, then how many chunks and of what."""
    name = b"blk.0.attn_q.weight"
    values = np.array([3, 6, 1.5, 0], dtype=np.float32)
    record = struct.pack("<i", len(name)) + name + struct.pack("<ii", 3, 4) + values.tobytes()
    content = struct.pack("<i", 1) + record + struct.pack("<ii", 3, 5) + b"prose"
    write(tmp_path / "model.dat", {"blk.0.attn_q.weight": SEEN["blk.0.attn_q.weight"]}, 16, ["prose"])
    assert (tmp_path / "model.dat").read_bytes() == content
    # Older files end behind the records.
    (tmp_path / "old.dat").write_bytes(content[:-13])
    assert read(tmp_path / "old.dat")["blk.0.attn_q.weight"].tolist() == [1, 2, 0.5, 0]


def test_parts_of_a_tensor_are_as_many_as_the_models() -> None:
    squares = {name: torch.tensor(values) for name, values in READ.items()}
    parts = of_parts(squares, "blk.0.ffn_up_exps.weight", 3, 2)
    assert parts is not None
    assert [part.tolist() for part in parts] == [[4, 1], [1, 1], [9, 3]]
    assert of_parts(squares, "output.weight", 1, 2) is None
    with pytest.raises(ValueError, match=r"has 6 inputs of blk\.0\.ffn_up_exps\.weight; the model has 8"):
        of_parts(squares, "blk.0.ffn_up_exps.weight", 4, 2)


def test_what_is_no_importance_matrix_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.dat", SEEN, 16, ["prose"])
    whole = (tmp_path / "model.dat").read_bytes()
    for content, why in (
        (whole[:60], "ends before its last record does, or is no importance matrix"),
        (b"PK\x03\x04" + bytes(40), "ends before its last record does"),
        (struct.pack("<i", 0), "has no tensor"),
        (whole.replace(struct.pack("<f", 8.0), struct.pack("<f", -8.0)), "squares that are no numbers from 0 on"),
        (b"GGUF" + bytes(40), "its version is 0"),
    ):
        (tmp_path / "odd").write_bytes(content)
        with pytest.raises(ValueError, match=why):
            read(tmp_path / "odd")
        # Numbers take the whole file to look at.
        assert "squares" in why or re.search(why, problem(tmp_path / "odd") or "")
    with pytest.raises(ValueError, match=r"an importance matrix is a file \.gguf or \.dat"):
        write(tmp_path / "model.txt", SEEN, 16, ["prose"])
