"""The benchmarks can be started, and a bar holds where it should."""

import importlib
import json
from pathlib import Path

import pytest

from tests.benchmarks.report import bar, print_report

MODULES = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_can_be_imported(name: str) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    assert module.__doc__
    if f"python -m tests.benchmarks.{name}" in module.__doc__:
        assert callable(module.main)


def test_a_bar_holds_on_its_own_side_alone() -> None:
    assert bar(3.4, 3.4, at_least=True)["holds"]
    assert not bar(3.39, 3.4, at_least=True)["holds"]
    assert bar(0.5, 0.5, at_least=False)["holds"]
    assert not bar(0.51, 0.5, at_least=False)["holds"]
    assert not bar(float("nan"), 0.5, at_least=False)["holds"]


def test_the_report_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_report({"steps": 2}, {"loss": [1.0]}, {"ratio": bar(2.0, 1.0, at_least=True)})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["bars"] == {"ratio": {"value": 2.0, "bar": 1.0, "holds": True}}
