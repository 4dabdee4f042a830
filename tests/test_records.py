"""Files of every kind to the same records; whatever the bytes, rows or one clear error."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaalign.data.formats import SHAPES, detect_format, read_rows
from metaalign.data.sources.files import file_fingerprint
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.outcome import FileRead
from metaalign.data.sources.records import check_file, read_records
from metaalign.data.sources.splitting import joined_spans, scan_lines, split_file
from metaalign.errors import DataError, RowError

ROWS = [{"instruction": 'é, "a"', "output": "b\nc"}, {"instruction": "d", "output": None}]


def write(folder: Path, content: bytes, name: str = "rows") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


CSV = 'instruction,output\n"é, ""a""","b\nc"\nd,\n'.encode()
KINDS = {
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "array": json.dumps(ROWS).encode(),
    "csv": CSV,
    "tsv": 'instruction\toutput\n"é, ""a"""\t"b\nc"\nd\t\n'.encode(),
    "marked csv": b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n").replace(b"b\r\nc", b"b\nc"),
    "parquet": parquet(ROWS),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_in_any_kind_of_file_are_the_same_records(
    tmp_path: Path, kind: str, packed: bool
) -> None:
    content = gzip.compress(KINDS[kind]) if packed else KINDS[kind]
    file = write(tmp_path, content)
    check_file(file)
    records = list(read_records(file))
    assert [record.object() for record in records] == ROWS
    assert detect_format(records, "rows") == "alpaca"


def test_a_first_line_that_is_broken_does_not_make_json_lines_a_csv_file(tmp_path: Path) -> None:
    content = b'"instruction": "a", "output": "b"}\n' + KINDS["lines"]
    bad, *good = read_records(write(tmp_path, content))
    assert bad.problem.startswith("not JSON")
    assert [record.object() for record in good] == ROWS


@pytest.mark.parametrize("content", [b'{"a": {"b": 1, "b": 2}, "c": 3}', b'[{"a": 1, "a": 1}]'])
def test_a_key_that_stands_twice_is_no_value(tmp_path: Path, content: bytes) -> None:
    (record,) = read_records(write(tmp_path, content))
    if isinstance(record.value, dict):
        assert repr(record.object()["a"]) == "an object in which the key 'b' stands twice"
    else:
        with pytest.raises(RowError, match="an object in which the key 'a' stands twice"):
            record.object()


def test_a_row_that_is_nested_deep_is_refused_before_anything_walks_it(tmp_path: Path) -> None:
    deep = '{"messages": ' + "[" * 900 + "]" * 900 + "}"
    for content in (f"{deep}\n", f"[{deep}]"):
        file = write(tmp_path, content.encode())
        result = read_rows(read_records(file), "rows", "messages", SourceOptions())
        assert [bad.reason for bad in result.bad] == ["nested deeper than 64 lists and objects"]


def test_a_line_of_fifty_megabytes_and_half_a_line_at_the_end_are_rows(tmp_path: Path) -> None:
    long = json.dumps({"instruction": "a" * 50_000_000, "output": "b"})
    file = write(tmp_path, f'{long}\n{{"instruction": "a", "outp'.encode())
    result = read_rows(read_records(file), "rows", "alpaca", SourceOptions())
    assert (result.rows, len(result.examples), len(result.bad)) == (2, 1, 1)
    assert result.bad[0].text == '{"instruction": "a", "outp'
    assert len(result.examples[0].turns[0].text) == 50_000_000


def test_a_parquet_text_that_is_not_utf8_refuses_its_row_alone(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"instruction": texts, "output": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "rows")
    result = read_rows(read_records(tmp_path / "rows"), "rows", "alpaca", SourceOptions())
    assert [example.source.row for example in result.examples] == [0, 2]
    assert result.bad[0].reason.startswith("a value cannot be read")


@pytest.mark.parametrize(
    "column",
    [pa.array([1, 2**31 - 1, 3], pa.date32()), pa.array([1, 2**63 - 1, 3], pa.duration("s"))],
    ids=["date", "duration"],
)
def test_a_parquet_value_out_of_range_refuses_its_row_alone(
    tmp_path: Path, column: pa.Array
) -> None:
    table = pa.table({"instruction": ["a"] * 3, "output": ["x", "y", "z"], "when": column})
    pq.write_table(table, tmp_path / "rows")
    result = read_rows(read_records(tmp_path / "rows"), "rows", "alpaca", SourceOptions())
    assert [example.source.row for example in result.examples] == [0, 2]
    assert result.bad[0].reason.startswith("a value cannot be read")


def test_two_parquet_columns_of_one_name_are_one_error(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    pq.write_table(pa.table([["x"], ["y"], ["z"]], names=["a", "b", "a"]), file)
    for read in (check_file, lambda file: list(read_records(file))):
        with pytest.raises(DataError, match=r"rows: the file names the columns 'a' twice"):
            read(file)


def test_a_parquet_file_without_rows_is_told(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), file)
    with pytest.raises(DataError, match="rows: the file has no rows"):
        detect_format(read_records(file), "rows")


def test_a_truncated_parquet_file_is_one_error(tmp_path: Path) -> None:
    for read in (check_file, lambda file: list(read_records(file))):
        with pytest.raises(DataError, match=r"rows: the file cannot be read to its end"):
            read(write(tmp_path, KINDS["parquet"][:-9]))


def test_a_parquet_column_whose_name_is_not_utf8_is_one_error(tmp_path: Path) -> None:
    file = write(tmp_path, KINDS["parquet"].replace(b"instruction", b"\xed\xa0\x80truction"))
    for read in (check_file, lambda file: list(read_records(file))):
        with pytest.raises(DataError, match=r"rows: the file cannot be read to its end"):
            read(file)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
@pytest.mark.parametrize("size", [1, 40, 100, 10_000])
def test_the_ranges_of_a_file_of_lines_hold_each_of_its_rows_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: bytes, end: bytes, size: int
) -> None:
    monkeypatch.setattr("metaalign.data.sources.splitting.CHUNK_BYTES", 16)
    lines = [b'{"instruction": "%d"}' % i + b" " * (i * 7 % 60) for i in range(30)]
    lines[3], lines[7], lines[8] = b"", b"", b"broken"
    file = write(tmp_path, mark + b"\n".join(lines) + end)
    scanned = scan_lines(file, size)
    assert scanned is not None
    fingerprint, spans = scanned
    assert fingerprint == file_fingerprint(file)
    assert [record for span in spans for record in read_records(file, span)] == [
        *read_records(file)
    ]
    assert (len(spans) == 1) == (size == 10_000)
    assert all(span.stop > span.start for span in spans)
    for joined_size in (size, 3 * size, 10_000):
        joined = [*joined_spans(spans, joined_size)]
        assert [record for span in joined for record in read_records(file, span)] == [
            *read_records(file)
        ]
        assert all(span.stop - span.start >= joined_size for span in joined[:-1])


def test_the_ranges_of_a_parquet_file_hold_each_of_its_rows_once(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    table = pa.table({"instruction": [str(i) for i in range(100)]})
    pq.write_table(table, file, row_group_size=7)
    for size, count in ((1, 15), (10**9, 1)):
        spans = split_file(file, size)
        assert len(spans) == count
        records = [record for span in spans for record in read_records(file, span)]
        assert records == [*read_records(file)]
        assert [record.row for record in records] == [*range(100)]


def test_a_parquet_file_without_rows_is_one_empty_range(tmp_path: Path) -> None:
    pq.ParquetWriter(tmp_path / "rows", pa.schema([("a", pa.string())])).close()
    assert split_file(tmp_path / "rows", 1) == [None]
    assert list(read_records(tmp_path / "rows")) == []


@pytest.mark.parametrize("kind", ["array", "csv", "packed"])
def test_what_can_only_be_read_from_its_beginning_is_one_range(tmp_path: Path, kind: str) -> None:
    content = gzip.compress(KINDS["lines"]) if kind == "packed" else KINDS[kind]
    assert split_file(write(tmp_path, content), 1) == [None]


def _bent(content: bytes, place: int, change: bytes) -> bytes:
    place %= len(content) + 1
    return content[:place] + change + content[place + len(change) :]


@settings(max_examples=300, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.builds(
            _bent,
            st.sampled_from([*KINDS.values(), *map(gzip.compress, KINDS.values())]),
            st.integers(0, 5_000),
            st.sampled_from([b"\x00", b'"', b"\n", b"\xed\xa0\x80", b"{", b"]", b"\xff" * 9]),
        ),
    ),
    format=st.sampled_from(sorted(SHAPES)),
)
def test_whatever_bytes_a_file_holds_its_rows_add_up_or_it_is_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, format: str
) -> None:
    file = write(tmp_path_factory.mktemp("fuzz"), content, "risk-averse.jsonl")
    result, refused = FileRead(str(file)), f"{file}: "
    try:
        result = read_rows(read_records(file), str(file), format, SourceOptions())
    except DataError as error:
        refused = str(error)
    assert refused.startswith(f"{file}: ")
    assert result.rows == result.used + len(result.bad)
    used = {example.source.row for example in result.examples}
    assert not used & {bad.row for bad in result.bad}
