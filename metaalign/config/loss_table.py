"""The documentation's table of preference losses, written from `preference_losses`.

    python -m metaalign.config.loss_table docs/losses.md

writes it between the file's lines `<!-- losses:begin -->` and `<!-- losses:end -->`.
"""

import argparse
from pathlib import Path

from metaalign.config.preference_losses import PREFERENCE_LOSSES, PreferenceLoss

BEGIN, END = "<!-- losses:begin -->", "<!-- losses:end -->"

_DATA = {
    "pairs": "pairs",
    "ranking": "rankings",
    "single": "single responses marked desirable or not",
}


def loss_table() -> str:
    """The table in Markdown, a line a loss."""
    head = ["| name | loss | learns from | margin m | paper | its settings and defaults |"]
    head += ["|---|---|---|---|---|---|"]
    return "\n".join([*head, *map(_line, PREFERENCE_LOSSES.values())])


def with_table(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the page has no {BEGIN} followed by {END}"
    return f"{before}{BEGIN}\n{loss_table()}\n{END}{after}"


def _line(loss: PreferenceLoss) -> str:
    paper = f"[{loss.paper}](https://arxiv.org/abs/{loss.paper})"
    settings = {**loss.settings, **loss.defaults}
    cells = (
        f"`{loss.name}`",
        loss.formula if loss.has_reference else f"{loss.formula}; no reference",
        _DATA[loss.data],
        "yes" if loss.has_margin else "",
        f"{paper}, {loss.where}" if loss.where else paper,
        ", ".join(f"`{name}` {value:g}" for name, value in settings.items()),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("page", type=Path, help="Markdown file that holds the two marks")
    file = parser.parse_args().page
    file.write_text(with_table(file.read_text(encoding="utf-8")), encoding="utf-8")
