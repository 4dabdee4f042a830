"""CSV: cells by column; what a broken quote costs, and what it must not make up."""

import csv
import io
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaalign.data.sources.csv_tables import CsvRow, csv_rows, is_header
from metaalign.errors import DataError


def rows(text: str) -> list[CsvRow]:
    return list(csv_rows(iter(io.StringIO(text, newline="")), "a.csv"))


def cells(text: str) -> list[list[str | None] | None]:
    return [row.cells and list(row.cells.values()) for row in rows(text)]


def written(table: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(table)
    return file.getvalue()


def test_cells_stand_under_their_columns_and_an_empty_one_is_nothing() -> None:
    assert rows("q, a\nWhy?,\n") == [CsvRow(1, {"q": "Why?", "a": None}, "", "Why?,\n")]


def test_a_quoted_cell_keeps_its_commas_quotes_and_lines() -> None:
    (row,) = rows('q,a\n"one, ""two""\n\nthree",x\n')
    assert row.cells == {"q": 'one, "two"\n\nthree', "a": "x"}
    assert row.line == 1


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_tabs_and_semicolons_part_cells_where_the_header_has_them(mark: str) -> None:
    assert cells(f"q{mark}a\none, two{mark}x\n") == [["one, two", "x"]]


def test_blank_lines_are_no_rows_and_a_row_is_named_by_its_first_line() -> None:
    found = rows('\nq,a\n\n"x\ny",1\n\nz,2\n')
    assert [(row.line, row.problem) for row in found] == [(3, ""), (6, "")]


def test_another_number_of_cells_refuses_that_row_as_it_stands() -> None:
    bad, good = rows('q,a\n"x\ny",1,2\nz,3\n')
    assert bad == CsvRow(1, None, "expected 2 cells as in the header, got 3", '"x\ny",1,2\n')
    assert good.cells == {"q": "z", "a": "3"}


def test_a_broken_quote_costs_what_it_touches_and_is_one_refused_row() -> None:
    table = [[f"question {i}, long", f"answer {i}"] for i in range(9)]
    text = written([["q", "a"], *table]).replace('"question 3, long"', '"question 3, long')
    found = rows(text)
    bad = [row for row in found if row.problem]
    assert [(row.line, row.text) for row in bad] == [(4, '"question 3, long,"answer 3"\n')]
    assert bad[0].problem == "not CSV: ',' expected after '\"'"
    assert [list((row.cells or {}).values()) for row in found if not row.problem] == [
        row for row in table if row[0] != "question 3, long"
    ]


def test_a_quote_that_is_never_closed_does_not_swallow_the_file() -> None:
    text = "q,a\n" + "".join(f"x{i},y{i}\n" for i in range(3)) + 'x,"y\n' + "p,q\n" * 5_000
    found = rows(text)
    assert [row.line for row in found if row.problem] == [4]
    assert len(found) == 3 + 1 + 5_000


def test_prose_in_a_broken_cell_does_not_become_a_row() -> None:
    # The lines of the cell have as many commas as the table has columns less one.
    prose = 'first, then "this" happens\nsecond, then that\n'
    table = [["Tell me.", prose], *[[f"q{i}", f"a{i}"] for i in range(5)]]
    text = written([["q", "a"], *table]).replace('that\n"', "that\n")
    found = rows(text)
    assert [list((row.cells or {}).values()) for row in found if not row.problem] == table[1:]
    assert found[0].problem.startswith("not CSV: lines 2 to 4: ")


def test_a_file_of_broken_quotes_is_given_up_before_it_takes_for_ever() -> None:
    with pytest.raises(DataError, match=r"a.csv: its quotes are broken in too many lines"):
        rows("q,a\n" + 'a",",b\n' * 20_000)


@pytest.mark.parametrize("header", ['q,"a', "q,q"])
def test_a_header_that_names_no_columns_is_refused(header: str) -> None:
    with pytest.raises(DataError, match=r"a.csv: the (first row|header)"):
        rows(f"{header}\nx,y\n")


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        (b"query,goldens", True), (b"\xef\xbb\xbfa,b\r", True), (b"a\tb", True), (b"one", False),
        (b"", False), (b"a,a", False), (b"a,\xff", False), (b"a,\x00", False), (b'"a,b', False),
    ],
)  # fmt: skip
def test_a_header_is_several_distinct_printable_names(line: bytes, is_one: bool) -> None:
    assert is_header(line.removeprefix(b"\xef\xbb\xbf")) == is_one


TEXT = st.text(st.sampled_from('ab," \n\r\t'), max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=8))
def test_what_csv_writes_is_read_back(table: list[tuple[str, str, str]]) -> None:
    assert cells(written([["a", "b", "c"], *table])) == [
        [cell or None for cell in row] for row in table
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('ab,"\n'), max_size=60))
def test_every_line_of_any_file_is_in_a_row_once(text: str) -> None:
    found = rows(f"a,b\n{text}")
    whole = "".join(row.text for row in found)
    assert whole.replace("\n", "") == text.replace("\n", "")
    assert [row.line for row in found] == sorted({row.line for row in found})
