"""Progress lines for a job's log. Does not import an engine.

sft  [#########...........]  180/400  loss 1.2345  11,402 tokens/s  1:32 left
"""

import sys
import time
from typing import TextIO

BAR_WIDTH = 20


class ProgressBar:
    """Prints a bar at the first and last step, and every few seconds between them.

    Ray forwards a worker's output line by line, so each bar is a new line.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        start: int = 0,
        interval_s: float = 5.0,
        stream: TextIO | None = None,
    ) -> None:
        self._name, self._total, self._interval_s = name, total, interval_s
        self._stream = stream or sys.stderr
        self._start, self._began = start, time.monotonic()
        self._shown_at = -interval_s
        self._tokens = 0.0

    def update(self, step: int, *, loss: float | None = None, tokens: float = 0.0) -> None:
        """Args: steps taken since step 0, the newest loss, and tokens since the last call."""
        self._tokens += tokens
        now = time.monotonic() - self._began
        if step < self._total and now - self._shown_at < self._interval_s:
            return
        speed = self._tokens / max(now - max(self._shown_at, 0.0), 1e-9)
        left = now / max(step - self._start, 1) * (self._total - step)
        full = BAR_WIDTH * step // max(self._total, 1)
        parts = [
            f"{self._name}  [{'#' * full}{'.' * (BAR_WIDTH - full)}]  {step}/{self._total}",
            "" if loss is None else f"loss {loss:.4f}",
            f"{speed:,.0f} tokens/s" if self._tokens else "",
            f"{clock(left)} left" if step < self._total else f"done in {clock(now)}",
        ]
        # Not print: Ray Train's workers copy printed lines to their own log on the same stream.
        self._stream.write("  ".join(part for part in parts if part) + "\n")
        self._stream.flush()
        self._shown_at, self._tokens = now, 0.0


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any: 1:32, 2:05:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
