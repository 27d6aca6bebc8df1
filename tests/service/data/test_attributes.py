"""Attributes from a CSV file: found by key or by row, and refused in the user's words."""

import numpy as np
import pyarrow as pa
import pytest

from service.data.attributes import read_attributes
from service.data.index import Index
from service.errors import DataError, UsageError


def index(*keys: str) -> Index:
    zeros = np.zeros(len(keys), np.int32)
    marks = np.zeros(len(keys), bool)
    return Index({"a.tar": 9}, zeros, zeros.astype(np.int64), zeros, zeros, marks, pa.array(keys))


FOUR = index("a", "b", "c", "d")


@pytest.mark.parametrize("lines", ["key,hat,beard\nc,1,0\na,0,1\n", "row,hat,beard\n2,1,0\n0,0,1\n"])
def test_images_are_named_by_key_or_row_in_any_order(tmp_path, lines):
    (tmp_path / "a.csv").write_text(lines)
    table = read_attributes(str(tmp_path / "a.csv"), FOUR)
    assert table.names == ("hat", "beard")
    there, values = table.among(np.array([3, 2, 0, 2]))
    assert there.tolist() == [False, True, True, True]
    assert values.tolist() == [[1, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key,hat\n", "it has no rows"),
        ("name,hat\na,1\n", "line 1 names the columns name, hat.*the first column is 'key' or 'row'"),
        ("key\na\n", "line 1 names the columns key"),
        ("key,hat\na,yes\n", "an image has hat 'yes'.*the others hold 0 or 1"),
        ("key,hat\na,1\ne,0\n", "the index has no sample 'e'"),
        ("key,hat\na,1\na,0\n", "a key is there twice"),
        ("row,hat\n4,1\n", r"rows 4 … 4, but the index has 4"),
        ("row,hat\n1,1,0\n", "line 2 has 3 cells, but line 1 has 2"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_attributes(str(tmp_path / "a.csv"), FOUR)


def test_keys_that_several_shards_share_need_rows(tmp_path):
    (tmp_path / "a.csv").write_text("key,hat\na,1\n")
    with pytest.raises(DataError, match="shards share keys, such as a; name rows instead"):
        read_attributes(str(tmp_path / "a.csv"), index("a", "b", "a"))


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.csv: cannot be read .* give a CSV file of attributes"):
        read_attributes(str(tmp_path / "gone.csv"), FOUR)
