"""Selects a store's held-out examples and computes metrics from their log-probabilities.

The `held_out` part of the report, in nats; `before` and `after` are names in `models`:

    {"sft_loss": {"before": 2.31, "after": 2.12, "count": 968},
     "pairs_in_order": {"before": null, "after": 0.71, "count": 900},
     "reward_margin": {"before": null, "after": 1.84, "count": 900},
     "intervals": {"sft_loss": {"before": [2.25, 2.37], ...}, ...},
     "reference": {"model": "before", "folder": "/mnt/runs/1/sft_model", "reason": "..."},
     "examples": {"sft_loss": {"in": 1000, "out": 968, "too_long_user_query": 32}, ...}}

Loads no model. Dimensions: R = responses of the whole store.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaalign.config.dpo import PreferenceLossConfig
from metaalign.errors import PlanError
from metaalign.examples import HELD_OUT
from metaalign.steps.selection import Selection, select_best, select_ranked, take
from metaalign.store.token_store import TokenStore
from metaalign.train.loop.results import bootstrap_interval, pair_order
from metaalign.train.losses.pairs import Gaps, PairLoss

EXAMPLES_PER_PART = 128
"""Examples that a worker reads at once. Only examples of one part share prefixes."""

_ANY_LENGTH = 2**31

Figure = tuple[float, tuple[float, float]]
"""A value and the bounds of its 95% interval."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out examples that are measured."""

    store: TokenStore
    best: Selection | None
    """The responses that SFT would train on; None if there are none."""
    ranked: Selection | None
    """Every scored response of the examples with a strict order; None if there are none."""

    def parts(self) -> list[Selection]:
        """Every response that a metric needs, without repeats, in parts of at most
        `EXAMPLES_PER_PART` examples."""
        wanted = [] if self.ranked is None else [self.ranked]
        if self.best is not None:
            known = np.concatenate([self.places(each) for each in wanted] or [np.empty(0)])
            missing = ~np.isin(self.places(self.best), known)  # one response an example
            wanted.append(take(self.best, np.flatnonzero(missing)))
        return [part for selection in wanted for part in _cut(selection)]

    def places(self, selection: Selection) -> np.ndarray:
        """(responses of the selection,) the position of each among all responses of the store."""
        return self.store.columns.response_start[selection.response_row] + selection.response


def _cut(selection: Selection) -> Iterator[Selection]:
    for start in range(0, len(selection), EXAMPLES_PER_PART):
        end = min(start + EXAMPLES_PER_PART, len(selection))
        yield take(selection, np.arange(start, end))


def holds_pairs(store: TokenStore) -> bool:
    """Whether any held-out example, of any length, has a strict order."""
    return _select(select_ranked, store, _ANY_LENGTH) is not None


def select_held_out(
    store: TokenStore, *, context: int, examples: int | None, seed: int
) -> HeldOut | None:
    """The examples to measure; None if no held-out example fits.

    Args:
        context: Most tokens that every model accepts.
        examples: Most examples, drawn at random with the seed; None takes all.
    """
    found = [_select(select, store, context) for select in (select_best, select_ranked)]
    rows = np.unique(np.concatenate([each.example for each in found if each] or [np.empty(0)]))
    if not len(rows):
        return None
    if examples is not None and examples < len(rows):
        rows = np.random.default_rng(seed).choice(rows, examples, replace=False)
    best, ranked = (each and _only(each, rows) for each in found)
    return HeldOut(store, best, ranked)


def _select(select: Callable[..., Selection], store: TokenStore, context: int) -> Selection | None:
    try:
        return select(store.columns, split=HELD_OUT, context=context)
    except PlanError:  # nothing of this kind is held out
        return None


def _only(selection: Selection, rows: np.ndarray) -> Selection | None:
    positions = np.flatnonzero(np.isin(selection.example, rows))
    return take(selection, positions) if len(positions) else None


def held_out_report(
    held: HeldOut, logprobs: Mapping[str, np.ndarray], reference: np.ndarray | None, *, seed: int
) -> dict[str, Any]:
    """Every metric of the held-out examples, by model.

    Args:
        logprobs: Model -> (R,) summed log-probability of each response, in nats; NaN for responses
            that were not measured.
        reference: The same for the reference. If the reference is one of the models, it must be the
            same array object as in `logprobs`: that model then has no reward metrics. None compares
            plain log-probabilities.
    """
    metrics: dict[str, dict[str, Figure | None]] = {}
    counts, ledgers = {}, {}
    if held.best is not None:
        metrics["sft_loss"] = {
            name: _sft_loss(held, held.best, values, seed) for name, values in logprobs.items()
        }
        counts["sft_loss"], ledgers["sft_loss"] = len(held.best), held.best.ledger
    if held.ranked is not None:
        for metric, measure in (("pairs_in_order", _order), ("reward_margin", _margin)):
            metrics[metric] = {
                name: None if values is reference else measure(held, values, reference, seed)
                for name, values in logprobs.items()
            }
            counts[metric], ledgers[metric] = len(held.ranked), held.ranked.ledger
    return {
        **{
            metric: {
                **{name: figure and round(figure[0], 4) for name, figure in by_model.items()},
                "count": counts[metric],
            }
            for metric, by_model in metrics.items()
        },
        "intervals": {
            metric: {
                name: figure and [round(bound, 4) for bound in figure[1]]
                for name, figure in by_model.items()
            }
            for metric, by_model in metrics.items()
        },
        "examples": ledgers,
    }


def _sft_loss(held: HeldOut, best: Selection, logprobs: np.ndarray, seed: int) -> Figure:
    """Mean nats per target token, weighted by example as in SFT."""
    weight = best.loss_weight / best.targets
    surprise = -weight * logprobs[held.places(best)]
    value = float(surprise.sum() / best.loss_weight.sum())
    return value, bootstrap_interval(surprise, best.loss_weight, seed=seed)


def _order(held: HeldOut, logprobs: np.ndarray, reference: np.ndarray | None, seed: int) -> Figure:
    """Share of the pairs whose better response has the larger reward. A tie counts half."""
    order = pair_order(_gaps(held, logprobs, reference), seed=seed)
    return order["accuracy"], (order["low"], order["high"])


def _margin(held: HeldOut, logprobs: np.ndarray, reference: np.ndarray | None, seed: int) -> Figure:
    """Mean over examples of the reward of the better response minus that of the worse one. Each
    example contributes the mean over its pairs."""
    gaps = _gaps(held, logprobs, reference)
    by_example = np.bincount(gaps.example, weights=gaps.share * gaps.reward)
    return float(by_example.mean()), bootstrap_interval(by_example, seed=seed)


def _gaps(held: HeldOut, logprobs: np.ndarray, reference: np.ndarray | None) -> Gaps:
    assert held.ranked is not None
    places = held.places(held.ranked)
    start = np.zeros(len(places)) if reference is None else reference[places]
    loss = PairLoss(held.ranked, held.store.columns, start[None], PreferenceLossConfig())
    return loss.gaps(logprobs[places])
