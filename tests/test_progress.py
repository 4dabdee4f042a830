"""Lines that say how far a run is."""

import io

from metaalign.train.loop.progress import ProgressBar, clock


def test_the_first_and_last_step_are_shown_and_few_between() -> None:
    stream = io.StringIO()
    bar = ProgressBar("sft", 40, interval_s=1000, stream=stream)
    for step in range(1, 41):
        bar.update(step, loss=2.0 / step, tokens=100)
    first, last = stream.getvalue().splitlines()
    assert first.startswith("sft  [....................]  1/40  loss 2.0000  ")
    assert "tokens/s" in first
    assert first.endswith(" left")
    assert last.startswith("sft  [####################]  40/40  loss 0.0500  ")
    assert "done in 0:00" in last


def test_a_resumed_run_starts_in_the_middle() -> None:
    stream = io.StringIO()
    ProgressBar("dpo", 4, start=2, stream=stream).update(3)
    assert stream.getvalue().startswith("dpo  [###############.....]  3/4  0:00 left")


def test_clock_has_hours_where_there_are_any() -> None:
    assert [clock(5), clock(92), clock(7500)] == ["0:05", "1:32", "2:05:00"]
