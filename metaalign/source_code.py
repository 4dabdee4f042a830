"""Which of the package's own code a result depends on, and what tells that it has changed.

A stage's code is what its entry modules import, directly or not, without what is listed in `APART`.
So a stage counts no code that it never runs, and a new module counts where it is first imported:
no list of rooms must be kept right by hand. Comments, docstrings and layout do not count.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
"""The folder of metaalign's own source."""

APART = (
    "config/",  # a result counts the values of its settings by itself
    "errors.py",
    "tracking/",
    "data/view.py",
    "data/work/overview.py",
    "train/launch/plan_numbers.py",
    "train/launch/plan_page.py",
    "train/loop/progress.py",
)
"""Modules that only check, log or show, unless they are an entry. What is imported by them alone
does not count either."""

_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_fingerprint(*entries: str, package: Path = PACKAGE) -> str:
    """sha256 of the code that the entry modules consist of and depend on.

    Args:
        entries: Files of the package, such as "data/prepare.py".
    """
    digest = hashlib.sha256()
    for file in imported_files(*entries, package=package):
        digest.update(f"{file}\n{_plain_code((package / file).read_bytes())}\n".encode())
    return digest.hexdigest()


def imported_files(*entries: str, package: Path = PACKAGE) -> list[str]:
    """The entry modules and all of the package that they import, as sorted paths within it."""
    found: set[str] = set()
    left = list(entries)
    while left:
        file = left.pop()
        if file in found:
            continue
        if file in entries or not file.startswith(APART):
            found.add(file)
            left += _imports(package, file)
    return sorted(found)


def _imports(package: Path, file: str) -> Iterator[str]:
    """The files of the package that a file imports, inside functions too."""
    for name in _imported_names((package / file).read_bytes()):
        parts = name.split(".")[1:]
        # Each package on the way runs its __init__; the last part may be a function or a class.
        places = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
        files = [f"{place}{end}" for place in places for end in (".py", "/__init__.py")]
        yield from (file for file in files if (package / file).is_file())


@cache
def _imported_names(source: bytes) -> tuple[str, ...]:
    """`from metaalign.a import b` gives metaalign.a and metaalign.a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return tuple(sorted(name for name in names if name.startswith("metaalign.")))


@cache
def _plain_code(source: bytes) -> str:
    """The code without comments and docstrings, each statement written in one way."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, or the sentence under a constant."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
