"""Rooms import one way, dependencies stay in their rooms, files and functions stay small."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = (
    "errors",
    "config",
    "folders",
    "examples",
    "preferences",
    "template",
    "wire",
    "tracking",
    "upstream",
    "data",
    "steps",
    "train",
    "generate",
    "evaluate",
    "serve",
    "pipeline",
    "ray_jobs",
)
"""Top to bottom: a room may import only rooms above it."""

DEPENDENCIES = {
    "ray.data": ("data/cluster.py", "data/teacher.py", "evaluate/suites.py", "pipeline/job.py"),
    "ray.train": ("train/trainer.py", "train/restarts.py"),
    "ray.tune": ("pipeline/",),
    "ray.serve": ("serve/",),
    "ray": (
        "data/cluster.py",
        "data/prepare.py",
        "data/teacher.py",
        "evaluate/suites.py",
        "train/trainer.py",
        "train/restarts.py",
        "train/devices.py",
        "serve/",
        "pipeline/",
    ),
    "deepspeed": (
        "train/zero.py",
        "train/zero_settings.py",
        "train/optimizers.py",
        "train/models.py",
        "train/checkpoints.py",
    ),
    "mlflow": ("tracking/lines.py",),
    "fastapi": ("serve/",),
    "openai": ("upstream/",),
    "tenacity": ("upstream/",),
    "aiolimiter": ("upstream/",),
    "torch": ("train/", "generate/", "evaluate/"),
    "transformers": ("template.py", "data/tokenizer.py", "train/", "generate/"),
    "pyarrow": ("folders.py", "examples.py", "data/"),
}
"""Where a third-party package may appear. What is not listed may appear anywhere."""

FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "base", "manager", "core"}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 40
MAX_LOOP_LINES = 60
MAX_NESTING = 3

_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def python_files() -> list[Path]:
    return sorted([*(ROOT / "metaalign").rglob("*.py"), *(ROOT / "ray_jobs").rglob("*.py")])


def shown(path: Path) -> str:
    """The path inside the package, as the tables above name it."""
    return path.relative_to(ROOT).as_posix().removeprefix("metaalign/")


def room_of(module: str) -> str | None:
    """`metaalign.data.store` -> `data`; None for what is no room, such as `metaalign` itself."""
    parts = module.split(".")
    name = parts[1] if parts[0] == "metaalign" and len(parts) > 1 else parts[0]
    return name if name in ROOMS else None


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too; `from a import b` gives a and a.b."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno} has a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of_file(path: Path) -> str | None:
    return room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))


def refused(path: Path, module: str) -> bool:
    """Whether a dependency appears outside its rooms; of `ray.data` and `ray`, ray.data decides."""
    for dependency, rooms in DEPENDENCIES.items():
        if module == dependency or module.startswith(f"{dependency}."):
            return not shown(path).startswith(rooms)
    return False


def test_every_module_belongs_to_a_room() -> None:
    outside = [shown(path) for path in python_files() if room_of_file(path) is None]
    assert outside == ["__init__.py"]


def test_a_room_imports_only_the_rooms_above_it() -> None:
    upward = [
        f"{shown(path)} imports {module}"
        for path in python_files()
        for module in imports_of(path)
        if (own := room_of_file(path)) is not None
        and (other := room_of(module)) is not None
        and module.startswith(("metaalign", "ray_jobs"))
        and ROOMS.index(other) > ROOMS.index(own)
    ]
    assert upward == []


def test_dependencies_stay_in_their_rooms() -> None:
    strays = [
        f"{shown(path)} imports {module}"
        for path in python_files()
        for module in imports_of(path)
        if refused(path, module)
    ]
    assert strays == []


def test_steps_know_numpy_and_the_store_only() -> None:
    for path in (ROOT / "metaalign" / "steps").glob("*.py"):
        for module in imports_of(path):
            top = module.split(".")[0]
            assert top not in {"torch", "ray", "pyarrow", "transformers"}, shown(path)


def test_files_are_small_and_their_names_say_what_is_inside() -> None:
    for path in [*python_files(), *(ROOT / "tests").rglob("*.py")]:
        assert path.stem not in FORBIDDEN_NAMES, shown(path)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_FILE_LINES, f"{shown(path)} has {lines} lines"


def test_functions_are_small() -> None:
    long = []
    for path in python_files():
        allowed = MAX_LOOP_LINES if shown(path) == "train/loop.py" else MAX_FUNCTION_LINES
        for node in ast.walk(parsed(path)):
            if isinstance(node, _FUNCTIONS):
                lines = body_lines(node)
                if lines > allowed:
                    long.append(f"{shown(path)}:{node.name} has {lines} lines")
    assert long == []


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its `def` to its end, without its docstring."""
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    whole = (node.end_lineno or 0) - node.lineno + 1
    return whole - (((docstring.end_lineno or 0) - docstring.lineno + 1) if docstring else 0)


def test_blocks_nest_three_deep_at_most() -> None:
    deep = [
        f"{shown(path)}:{node.lineno}"
        for path in python_files()
        for node, depth in nested(parsed(path), 0)
        if depth > MAX_NESTING
    ]
    assert deep == []


def nested(node: ast.AST, depth: int) -> Iterator[tuple[ast.stmt, int]]:
    """Every block with its depth; an `elif` is as deep as its `if`; a function starts anew."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, _BLOCKS):
                is_elif = isinstance(node, ast.If) and name == "orelse" and len(value) == 1
                level = depth if is_elif and isinstance(child, ast.If) else depth + 1
                yield child, level
                yield from nested(child, level)
            else:
                yield from nested(child, 0 if isinstance(child, _FUNCTIONS) else depth)


def test_only_tracking_catches_every_exception() -> None:
    for path in python_files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ExceptHandler) and shown(path) != "tracking/runs.py":
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in {"everything", "Exception", "BaseException"}, (
                    f"{shown(path)}:{node.lineno} catches {caught}"
                )


def test_jobs_are_short_and_decide_nothing() -> None:
    for path in (ROOT / "ray_jobs").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40, shown(path)
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) == "__name__ == '__main__'", shown(path)


@pytest.mark.parametrize(
    ("importer", "module"),
    [
        ("metaalign/data/store.py", "torch"),
        ("metaalign/train/loop.py", "ray"),
        ("metaalign/train/loop.py", "ray.train"),
        ("metaalign/serve/app.py", "mlflow"),
    ],
)
def test_the_rule_would_catch_a_stray_import(importer: str, module: str) -> None:
    assert refused(ROOT / importer, module)
