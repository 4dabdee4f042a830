"""Our losses beside TRL's own code on the same log-probs. TRL is needed for comparisons alone."""

import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metaalign.config.preference_losses import PreferenceLossConfig
from metaalign.steps.selection import select_ranked
from metaalign.train.losses.pairs import PairLoss
from tests.loss_rows import make_rows
from tests.tiny_columns import Item, make_columns

pytest.importorskip("trl")

PROMPT, LONGEST = 5, 9
"""Tokens of a prompt in `make_columns`, and of the longest response below."""

LENGTHS = [(2, 5), (9, 3), (4, 4), (1, 7), (6, 2), (3, 8)]
"""Targets of each pair's chosen and rejected response."""


class Accelerator:
    """What TRL asks of accelerate in one process."""

    device = torch.device("cpu")

    def gather_for_metrics(self, values: Tensor) -> Tensor:
        return values

    gather = gather_for_metrics


def draw(lengths: list[int], seed: int) -> list[Tensor]:
    """The log-prob of every target of every response."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.rand(length, generator=generator, dtype=torch.float64) for length in lengths]
    return [-3.0 * values for values in draws]


def padded(by_target: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(S, L - 1) log-probs that follow a prompt, and (S, L) the mask of the responses' tokens."""
    logprobs = torch.zeros(len(by_target), PROMPT + LONGEST - 1, dtype=torch.float64)
    mask = torch.zeros(len(by_target), PROMPT + LONGEST, dtype=torch.long)
    for row, values in enumerate(by_target):
        logprobs[row, PROMPT - 1 : PROMPT - 1 + len(values)] = values
        mask[row, PROMPT : PROMPT + len(values)] = 1
    return logprobs, mask


def told(logprobs: Tensor) -> Any:
    """A model that answers TRL with these log-probs; what it only reports besides is zero."""
    zero = torch.zeros_like(logprobs)
    output = types.SimpleNamespace(
        log_probs=logprobs, entropy=zero, mean_logits=zero, is_top1=zero.bool()
    )
    return lambda **_: output


def dpo_by_trl(name: str, policy: list[Tensor], reference: list[Tensor], **settings: Any) -> Tensor:
    """The mean loss by `DPOTrainer`, of the chosen responses followed by the rejected."""
    from trl import DPOTrainer

    class Trainer(DPOTrainer):
        def __init__(self) -> None:  # builds no model and reads no data
            self.model = types.SimpleNamespace(training=True)
            self.accelerator: Any = Accelerator()
            self.aux_loss_enabled = self.use_weighting = False
            self.ld_alpha = None
            self.precompute_ref_logps = True
            self.f_divergence_type = "reverse_kl"
            self.loss_types, self.loss_weights = [name], [1.0]
            self.beta = settings["beta"]
            self.label_smoothing = settings.get("label_smoothing", 0.0)
            self._metrics: Any = {"train": _Lists()}
            self._total_train_tokens, self._tp_size = 0, 1

    logprobs, mask = padded(policy)
    sums = torch.stack([values.sum() for values in reference])
    chosen, rejected = sums.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return Trainer()._compute_loss(told(logprobs), inputs, return_outputs=False)


class _Lists(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


def ours(
    policy: list[Tensor], reference: list[Tensor] | None, config: PreferenceLossConfig
) -> Tensor:
    """The mean loss of the same pairs, of which every other one has its chosen response second."""
    items, order = [], []
    for pair, (first, second) in enumerate(LENGTHS):
        places = (pair, pair + len(LENGTHS))
        lengths, scores = (first, second), (1.0, 0.0)
        if pair % 2:
            places, lengths, scores = places[::-1], lengths[::-1], scores[::-1]
        items.append(Item(responses=lengths, scores=scores))
        order += places
    columns = make_columns(items)
    selection = select_ranked(columns, split=None, context=99)
    rows = make_rows(selection, list(range(len(items))))
    references = None
    if reference is not None:
        references = np.array([[float(reference[place].sum()) for place in order]])
    loss = PairLoss(selection, columns, references, config)
    return loss(torch.cat([policy[place] for place in order]), rows).value / len(LENGTHS)


def drawn() -> tuple[list[Tensor], list[Tensor]]:
    lengths = [first for first, _ in LENGTHS] + [second for _, second in LENGTHS]
    policy = [values.requires_grad_() for values in draw(lengths, 1)]
    return policy, draw(lengths, 2)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sigmoid", {"beta": 0.3}),
        ("ipo", {"beta": 0.7}),
        ("hinge", {"beta": 0.3}),
        ("robust", {"beta": 0.3, "label_smoothing": 0.2}),
        ("apo_zero", {"beta": 0.3}),
        ("apo_down", {"beta": 0.3}),
        ("sppo_hard", {"beta": 0.2}),
    ],
)
def test_losses_of_log_ratios_and_their_gradients_are_trls(
    name: str, settings: dict[str, float]
) -> None:
    policy, reference = drawn()
    theirs = dpo_by_trl(name, policy, reference, **settings)
    own = ours(policy, reference, PreferenceLossConfig.model_validate({"name": name, **settings}))
    assert own.item() == pytest.approx(theirs.item(), abs=1e-12)
    for first, second in zip(
        torch.autograd.grad(own, policy), torch.autograd.grad(theirs, policy), strict=True
    ):
        torch.testing.assert_close(first, second, atol=1e-12, rtol=0)


def test_simpo_is_trls() -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    trainer = object.__new__(cpo.CPOTrainer)
    trainer.__dict__.update(
        beta=2.0, simpo_gamma=0.7, alpha=0.0, label_smoothing=0.0, loss_type="simpo"
    )
    trainer.accelerator = Accelerator()
    policy, _ = drawn()
    averages = torch.stack([values.mean() for values in policy])
    theirs = trainer.cpo_loss(*averages.chunk(2))[0].mean()
    own = ours(policy, None, PreferenceLossConfig(name="simpo", beta=2.0, target_margin=0.7))
    assert own.item() == pytest.approx(theirs.item(), abs=1e-12)


def test_orpo_is_trls() -> None:
    orpo = pytest.importorskip("trl.experimental.orpo")
    trainer = object.__new__(orpo.ORPOTrainer)
    trainer.beta, trainer.accelerator = 0.3, Accelerator()
    policy, _ = drawn()
    averages = torch.stack([values.mean() for values in policy])
    theirs = -trainer.odds_ratio_loss(*averages.chunk(2))[0].mean()
    own = ours(policy, None, PreferenceLossConfig(name="orpo", beta=0.3, sft_weight=0.0))
    assert own.item() == pytest.approx(theirs.item(), abs=1e-6)  # TRL computes in float32
