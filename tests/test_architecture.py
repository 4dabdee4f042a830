"""Rooms import one way, dependencies stay in their rooms, files and functions stay small."""

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = (
    "errors",
    "config",
    "folders",
    "source_code",
    "examples",
    "preferences",
    "plain_text",
    "template",
    "wire",
    "tracking",
    "upstream",
    "store",
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

SUB_ROOMS = {
    "data": ("sources", "formats", "recipes", "teachers", "work", "view", "prepare"),
    "train": (
        "model",
        "losses",
        "task",
        "engines",
        "checkpoints",
        "loop",
        "export",
        "worker",
        "launch",
    ),
}
"""Sub-rooms and files of a room, in the order in which they may be imported: each may import only
those before it. What a user runs comes last."""

DEPENDENCIES = {
    "ray.data": ("data/work/", "evaluate/suites.py", "pipeline/job.py"),
    "ray.train": ("train/launch/",),
    "ray.tune": ("pipeline/",),
    "ray.serve": ("serve/",),
    "ray": (
        "data/work/",
        "data/prepare.py",
        "evaluate/suites.py",
        "train/launch/",
        "serve/",
        "pipeline/",
    ),
    "deepspeed": ("train/engines/", "train/model/", "train/checkpoints/"),
    "mlflow": ("tracking/lines.py",),
    "fastapi": ("serve/",),
    "openai": ("upstream/",),
    "tenacity": ("upstream/",),
    "aiolimiter": ("upstream/",),
    "peft": ("train/model/",),
    "torch": ("train/", "generate/", "evaluate/"),
    "transformers": (
        "template.py",
        "store/tokenizer.py",
        "train/model/",
        "generate/",
    ),
    "pyarrow": ("folders.py", "store/", "data/"),
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
    """`metaalign.store.columns` -> `store`; None outside rooms, as for `metaalign`."""
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


def sub_room_of(module: str) -> tuple[str, str] | None:
    """`metaalign.data.formats.chats` -> ("data", "formats"); None outside rooms with sub-rooms."""
    parts = module.split(".")
    if parts[0] != "metaalign" or len(parts) < 3 or parts[1] not in SUB_ROOMS:
        return None
    assert parts[2] in SUB_ROOMS[parts[1]], f"{module} stands in no sub-room"
    return parts[1], parts[2]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_a_sub_room_imports_only_those_before_it() -> None:
    wrong = []
    for path in python_files():
        own = sub_room_of(module_of(path))
        for module in imports_of(path) if own else ():
            parts = module.split(".")
            if parts[:2] != ["metaalign", own[0]] or len(parts) < 3:
                continue
            order = SUB_ROOMS[own[0]]
            if order.index(sub_room_of(module)[1]) > order.index(own[1]):
                wrong.append(f"{shown(path)} imports {module}")
    assert wrong == []


def test_no_import_goes_in_a_circle() -> None:
    known = {module_of(path): path for path in python_files()}
    graph = {
        module: sorted({other for other in imports_of(path) if other in known} - {module})
        for module, path in known.items()
        if path.stem != "__init__"
    }
    circles = graphlib.TopologicalSorter(graph)
    circles.prepare()  # raises CycleError, which names the circle


def test_a_name_says_one_thing() -> None:
    """No stem stands in two rooms, settings and jobs aside; no file is named as its folder."""
    rooms: dict[str, set[str]] = {}
    for path in python_files():
        room = room_of_file(path)
        assert path.stem != path.parent.name, shown(path)
        if path.stem != "__init__" and room not in {"config", "ray_jobs"}:
            rooms.setdefault(path.stem, set()).add(str(room))
    assert {stem: where for stem, where in rooms.items() if len(where) > 1} == {}


def defined_in(path: Path) -> Iterator[str]:
    """The functions, classes and constants of a module."""
    for node in parsed(path).body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def names_used_in(path: Path) -> Iterator[str]:
    """What a module reads by its name, or names in a string of one word, as the table of losses."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and str(node.value).isidentifier():
            yield str(node.value)


def test_what_only_tests_use_stands_in_the_tests() -> None:
    used = {name for path in python_files() for name in names_used_in(path)}
    unused = [
        f"{shown(path)}: {name}"
        for path in python_files()
        for name in defined_in(path)
        if name not in used and not name.startswith("__")
    ]
    assert unused == []


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
        allowed = (
            MAX_LOOP_LINES if shown(path) == "train/loop/training_loop.py" else MAX_FUNCTION_LINES
        )
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
        ("metaalign/store/token_store.py", "torch"),
        ("metaalign/train/loop/training_loop.py", "ray"),
        ("metaalign/train/loop/training_loop.py", "ray.train"),
        ("metaalign/serve/app.py", "mlflow"),
    ],
)
def test_the_rule_would_catch_a_stray_import(importer: str, module: str) -> None:
    assert refused(ROOT / importer, module)
