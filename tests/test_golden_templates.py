"""Every rendering has a golden file, so that a change of it is seen in review.

In tiers.json a token that no text can make is {"token": NAME}; text stands between them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from metaalign.examples import Turn
from metaalign.store.tokenizer import train_tokenizer
from metaalign.template import Template, prompt_segments
from metaalign.wire import edit_prompt, query_text

GOLDEN = Path(__file__).parent / "golden" / "templates"


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def template() -> Template:
    """Without merges: what is golden is the rendering and not a vocabulary."""
    return train_tokenizer([], 270)


def shown(template: Template, ids: list[int]) -> list[Any]:
    """Control tokens by name, and the text between them."""
    special = {template.eos_id, *template.control_ids.values()}
    found: list[Any] = []
    run: list[int] = []
    for id in [*ids, None]:
        if id is not None and id not in special:
            run.append(id)
            continue
        found += [template.decode(run)] if run else []
        found += [] if id is None else [{"token": template.tokenizer.convert_ids_to_tokens(id)}]
        run = []
    return found


@pytest.mark.parametrize("case", cases("tiers"), ids=lambda case: case["about"])
def test_tiers_are_rendered_so(template: Template, case: dict[str, Any]) -> None:
    dialogue = {**case["dialogue"], "turns": [Turn(**turn) for turn in case["dialogue"]["turns"]]}
    response = dialogue.pop("response")
    prompt = template.prompt_ids(prompt_segments(**dialogue))
    assert shown(template, prompt) == case["prompt"]
    assert shown(template, template.response_ids(response)) == case["response"]


@pytest.mark.parametrize("case", cases("wire"), ids=lambda case: case["wire"] + case["direction"])
def test_edits_are_asked_for_so(case: dict[str, Any]) -> None:
    query = query_text([Turn(**turn) for turn in case["turns"]])
    asked = {name: case[name] for name in ("answer", "objectives", "direction")}
    assert edit_prompt(case["wire"], query=query, **asked) == case["prompt"]
