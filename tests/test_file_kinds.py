"""What files are written in: UTF-16, objects over several lines, a list inside an object, NaN."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from metaalign.data.formats import read_rows
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.records import check_file, read_records
from metaalign.data.sources.splitting import split_file
from metaalign.errors import DataError
from tests.test_records import KINDS, write


def test_nan_of_json_is_null_and_infinity_is_none_that_can_be_read(tmp_path: Path) -> None:
    for content in ('{"a": NaN, "b": [NaN, -Infinity]}', '[{"a": NaN, "b": [NaN, -Infinity]}]'):
        (record,) = read_records(write(tmp_path, content.encode()))
        assert record.object() == {"a": None, "b": [None, float("-inf")]}


ACCENTS = '{"instruction": "Où est 🙂?\\u2028", "output": "là\u2028\x85bas"}\n'
WIDE_ROWS = [
    {"instruction": "Où est 🙂?\u2028", "output": "là\u2028\x85bas"},
    {"instruction": "a", "output": "b"},
]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_utf16_and_utf32_are_read_by_their_mark(
    tmp_path: Path, encoding: str, packed: bool
) -> None:
    def rows(text: str) -> list[Any]:
        content = f"\ufeff{text}".encode(encoding)
        file = write(tmp_path, gzip.compress(content) if packed else content)
        check_file(file)
        assert split_file(file, 1) == [None]
        return [record.object() for record in read_records(file)]

    lines = f'{ACCENTS}{{"instruction": "a", "output": "b"}}\n'
    assert rows(lines) == WIDE_ROWS
    assert rows(json.dumps(WIDE_ROWS, ensure_ascii=False, indent=1)) == WIDE_ROWS
    assert rows("prompt\tcompletion\r\nCafé?\t🙂\r\n") == [{"prompt": "Café?", "completion": "🙂"}]
    long = [{"instruction": "é" * 30_000, "output": str(i)} for i in range(40)]
    assert rows("\n".join(json.dumps(each, ensure_ascii=False) for each in long)) == long


def test_damaged_or_unmarked_utf16_is_one_error(tmp_path: Path) -> None:
    text = '{"instruction": "a", "output": "b"}\n'
    with pytest.raises(DataError, match="rows: the file cannot be read to its end"):
        check_file(write(tmp_path, f"\ufeff{text}".encode("utf-16-le") + b"\x00"))
    for encoding in ("utf-16-le", "utf-16-be"):
        file = write(tmp_path, text.encode(encoding))
        with pytest.raises(DataError, match="looks like UTF-16 without a byte order mark; save it"):
            check_file(file)


LISTED = {"version": "1.0", "data": [{"prompt": "Hi", "completion": f"{i}"} for i in range(5)]}


@pytest.mark.parametrize("indent", [None, 1])
def test_the_list_in_an_object_is_read_where_the_settings_name_it(
    tmp_path: Path, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaalign.data.sources.json_arrays._CHUNK_BYTES", 7)
    content = json.dumps({**LISTED, "more": {"data": [1]}, "after": 2}, indent=indent).encode()
    file = write(tmp_path, content)
    check_file(file, field="data")
    assert split_file(file, 1, field="data") == [None]
    records = [*read_records(file, field="data")]
    assert [record.value for record in records] == LISTED["data"]
    assert [record.row for record in records] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="no list under 'version'; its keys are version, data, mor"):
        check_file(file, field="version")


@pytest.mark.parametrize("many", [1, 3_000])
def test_a_pretty_printed_object_names_its_list(tmp_path: Path, many: int) -> None:
    rows = LISTED["data"] * many  # so long that the list's end is not looked at
    file = write(tmp_path, json.dumps({**LISTED, "data": rows}, indent=2).encode())
    for read in (check_file, lambda file: list(read_records(file))):
        with pytest.raises(
            DataError, match=r"its rows may be the list under 'data': set field=dat"
        ):
            read(file)


@pytest.mark.parametrize(
    ("before", "key"),
    [({"tags": ["x", [1]], "empty": []}, "data"), ({"tags": [[{}]], "data": ["Hi"]}, "tags")],
)
def test_a_list_of_objects_is_named_before_other_lists(
    tmp_path: Path, before: dict[str, list[object]], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaalign.data.sources.json_arrays._CHUNK_BYTES", 7)
    file = write(tmp_path, json.dumps({**before, **LISTED, **before}, indent=2).encode())
    with pytest.raises(DataError, match=f"the list under '{key}': set field={key}"):
        check_file(file)


def test_objects_over_several_lines_are_told(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"prompt": "Hi", "completion": "x"}, indent=2) for _ in range(3))
    with pytest.raises(DataError, match=r"objects go over several lines; write each on a line of"):
        check_file(write(tmp_path, rows.encode()))


@pytest.mark.parametrize("first", ['{"a": 1, "b', '{"a": 1,', '{"a": [1,', "{", '{"a": "x" y}'])
def test_a_broken_first_line_is_still_a_row_of_lines(tmp_path: Path, first: str) -> None:
    whole = '{"instruction": "a", "output": "b"}'
    records = [*read_records(write(tmp_path, f"{first}\n{whole}\n{whole}\n".encode()))]
    assert [bool(record.problem) for record in records] == [True, False, False]


@pytest.mark.parametrize("kind", ["array", "csv", "parquet"])
def test_a_list_in_what_is_no_object_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="field is 'data', and the file is no JSON object; leave"):
        check_file(write(tmp_path, KINDS[kind]), field="data")


@pytest.mark.parametrize("is_list", [True, False])
def test_messages_in_an_unquoted_cell_are_read(tmp_path: Path, is_list: bool) -> None:
    message = {"role": "assistant", "content": "Hello!"}
    chosen = json.dumps([message] if is_list else message)
    file = write(tmp_path, f"prompt\tchosen\trejected\nHi\t{chosen}\tGo.\n".encode())
    result = read_rows(read_records(file), "rows.tsv", "pairs", SourceOptions())
    assert [each.text for each in result.examples[0].responses] == ["Hello!", "Go."]
    assert result.notices == {"chosen: JSON text is read as a list": 1}
