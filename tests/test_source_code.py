"""What a result's code fingerprint covers: what is imported, and of that what runs."""

from pathlib import Path

import pytest

from metaalign.data.prepare import MODULES
from metaalign.source_code import code_fingerprint, imported_files


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """a imports b, and c inside a function; b shows by data/view.py, which alone imports d."""
    sources = {
        "__init__.py": "",
        "a.py": '"""Says a."""\nfrom metaalign.b import f\n\ndef g():\n    import metaalign.c\n',
        "b.py": "from metaalign.data import view\n\ndef f():\n    return 1  # one\n",
        "c.py": "",
        "d.py": "",
        "data/__init__.py": "",
        "data/view.py": "from metaalign import d\n",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def test_imports_count_without_what_shows(package: Path) -> None:
    assert imported_files("a.py", package=package) == ["a.py", "b.py", "c.py", "data/__init__.py"]
    assert imported_files("d.py", "c.py", package=package) == ["c.py", "d.py"]


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("a.py", "Says a", "Says more", True),
        ("b.py", "# one", "# eins", True),
        ("b.py", "def f():", "\ndef f( ):", True),
        ("b.py", "return 1", "return 2", False),
        ("c.py", "", "x = 1", False),
        ("d.py", "", "x = 1", True),
        ("data/view.py", "d", "b", True),
        ("data/__init__.py", "", "x = 1", False),
    ],
)
def test_what_runs_counts(file: str, old: str, new: str, same: bool, package: Path) -> None:
    before = code_fingerprint("a.py", package=package)
    changed = package / file
    changed.write_text(changed.read_text().replace(old, new, 1))
    assert (code_fingerprint("a.py", package=package) == before) is same


def test_a_store_depends_on_how_rows_are_read_and_never_on_how_it_is_shown() -> None:
    files = imported_files(*MODULES)
    assert {"data/formats/chats.py", "data/recipes/rule_written.py", "template.py"} <= set(files)
    rooms = {file.partition("/")[0] for file in files}
    assert not rooms & {"config", "tracking", "steps", "train", "evaluate", "serve", "pipeline"}
    assert "data/view.py" not in files
