"""The way from JSON lines to a token store, beside the bare tokenizer and beside TRL.

    python -m tests.benchmarks.prepare [--rounds 5] [--rows 10000 1000000]

MetaAlign's data at the paper's size (`ray_jobs/configs/metaalign_prepare.yaml` on the real data
beside the project) as one file of rows; and all-distinct text, real rows without recipes. Sides
alternate in one run, and rates are of what a side takes beyond its own start-up, which is the time
it takes for a hundred rows.

- `vs_encode_batch`: ours by `encode_batch_fast` of the same tokenizer over the same texts, as often
  as they stand, on two threads, in batches of the size that is fastest; nothing is read or written
- `vs_trl`: ours by TRL's DPO preprocessing of the same rows, `num_proc=2`, from JSON lines to its
  Arrow cache
- `memory_growth`: the peak of driver and of the largest worker at a million rows by that at ten
  thousand; anonymous memory, so pages of mapped files do not count
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ray

from metaalign.config import PrepareConfig, load_config
from metaalign.data.prepare import prepare_store
from metaalign.data.work.ledger import PartLedger, quarantine
from metaalign.data.work.parts import plan_parts, split_parts
from metaalign.data.work.passes import part_examples
from metaalign.examples import Example, ordered_pairs
from metaalign.store.token_store import TOKENIZER_FOLDER, TokenStore
from metaalign.template import prompt_segments
from tests.benchmarks.prepare_sides import BATCHES, memory_peaks
from tests.benchmarks.report import bar, print_report
from tests.example_rows import to_row

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
CONFIG = ROOT / "ray_jobs" / "configs" / "metaalign_prepare.yaml"
PATHS = (
    "hh_rlhf/*.jsonl.gz",
    "personas/*.jsonl",
    "truthfulqa/TruthfulQA.csv",
    "demo_formats/alpaca_en_demo.json",
    "metaaligner_samples/*.csv",
)
FEW = 100
ENCODE_BAR, TRL_BAR, MEMORY_BAR = 1.0, 2.0, 1.2
WORDS = 40
"""Of each text of the rows whose memory is measured."""


def paper_size(folder: Path) -> list[Example]:
    """MetaAlign's data, as the shipped settings make it."""
    paths = [f"sources.{number}.path={DATA / path}" for number, path in enumerate(PATHS)]
    return _examples(load_config(PrepareConfig, CONFIG, [f"storage={folder}", *paths]), folder)


def distinct(folder: Path) -> list[Example]:
    """Real rows as they are, of which no two hold the same text."""
    paths = (*PATHS[:1], *PATHS[2:], "demo_formats/dpo_en_demo.json")
    sources = [{"path": str(DATA / path), "max_bad_ratio": 0.2} for path in paths]
    settings = {"storage": str(folder), "sources": sources}
    seen: set[str] = set()
    kept = []
    for example in _examples(PrepareConfig.model_validate(settings), folder):
        texts = set(texts_of(example))
        if not texts & seen:
            kept.append(example)
            seen |= texts
    return kept


def _examples(config: PrepareConfig, folder: Path) -> list[Example]:
    examples: list[Example] = []
    for number, part in enumerate(split_parts(plan_parts(config), folder)):
        with quarantine(folder, number, part.name) as refused:
            for some in part_examples(part, PartLedger(sampled=False), refused):
                examples += some
    return examples


def texts_of(example: Example) -> list[str]:
    """Every text that an example holds, as often as it stands there."""
    segments = prompt_segments(
        system_info=example.system_info, user_info=example.user_info, turns=example.turns
    )
    return [segment.text for segment in segments] + [each.text for each in example.responses]


def trl_row(example: Example) -> dict[str, Any]:
    """The row as TRL takes it, in conversation; of a ranking its first ordered pair."""
    system = "\n\n".join(text for text in (example.system_info, example.user_info) if text)
    prompt = [{"role": "system", "content": system}] if system else []
    prompt += [{"role": turn.role, "content": turn.text} for turn in example.turns]
    pairs = ordered_pairs(example.order_scores())
    sides = pairs[0] if pairs else (0, 0)  # TRL wants two sides of an answer without another, too
    chosen, rejected = (
        [{"role": "assistant", "content": example.responses[side].text}] for side in sides
    )
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write_lines(file: Path, rows: Iterable[Any]) -> Path:
    """A file of JSON lines."""
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file


class Side:
    """One way of preparing; `seconds` runs it on a file."""

    def __init__(self, name: str, folder: Path, examples: Sequence[Example]) -> None:
        self.name, self.folder = name, folder
        self.full = self._file("full", examples)
        self.few = self._file("few", examples[:FEW])

    def _file(self, size: str, examples: Sequence[Example]) -> Path:
        rows: Iterable[Any] = (_without_source(example) for example in examples)
        if self.name == "trl":
            rows = map(trl_row, examples)
        if self.name == "encode":
            rows = (text for example in examples for text in texts_of(example))
        return write_lines(self.folder / f"{self.name}-{size}.jsonl", rows)

    def seconds(self, file: Path, tokenizer: Path) -> float:
        """What the file takes; of the bare tokenizer with the batches that are fastest."""
        if self.name == "ours":
            return _prepare_seconds(file, tokenizer, self.folder)
        command = [sys.executable, "-m", "tests.benchmarks.prepare_sides", self.name]
        output = subprocess.check_output([*command, str(file), str(tokenizer)], text=True, cwd=ROOT)
        return min(json.loads(output.splitlines()[-1]))


def _without_source(example: Example) -> dict[str, Any]:
    return {key: value for key, value in to_row(example).items() if key != "source"}


def _prepare_seconds(file: Path, tokenizer: Path, folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as storage:
        settings = {
            "storage": storage,
            "sources": [{"path": str(file), "format": "metaalign"}],
            "tokenizer": {"path": str(tokenizer)},
            "held_out_ratio": 0,
        }
        config = PrepareConfig.model_validate(settings)
        started = time.perf_counter()
        prepare_store(config)
        return time.perf_counter() - started


def match(
    name: str, examples: Sequence[Example], others: Sequence[str], *, tokenizer: Path, rounds: int
) -> dict[str, Any]:
    """Ours and others in turn, the first round as a warm-up."""
    with tempfile.TemporaryDirectory() as temporary:
        sides = [Side(each, Path(temporary), examples) for each in ("ours", *others)]
        taken: dict[str, list[float]] = {side.name: [] for side in sides}
        startup: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                few = 0.0 if side.name == "encode" else side.seconds(side.few, tokenizer)
                seconds = side.seconds(side.full, tokenizer) - few
                if number:
                    taken[side.name].append(seconds)
                    startup[side.name].append(few)
            print(f"{name}: round {number} of {rounds}", file=sys.stderr, flush=True)
    figures: dict[str, Any] = {
        "examples": len(examples),
        "texts": sum(len(texts_of(example)) for example in examples),
        "rows_per_second": {
            side: round(len(examples) / statistics.median(each)) for side, each in taken.items()
        },
        "startup_seconds": {
            side: round(statistics.median(each), 2) for side, each in startup.items() if any(each)
        },
    }
    for other in others:
        ratios = [theirs / own for own, theirs in zip(taken["ours"], taken[other], strict=True)]
        figures[f"vs_{other}"] = round(statistics.median(ratios), 3)
        figures[f"vs_{other}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return figures


def trained_tokenizer(folder: Path, examples: Sequence[Example]) -> Path:
    """A byte-level BPE of 4,096, trained by the job itself on the rows."""
    file = write_lines(folder / "rows.jsonl", map(_without_source, examples))
    settings = {
        "storage": str(folder),
        "sources": [{"path": str(file), "format": "metaalign"}],
        "tokenizer": {"vocabulary_size": 4096},
        "held_out_ratio": 0,
    }
    store: TokenStore = prepare_store(PrepareConfig.model_validate(settings))
    return store.path / TOKENIZER_FOLDER


def write_many(file: Path, rows: int) -> Path:
    """Alpaca rows, every text another one."""
    rng = random.Random(0)
    words = [f"w{number}" for number in range(20_000)]

    def text() -> str:
        return " ".join(rng.choices(words, k=WORDS))

    return write_lines(file, ({"instruction": text(), "output": text()} for _ in range(rows)))


def memory(folder: Path, tokenizer: Path, sizes: Sequence[int]) -> list[dict[str, float]]:
    """Peaks in MB of driver and workers, each size in a cluster of its own."""
    return [
        memory_peaks(write_many(folder / f"{rows}.jsonl", rows), tokenizer, folder / f"out-{rows}")
        for rows in sizes
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="after one as a warm-up")
    parser.add_argument(
        "--rows", type=int, nargs=2, default=[10_000, 1_000_000], help="of which memory is measured"
    )
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA} is not there: this benchmark reads the public data beside the project")
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        examples = paper_size(folder)
        tokenizer = trained_tokenizer(folder, examples)
        rounds = given.rounds
        paper = match("paper", examples, ("encode", "trl"), tokenizer=tokenizer, rounds=rounds)
        other = match("distinct", distinct(folder), ("encode",), tokenizer=tokenizer, rounds=rounds)
        ray.shutdown()
        peaks = memory(folder, tokenizer, given.rows)
    growth = max(peaks[1][who] / peaks[0][who] for who in ("driver", "worker"))
    print_report(
        {"rounds": rounds, "rows": given.rows, "batches": BATCHES},
        {"paper": paper, "distinct": other, "peak_mb": peaks},
        {
            "vs_encode_batch": bar(paper["vs_encode"], ENCODE_BAR, at_least=True),
            "vs_trl": bar(paper["vs_trl"], TRL_BAR, at_least=True),
            "memory_growth": bar(round(growth, 3), MEMORY_BAR, at_least=False),
        },
    )


if __name__ == "__main__":
    main()
