"""README and docs/ say what is there: every file, every setting, every link, every row."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from metaalign.config.prepare import Format
from metaalign.config.reference import page
from metaalign.data.formats import detect_format, read_rows
from metaalign.data.sources.options import SourceOptions
from metaalign.data.sources.records import Record
from metaalign.errors import DataError
from tests.test_architecture import ROOMS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

MAX_LINES_BESIDE_THE_TREE = 95


def tree() -> list[str]:
    """The lines of the README's tree."""
    return README.partition("## The tree")[2].split("```")[1].strip().splitlines()


def files_in_the_tree() -> Iterator[str]:
    """Every Python file of metaalign/ that the tree names, as a path below the root."""
    folders: list[tuple[int, str]] = []
    for line in tree():
        indent = len(line) - len(line.lstrip())
        folders = [(depth, name) for depth, name in folders if depth < indent]
        first = line.split()[0]
        if first.endswith("/"):
            folders.append((indent, first))
        parents = "".join(name for _, name in folders)
        if parents.startswith("metaalign/"):
            yield from (parents + file for file in re.findall(r"[\w/]+\.py\b", line))


def test_the_tree_names_every_module_once_and_none_that_does_not_exist() -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "metaalign").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(files_in_the_tree()) == sorted(modules)


def test_the_tree_shows_the_rooms_in_the_order_of_imports() -> None:
    shown = [line.split()[0] for line in tree() if re.match(r"(  )?\w", line)]
    named = [name.removesuffix(".py").rstrip("/") for name in shown]
    assert [name for name in named if name in ROOMS] == list(ROOMS)


def test_the_tree_names_every_folder() -> None:
    """A folder that holds nothing but its __init__.py would have no file to be named by."""
    shown = [line.split()[0] for line in tree() if line.split()[0].endswith("/")]
    folders = [path for path in (ROOT / "metaalign").rglob("*") if (path / "__init__.py").exists()]
    assert sorted({f"{path.name}/" for path in folders} - set(shown)) == []
    assert {"metaalign/", "ray_jobs/", "cluster/", "docs/", "tests/"} <= set(shown)


def test_the_readme_is_short() -> None:
    lines = len(README.splitlines()) - len(tree())
    assert lines <= MAX_LINES_BESIDE_THE_TREE, f"{lines} lines beside the tree; move some to docs/"


def test_the_settings_page_is_what_the_config_classes_say() -> None:
    """Write it anew: python -m metaalign.config.reference > docs/settings.md"""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page()


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            found = path.parent / file if file else path
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(path: Path) -> None:
    """`train/losses/pairs.py` stands in metaalign/; a bare `pairs.py` beside the one before it."""
    named = re.findall(
        r"`((?:metaalign|ray_jobs|cluster|docs|tests)/[\w./*-]*|[\w./-]+\.(?:py|sh|sbatch))`",
        path.read_text(encoding="utf-8"),
    )
    assert [name for name in named if not is_there(name)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_module_of_a_command_exists(path: Path) -> None:
    commands = re.findall(
        r"-m ((?:metaalign|ray_jobs|tests)[\w.]*)", path.read_text(encoding="utf-8")
    )
    missing = [name for name in commands if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    assert set(missing) <= {"ray_jobs.JOB"}


def is_there(name: str) -> bool:
    if "/" not in name:
        return any(True for _ in ROOT.glob(f"metaalign/**/{name}"))
    return any(list(place.glob(name.rstrip("/"))) for place in (ROOT, ROOT / "metaalign"))


def shown_rows() -> dict[str, list[str]]:
    """Format -> the rows that docs/data.md shows of it."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.partition("## A row of each format")[2].partition("\n## ")[0]
    blocks = re.findall(r"^### (\w+)\n(?:(?!^###)[\s\S])*?```json\n([\s\S]*?)```", section, re.M)
    return {name: rows.strip().splitlines() for name, rows in blocks}


def test_a_row_of_every_format_is_shown() -> None:
    assert set(shown_rows()) == set(get_args(Format)) - {"auto"}


@pytest.mark.parametrize(
    ("format", "lines"), shown_rows().items(), ids=lambda value: str(value)[:20]
)
def test_every_row_that_is_shown_is_told_and_read(format: str, lines: list[str]) -> None:
    records = [Record(row, json.loads(line), text=line) for row, line in enumerate(lines)]
    name = "interest-in-science.jsonl"  # the persona of personas
    for record in records:
        try:
            told = detect_format([record], name)
        except DataError as error:
            raise AssertionError(f"{format}: {error}") from error
        assert told == format, record.text
    read = read_rows(records, name, format, SourceOptions())
    assert [bad.reason for bad in read.bad] == []
    assert read.used == len(records)
    assert not read.ignored or format == "personas"  # whose files say more than is read
