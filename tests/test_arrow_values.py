"""Tables of Arrow as plain values, whatever the types of their columns."""

import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from metaalign.data.sources.records import read_records, table_records


def test_numbers_and_maps_of_arrow_are_plain_values(tmp_path: Path) -> None:
    decimal = pa.decimal128(5, 2)
    annotations = pa.map_(pa.string(), decimal)
    nested = pa.list_(pa.struct([("text", pa.string()), ("annotations", annotations)]))
    table = pa.table(
        {
            "score": pa.array([Decimal("4.50"), None], decimal),
            "scores": pa.array([[Decimal("1.25"), None], []], pa.list_(decimal)),
            "map": pa.array([[("a", 1), ("b", None)], None], pa.map_(pa.string(), pa.int64())),
            "answers": pa.array(
                [[{"text": "x", "annotations": [("kind", Decimal("2.00"))]}], None], nested
            ),
            "nan": pa.array([float("nan"), 1.5]),
            "nans": pa.array([[float("nan"), 1.5], [float("inf")]]),
            "half": pa.array([1.5, None], pa.float16()),
            "whole": pa.array([3, None], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "rows")
    first, second = (record.object() for record in read_records(tmp_path / "rows"))
    assert first == {
        "score": 4.5,
        "scores": [1.25, None],
        "map": {"a": 1, "b": None},
        "answers": [{"text": "x", "annotations": {"kind": 2.0}}],
        "nan": None,
        "nans": [None, 1.5],
        "half": 1.5,
        "whole": 3,
    }
    assert second == {
        "score": None, "scores": [], "map": None, "answers": None, "nan": 1.5,
        "nans": [float("inf")], "half": None, "whole": None,
    }  # fmt: skip
    assert type(first["score"]) is float


def test_texts_of_every_arrow_type_are_texts() -> None:
    day = datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.UTC)
    columns = {
        "binary": pa.array(["café".encode(), b"\xff"]),
        "large": pa.array(["a", None], pa.large_string()),
        "dictionary": pa.array(["a", "a"]).dictionary_encode(),
        "view": pa.array(["a", None], pa.string_view()),
        "day": pa.array([day.date(), None]),
        "moment": pa.array([day, None], pa.timestamp("us", "UTC")),
        "moments": pa.array([[day], []], pa.list_(pa.timestamp("ns", "UTC"))),
    }
    batch = pa.record_batch(columns)
    first, second = (record.object() for record in table_records(0, batch))
    assert first == {
        "binary": "café",
        "large": "a",
        "dictionary": "a",
        "view": "a",
        "day": "2024-05-01",
        "moment": "2024-05-01T12:30:00+00:00",
        "moments": ["2024-05-01T12:30:00+00:00"],
    }
    assert second["binary"] == "\udcff"  # no text, which is refused where it is read


def test_a_map_with_a_key_twice_refuses_its_row_alone() -> None:
    maps = pa.array([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))
    first, second = table_records(5, pa.record_batch({"m": maps}))
    assert first.object() == {"m": {"a": 1}}
    assert (second.row, second.value) == (6, None)
    assert second.problem.startswith("a value cannot be read")
