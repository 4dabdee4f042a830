"""Is what the probe accepts exact? Every model type of transformers' causal language models.

    python -m tests.benchmarks.architectures [--only llama mamba] [--timeout-s 30]

The probe says which layout each default config takes, at a budget of 2,048. What it accepts is
trained for one step of SFT and DPO together, twice: as rows, and as single sequences through
`model.forward` with eager attention. Compared are the log-probability of every target and the
gradient of every parameter, on weights, sequences, rows and a loss that are not the probe's:

- short: the probe's tiny copy, whose windows and limits are as short as the test.
- long: the same small layers with the lengths that the config states, in a row of 2,048 tokens. A
  length that the probe overlooks shows here.

Each model runs in a process of its own: one that hangs or crashes is reported, and the rest go on.
The timeout is of processor time, so that a busy machine finds the same; ten times as much by the
clock ends a model that waits.
"""

import argparse
import copy
import logging
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from metaalign.errors import ModelError
from metaalign.steps.plan import Layout
from metaalign.steps.trees import Sequence, lay_out_rows
from metaalign.train.model.attention import supported_kernel
from metaalign.train.model.context import stated_context, text_config_of
from metaalign.train.model.loading import switch_off_noise
from metaalign.train.model.policy import Policy, to_tensors
from metaalign.train.model.probe import choose_layout
from metaalign.train.model.tiny_copy import LONGEST_SEQUENCE, VOCABULARY, Reach, tiny_copy
from metaalign.train.model.tiny_model import FEEDING_ERRORS
from tests.benchmarks.report import bar, print_report

BUDGET = 2048
SHORT_ROW = 256
LONG_SEQUENCE = 600
WAITING = 10
"""Times the timeout that a model may take by the clock."""
BARS = {"float64": 1e-5, "float32": 1e-3}
"""Of a log-probability, as a share of the largest, and of a parameter's gradient. In float64 too
models compute norms, rotations and biases in float32: MPT differs by 2e-6. A wrong mask makes
differences above 0.1."""
FLOOR = 1e-2
"""A parameter's gradient that is smaller than this share of the whole is measured against that
share: rounding elsewhere in the model may be as large as a gradient that should be zero."""


class Outcome(NamedTuple):
    """What became of a model type."""

    layout: str
    """tree, single, refused or not measured."""
    reason: str = ""
    dtype: str = ""
    short: float = 0.0
    """The larger relative error, of log-probabilities or gradients."""
    long: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the probe would let it train."""
        return self.layout in ("tree", "single")

    @property
    def wrong(self) -> bool:
        """Accepted, and not exact."""
        return self.accepted and not max(self.short, self.long) <= BARS.get(self.dtype, 0.0)


class Unshortened(Reach):
    """Leaves every length of a config as it is."""

    def shorten(self, number: int) -> int:
        return number


def outcome_of(model_type: str) -> Outcome:
    """Ask the probe, and check what it accepts."""
    try:
        config = text_config_of(CONFIG_MAPPING[model_type]())
        layout = choose_layout(config, "auto", budget=BUDGET)
    except ModelError as error:
        return Outcome("refused", str(error))
    return checked(config, layout)


def checked(config: PretrainedConfig, layout: Layout) -> Outcome:
    """How far rows are from single sequences, short and long."""
    sequence = min(BUDGET, stated_context(config) or BUDGET)
    row = BUDGET if layout == "tree" else sequence
    sides = (
        (Reach(sequence, row, layout), LONGEST_SEQUENCE, SHORT_ROW, 2),
        (Unshortened(sequence, row, layout), min(LONG_SEQUENCE, sequence), BUDGET, 1),
    )
    found: list[float] = []
    dtype = "float64"
    for reach, longest, length, num_rows in sides:
        sequences = draw_sequences(longest, length, num_rows)
        try:
            reference = build_reference(config, reach)
            error, used = relative_error(reference, sequences, layout, length)
        except FEEDING_ERRORS as failure:
            return Outcome(layout, f"{type(failure).__name__}: {failure}", dtype, float("inf"))
        found.append(error)
        dtype = min(dtype, used)  # "float32" where either ran in it
    return Outcome(layout, "", dtype, *found)


def draw_sequences(longest: int, length: int, num_rows: int) -> list[Sequence]:
    """Pairs of responses in rows that hold them unshared; half of a row's prompts begin alike."""
    rng = np.random.default_rng(7)
    sequences, example = [], 0
    for number in range(num_rows):
        meta_prompt, left = rng.integers(0, VOCABULARY, longest // 3), length
        while True:
            sizes = rng.integers(1, max(2, longest // 8), 2)
            whole = example % 3 == 0  # of the longest sequence
            size = longest - int(sizes.max()) if whole else int(rng.integers(1, longest // 2))
            prompt = rng.integers(0, VOCABULARY, size)
            if example % 2 == 0:
                prompt[: len(meta_prompt)] = meta_prompt[:size]
            left -= size + int(sizes.sum())
            if left < 0:
                break
            for response in sizes.tolist():
                tokens = np.append(prompt, rng.integers(0, VOCABULARY, response))
                sequences.append(Sequence(tokens, size, number, example, occurrence=example))
            example += 1
    return sequences


def build_reference(config: PretrainedConfig, reach: Reach) -> PreTrainedModel:
    """A small model with eager attention and larger weights than it begins with, in float64."""
    try:
        return _build_small(config, reach, keep_widths=False)
    except FEEDING_ERRORS:
        return _build_small(config, reach, keep_widths=True)


def _build_small(config: PretrainedConfig, reach: Reach, *, keep_widths: bool) -> PreTrainedModel:
    tiny = tiny_copy(config, reach, keep_widths=keep_widths)
    switch_off_noise(tiny)
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(tiny), attn_implementation="eager")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.uniform_(-1, 1).mul_((2 / weight.shape[-1]) ** 0.5)
            else:
                weight.add_(torch.rand_like(weight) - 0.5, alpha=0.2)
    tokens = torch.arange(8)[None]
    try:
        model.double()(input_ids=tokens, use_cache=False)
    except RuntimeError:
        model.float()(input_ids=tokens, use_cache=False)
    return model.train()


def relative_error(
    reference: PreTrainedModel, sequences: list[Sequence], layout: Layout, length: int
) -> tuple[float, str]:
    """The largest error of a log-probability or a gradient, and the precision it was found in."""
    kernel = supported_kernel(reference.config, "sdpa")
    fed = AutoModelForCausalLM.from_config(
        copy.deepcopy(reference.config), attn_implementation=kernel, dtype=reference.dtype
    )
    fed.load_state_dict(reference.state_dict())
    policy = Policy(fed.train(), attention=kernel, layout=layout, chunk_targets=48)
    if layout == "single":
        sequences = [each._replace(row=row) for row, each in enumerate(sequences)]
        length = max(len(each.tokens) for each in sequences)
    counts = [len(each.tokens) - each.prompt_length for each in sequences]
    rows = lay_out_rows(
        sequences, num_rows=sequences[-1].row + 1, num_targets=sum(counts), length=length
    )
    found = policy(to_tensors(rows))
    wanted = torch.cat([single_logprobs(reference, each) for each in sequences])
    step_loss(found, counts).backward()
    step_loss(wanted, counts).backward()
    logprob = float((found - wanted).detach().abs().max() / wanted.detach().abs().max())
    gradient = largest_gradient_error(fed, reference)
    return max(logprob, gradient), str(reference.dtype).removeprefix("torch.")


def single_logprobs(model: PreTrainedModel, sequence: Sequence) -> Tensor:
    """(response,) through the model's own forward, nothing else in the batch."""
    tokens = torch.from_numpy(sequence.tokens)[None]
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits[0]
    response = slice(sequence.prompt_length - 1, -1)
    return -functional.cross_entropy(
        logits[response], tokens[0, sequence.prompt_length :], reduction="none"
    )


def step_loss(logprobs: Tensor, counts: list[int]) -> Tensor:
    """SFT on every target and DPO on every two responses, without a reference."""
    sums = torch.stack([each.sum() for each in logprobs.split(counts)])
    chosen, rejected = sums[::2], sums[1::2]
    return -functional.logsigmoid(0.1 * (chosen - rejected)).sum() - logprobs.mean()


def largest_gradient_error(fed: PreTrainedModel, reference: PreTrainedModel) -> float:
    """Norm of a parameter's difference by the norm of its gradient, the largest of all."""
    wanted = {name: _gradient(each) for name, each in reference.named_parameters()}
    floor = FLOOR * sum(float(each.pow(2).sum()) for each in wanted.values()) ** 0.5
    return max(
        float((_gradient(each) - wanted[name]).norm()) / max(float(wanted[name].norm()), floor)
        for name, each in fed.named_parameters()
    )


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def in_own_process(model_type: str, timeout_s: int) -> Outcome:
    """A fork, so that the imports are paid for once."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, model_type, timeout_s))
    process.start()
    sender.close()
    try:
        if receiver.poll(WAITING * timeout_s):
            return receiver.recv()
        return Outcome("not measured", f"no answer within {WAITING * timeout_s} s")
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return Outcome("not measured", f"no answer within {timeout_s} s of processor time")
        return Outcome("not measured", f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send(sender: Connection, model_type: str, timeout_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (timeout_s, timeout_s + 1))
    sender.send(outcome_of(model_type))


def print_table(outcomes: dict[str, Outcome]) -> None:
    """One line a model type, by outcome."""
    table = Table("outcome", "model type", "short", "long", "precision", "reason")
    for name, each in sorted(outcomes.items(), key=lambda item: (item[1].layout, item[0])):
        errors = [f"{each.short:.1e}", f"{each.long:.1e}"] if each.accepted else ["", ""]
        mark = "WRONG " if each.wrong else ""
        table.add_row(mark + each.layout, name, *errors, each.dtype, each.reason)
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--timeout-s", type=int, default=30, help="of one model type")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # the probe's, of each layout that it does not take
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    for name in given.only:
        outcomes[name] = in_own_process(name, given.timeout_s)
        print(f"{len(outcomes)}/{len(given.only)}", name, *outcomes[name], file=sys.stderr)
    print_table(outcomes)
    wrong = sorted(name for name, each in outcomes.items() if each.wrong)
    lost = sorted(name for name, each in outcomes.items() if each.layout == "not measured")
    print_report(
        {"model_types": len(outcomes), "budget": BUDGET, "bars": BARS},
        {
            **Counter(each.layout for each in outcomes.values()),
            "float32": sum(each.dtype == "float32" for each in outcomes.values()),
            "accepted_but_wrong": wrong,
            "not_measured": lost,
            "seconds": round(time.monotonic() - started),
        },
        {"accepted_but_wrong": bar(len(wrong), 0, at_least=False)},
    )


if __name__ == "__main__":
    main()
