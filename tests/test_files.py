"""Files to records: every kind of file that can be read is, any other is one clear error."""

import gzip
import json
import pickle
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from metaalign.config import PrepareConfig
from metaalign.data.sources.files import file_fingerprint, find_files
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.records import check_file, read_records
from metaalign.data.work.parts import plan_parts, read_part, split_parts
from metaalign.errors import DataError, RowError
from metaalign.examples import Source
from tests.object_storage import BUCKET, address_of

ROWS = [{"a": 1}, {"a": "é"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(folder: Path, content: bytes, name: str = "rows") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        b"\xef\xbb\xbf" + LINES,
        LINES.rstrip(b"\n"),
        json.dumps(ROWS).encode(),
        b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=2).encode(),
        gzip.compress(LINES),
        gzip.compress(json.dumps(ROWS).encode()),
    ],
)
def test_lines_arrays_and_gzip_are_told_by_their_content(tmp_path: Path, content: bytes) -> None:
    records = list(read_records(write(tmp_path, content)))
    assert [record.value for record in records] == ROWS
    assert [record.row for record in records] == [0, 1]


def test_a_row_is_its_line_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    records = list(read_records(write(tmp_path, b'{"a": 1}\n\n  \r\n{"a": 2}\r\n')))
    assert [(record.row, record.value) for record in records] == [(0, {"a": 1}), (3, {"a": 2})]


def test_a_line_that_is_not_json_is_a_record_with_its_problem(tmp_path: Path) -> None:
    first, second, third = read_records(write(tmp_path, b'{"a": \n[1]\n{"a": 1}\n'))
    assert first.problem.startswith("not JSON: Expecting value")
    assert first.text == '{"a":'
    with pytest.raises(RowError, match="not JSON"):
        first.object()
    with pytest.raises(RowError, match="expected a JSON object, got list"):
        second.object()
    assert third.object() == {"a": 1}


def test_json_that_is_nested_too_deep_is_a_bad_row(tmp_path: Path) -> None:
    deep = b'{"a": ' + b"[" * 100_000 + b"\n"
    assert next(read_records(write(tmp_path, deep))).problem.startswith("not JSON")


def test_invalid_utf8_comes_through_to_be_refused_row_by_row(tmp_path: Path) -> None:
    bad, good = read_records(write(tmp_path, b'{"a": "\xff"}\n{"a": "b"}\n'))
    with pytest.raises(UnicodeEncodeError):
        bad.value["a"].encode("utf-8")
    assert good.value == {"a": "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"PAR1....", "cannot be read to its end: Parquet magic bytes not found in footer"),
        (b"PK\x03\x04....", r"begins with b'PK.*; expected JSON lines, one JSON array, CSV"),
        (b'[{"a": 1}, {"a"', "not a valid JSON array"),
        (gzip.compress(LINES * 99)[:-20], "cannot be read to its end"),
        (gzip.compress(b"x" * 90)[:4] + b"rubbish, not deflate", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as error:
        check_file(file)
    assert str(error.value).startswith(f"{file}: ")
    with pytest.raises(DataError, match=message):
        list(read_records(file))


@pytest.mark.parametrize("content", [LINES, gzip.compress(LINES), json.dumps(ROWS).encode()])
def test_a_file_that_can_be_read_passes(tmp_path: Path, content: bytes) -> None:
    check_file(write(tmp_path, content))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read in (check_file, file_fingerprint):
        with pytest.raises(DataError, match=r"none: the file cannot be read: No such file"):
            read(tmp_path / "none")


def test_a_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    one, same = write(tmp_path, LINES, "one"), write(tmp_path, LINES, "same")
    other = write(tmp_path, LINES + b"{}\n", "other")
    assert file_fingerprint(one) == file_fingerprint(same) != file_fingerprint(other)


def test_globs_are_sorted_and_reach_into_folders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "d.txt"):
        write(tmp_path, LINES, name)
    assert [file.name for file in find_files(f"{tmp_path}/*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert len(find_files(f"{tmp_path}/**/*.jsonl")) == 3
    assert find_files(f"{tmp_path}/d.txt") == [tmp_path / "d.txt"]


def test_a_name_with_brackets_that_exists_is_that_file(tmp_path: Path) -> None:
    assert find_files(str(write(tmp_path, LINES, "a[1].jsonl"))) == [tmp_path / "a[1].jsonl"]


def test_what_matches_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/\*\.json' matches no file; correct the `path`"):
        find_files(f"{tmp_path}/*.json")
    with pytest.raises(DataError, match=r"/none' does not exist"):
        find_files(f"{tmp_path}/none")
    with pytest.raises(DataError, match="is a folder; name its files with a glob"):
        find_files(str(tmp_path))


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    for end in ("", "*"):
        with pytest.raises(DataError, match=r"xx[*]?' (cannot be looked up: File|matches no file)"):
            find_files(f"{tmp_path}/{'x' * 300}{end}")


def test_a_split_depends_on_the_key_and_the_seed_and_holds_out_the_share() -> None:
    options, other = SourceOptions(held_out_ratio=0.25), SourceOptions(held_out_ratio=0.25, seed=1)
    splits = [options.split(f"key {i}") for i in range(4000)]
    assert splits == [options.split(f"key {i}") for i in range(4000)]
    assert splits != [other.split(f"key {i}") for i in range(4000)]
    # Binomial: 1000 expected, standard deviation 27
    assert abs(splits.count("held_out") - 1000) < 110
    assert {SourceOptions().split(f"key {i}") for i in range(1000)} == {"train"}
    # A larger share holds out all that a smaller one does.
    larger = SourceOptions(held_out_ratio=0.5)
    held = [i for i, split in enumerate(splits) if split == "held_out"]
    assert {larger.split(f"key {i}") for i in held} == {"held_out"}


def put(key: str, content: bytes) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=content)


def test_files_in_object_storage_are_found_by_name_and_by_glob_and_read(
    server: ThreadedMotoServer,
) -> None:
    for key in ("data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl", "data/d [x].csv"):
        put(key, LINES)
    put("data/packed.gz", gzip.compress(LINES))

    def found(key: str) -> list[str]:
        return [str(file) for file in find_files(address_of(server, BUCKET, key))]

    assert found("data/*.jsonl") == ["s3://bucket/data/a.jsonl", "s3://bucket/data/b.jsonl"]
    assert found("data/**/[bc].jsonl") == [
        "s3://bucket/data/b.jsonl",
        "s3://bucket/data/deep/c.jsonl",
    ]
    assert found("data/d*") == ["s3://bucket/data/d [x].csv"]
    (packed,) = find_files(address_of(server, BUCKET, "data/packed.gz"))
    check_file(packed)
    assert [record.value for record in read_records(packed)] == ROWS


def test_what_object_storage_has_not_is_told(server: ThreadedMotoServer) -> None:
    for key, why in (("data/*.jsonl", "matches no file"), ("data/a.jsonl", "does not exist")):
        with pytest.raises(DataError, match=why):
            find_files(address_of(server, BUCKET, key))
    with pytest.raises(DataError, match=r"s3://none/data.* matches no file"):
        find_files(address_of(server, "none", "data/*.jsonl"))


def test_a_fingerprint_tells_that_a_file_in_object_storage_was_written_again(
    server: ThreadedMotoServer,
) -> None:
    def fingerprint() -> str:
        (file,) = find_files(address_of(server, BUCKET, "a.jsonl"))
        return file_fingerprint(file)

    put("a.jsonl", LINES)
    first = fingerprint()
    assert fingerprint() == first
    put("a.jsonl", LINES + LINES)
    assert fingerprint() != first


def test_a_part_reads_its_file_from_object_storage(
    server: ThreadedMotoServer, tmp_path: Path
) -> None:
    rows = [{"instruction": f"q{i}", "output": f"a{i}" * (i > 0)} for i in range(3)]
    put("data/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    source = {"path": address_of(server, BUCKET, "data/*.jsonl")}
    config = PrepareConfig.model_validate({"storage": str(tmp_path), "sources": [source]})
    (part,) = pickle.loads(pickle.dumps(split_parts(plan_parts(config), tmp_path)))
    (read,) = read_part(part)
    assert [example.source for example in read.examples] == [
        Source("s3://bucket/data/rows.jsonl", row) for row in (1, 2)
    ]
    assert [(bad.file, bad.row) for bad in read.bad] == [("s3://bucket/data/rows.jsonl", 0)]
    put("data/rows.jsonl", b"{}")
    with pytest.raises(DataError, match=r"rows\.jsonl: the file was changed while the job ran"):
        next(read_part(part))
