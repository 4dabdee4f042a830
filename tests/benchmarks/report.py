"""What every benchmark ends with: one JSON line of its settings, its figures and its bars.

{"settings": {"budget": 4096}, "figures": {"fill": 0.981},
 "bars": {"fill": {"value": 0.981, "bar": 0.95, "holds": true}}}
"""

import json
from collections.abc import Mapping
from typing import Any


def bar(value: float, bar: float, *, at_least: bool) -> dict[str, Any]:
    """A figure beside what was promised of it.

    Args:
        at_least: Whether the value must reach the bar; otherwise it must not pass it. NaN never
            holds.
    """
    return {"value": value, "bar": bar, "holds": value >= bar if at_least else value <= bar}


def print_report(
    settings: Mapping[str, Any], figures: Mapping[str, Any], bars: Mapping[str, dict[str, Any]]
) -> None:
    """Print the line; it must be the last one of a benchmark's output."""
    print(json.dumps({"settings": settings, "figures": figures, "bars": bars}), flush=True)
