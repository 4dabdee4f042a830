"""What `prepare` compares the prepare job with, and how its memory is watched.

    python -m tests.benchmarks.prepare_sides encode|trl|ours FILE TOKENIZER [STORAGE]

prints a JSON list of seconds, as many as there are ways to run the side.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

BATCHES = (1_000, 10_000, 1_000_000_000)
"""Texts that the bare tokenizer is given at once."""

_WATCH_S = 0.1
_CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def encode_seconds(file: Path, tokenizer: Path) -> list[float]:
    """`encode_batch_fast` over a file of texts, once for every size of batch."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    return [_encode(backend, texts, size) for size in BATCHES]


def _encode(backend: Any, texts: list[str], size: int) -> float:
    started, tokens = time.perf_counter(), 0
    for start in range(0, len(texts), size):
        encoded = backend.encode_batch_fast(texts[start : start + size], add_special_tokens=False)
        tokens += sum(len(each.ids) for each in encoded)
    assert tokens >= len(texts), "no text is empty"
    return time.perf_counter() - started


def trl_seconds(file: Path, tokenizer: Path) -> list[float]:
    """TRL's preparation of pairs, from the file of rows to its Arrow cache."""
    import datasets
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    torch.set_num_threads(1)
    processing: Any = AutoTokenizer.from_pretrained(tokenizer)
    processing.chat_template = _CHAT
    size = len(processing)
    config = LlamaConfig(
        vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:
        first = datasets.Dataset.from_list([json.loads(file.open(encoding="utf-8").readline())])
        arguments: Any = DPOConfig(
            output_dir=cache, dataset_num_proc=2, max_length=None, use_cpu=True, report_to=[]
        )
        trainer = DPOTrainer(
            model=LlamaForCausalLM(config), ref_model=LlamaForCausalLM(config), args=arguments,
            train_dataset=first, processing_class=processing,
        )  # fmt: skip
        started = time.perf_counter()
        rows: Any = datasets.load_dataset(
            "json", data_files=str(file), split="train", cache_dir=cache
        )
        trainer._prepare_dataset(rows, processing, arguments, "train")
        return [time.perf_counter() - started]


def prepare_once(file: Path, tokenizer: Path, storage: str) -> None:
    """The whole prepare job, its tracked run and page too, in a cluster of its own."""
    import ray

    from metaalign.config import PrepareConfig
    from metaalign.data.prepare import run_prepare
    from metaalign.tracking import open_run

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    settings = {
        "storage": storage,
        "sources": [{"path": str(file)}],
        "tokenizer": {"path": str(tokenizer)},
        "held_out_ratio": 0,
    }
    config = PrepareConfig.model_validate(settings)
    with open_run(config.tracking, storage=storage, name="prepare") as run:
        run_prepare(config, run)


def memory_peaks(file: Path, tokenizer: Path, storage: Path) -> dict[str, float]:
    """MB of anonymous memory: the driver's peak, and that of the worker which held most."""
    storage.mkdir()
    command = [sys.executable, "-m", "tests.benchmarks.prepare_sides", "ours", str(file)]
    peaks = {"driver": 0.0, "worker": 0.0}
    started = time.perf_counter()
    with subprocess.Popen([*command, str(tokenizer), str(storage)]) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            peaks["driver"] = max(peaks["driver"], _anonymous_mb(driver.pid))
            for child in _children(driver):
                peaks["worker"] = max(peaks["worker"], _worker_mb(child))
            time.sleep(_WATCH_S)
    assert process.returncode == 0, process.returncode
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, **{who: round(peak, 1) for who, peak in peaks.items()}}


def _children(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _worker_mb(process: psutil.Process) -> float:
    """Of a worker that runs or has run a task; nothing of other processes."""
    try:
        title = " ".join(process.cmdline()[:1])
    except psutil.Error:
        return 0.0
    return _anonymous_mb(process.pid) if title.startswith("ray::") else 0.0


def _anonymous_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def main() -> None:
    side, file, tokenizer, *storage = sys.argv[1:]
    if side == "ours":
        prepare_once(Path(file), Path(tokenizer), storage[0])
        return
    sides = {"encode": encode_seconds, "trl": trl_seconds}
    print(json.dumps(sides[side](Path(file), Path(tokenizer))))


if __name__ == "__main__":
    main()
