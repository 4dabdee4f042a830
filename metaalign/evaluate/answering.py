"""The Ray Data worker that answers cases, with one model at a time.

Does not import Ray, and does not judge the answers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from metaalign.config import EvaluateConfig, resolve
from metaalign.data.recipes.cases import Case
from metaalign.examples import Turn
from metaalign.generate.embedded import EmbeddedEngine, Sampling
from metaalign.template import prompt_segments


class Answerer:
    """Answers a batch of Ray Data.

    Input columns: `model`, a name in `models`; `case`, its number; `text`, the case as JSON.
    Output columns: `model`, `case`, `answer`, `finish_reason` and `prompt_tokens`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = EvaluateConfig.model_validate(settings)
        self._name = ""
        self._engine: EmbeddedEngine | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = [str(name) for name in batch["model"]]
        cases = [Case.from_json(str(text)) for text in batch["text"]]
        answers: list[tuple[str, str, int]] = [("", "", 0)] * len(cases)
        for name in dict.fromkeys(names):
            own = [row for row, other in enumerate(names) if other == name]
            for row, answer in zip(
                own, self._answer(name, [cases[row] for row in own]), strict=True
            ):
                answers[row] = answer
        texts, reasons, lengths = (list(column) for column in zip(*answers, strict=True))
        return {
            "model": names,
            "case": batch["case"],
            "answer": texts,
            "finish_reason": reasons,
            "prompt_tokens": lengths,
        }

    def _answer(self, name: str, cases: Sequence[Case]) -> Iterable[tuple[str, str, int]]:
        """(answer, finish reason, prompt tokens) of each case. Equal prompts are answered once."""
        engine = self._load(name)
        prompts = [
            tuple(
                engine.template.prompt_ids(
                    prompt_segments(
                        system_info=case.system_info,
                        user_info=case.user_info,
                        turns=(Turn("user", case.query),),
                    )
                )
            )
            for case in cases
        ]
        distinct = list(dict.fromkeys(prompts))
        sampling = Sampling(max_tokens=self._config.generation.max_tokens)
        answers = dict(zip(distinct, engine.generate(distinct, sampling), strict=True))
        for prompt in prompts:
            tokens, finish_reason = answers[prompt]
            yield engine.template.decode(tokens), finish_reason, len(prompt)

    def _load(self, name: str) -> EmbeddedEngine:
        if self._engine is None or name != self._name:
            self._engine = None  # Two models at once might not fit.
            folder = resolve(self._config.storage, self._config.models[name])
            self._engine = EmbeddedEngine(folder, batch_size=self._config.generation.batch_size)
            self._name = name
        return self._engine
