"""MetaAlign's recipes over users' examples: adds meta-prompts, and flips labels under opposed ones.

https://arxiv.org/abs/2410.14184, section 3, on the rows of files. `rule_written` writes examples of
its own.

    helpful     a pair whose better answer is the safer one gets a meta-prompt of safety first, and
                with flipped labels one of helpfulness first
    consensus   judged answers get a meta-prompt without a background and one with it, and keep
                their order: the answer does not depend on who asks
    priority    an answer is edited to obey a verifiable instruction, and to obey its opposite; the
                meta-prompt is a cell of the matrix {system says P, not-P, nothing} x {user}

The result depends on the seed, the example's conversation and its row alone. The tags are recipe,
family, conflict, the wishes that the better answer obeys and, in the held-out split, which parts
training never uses: `query`, `phrasing`, `parameter`, `family`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random

from metaalign.data.recipes.rule_written import CELLS
from metaalign.data.sources.options import SourceOptions
from metaalign.errors import RowError
from metaalign.examples import (
    HELD_OUT,
    PREFERENCE,
    Example,
    Response,
    best_response,
    ordered_pairs,
)
from metaalign.preferences import backgrounds
from metaalign.preferences.instructions import INSTRUCTIONS, Wish, answers
from metaalign.preferences.wishes import wishes_tag

_SIDES = (
    {"system_info": backgrounds.SAFETY_SYSTEM, "user_info": backgrounds.SAFETY_USER},
    {"system_info": backgrounds.HELPFULNESS_SYSTEM, "user_info": backgrounds.HELPFULNESS_USER},
)


class _Draw:
    """The random choices for one example, and which of them training never uses."""

    def __init__(self, example: Example, options: SourceOptions) -> None:
        key = f"{options.seed}/{options.recipe}/{example.conversation}/{example.source.row}"
        self.rng = Random(key)
        self.held_out = example.tags["split"] == HELD_OUT
        self._closed = set(options.held_out_families)
        self.unseen = {"query"} if self.held_out else set()
        self._last_phrasings = self.held_out and self.rng.random() < 0.5

    def phrasing(self, forms: Sequence[str]) -> str:
        """One of the forms. Only held-out examples use the last one, and then on both sides."""
        if self._last_phrasings:
            self.unseen.add("phrasing")
            return forms[-1]
        return self.rng.choice(forms[:-1])

    def wish(self, name: str) -> Wish:
        """The instruction with a random parameter. The last of three or more is held out."""
        parameters = INSTRUCTIONS[name].parameters
        if len(parameters) < 3:
            return Wish(name, self.rng.choice(parameters))
        last = self.held_out and self.rng.random() < 0.5
        return Wish(name, parameters[-1] if last else self.rng.choice(parameters[:-1]))

    def involves(self, *wishes: Wish) -> None:
        """Record which parts of these wishes training never uses."""
        for wish in wishes:
            parameters = INSTRUCTIONS[wish.instruction].parameters
            if len(parameters) > 2 and wish.parameter == parameters[-1]:
                self.unseen.add("parameter")
            if self.is_closed(wish.instruction):
                self.unseen.add("family")

    def families(self) -> list[str]:
        """The instructions in the random order in which they are tried."""
        names = [name for name in INSTRUCTIONS if self.held_out or not self.is_closed(name)]
        self.rng.shuffle(names)
        return names

    def is_closed(self, name: str) -> bool:
        """Whether an instruction or its opposite occurs only in the held-out split."""
        return bool({name, INSTRUCTIONS[name].opposite} & self._closed)

    def person(self, share: float) -> str:
        """A user's background with probability `share`, else an empty text."""
        return self.rng.choice(backgrounds.PEOPLE) if self.rng.random() < share else ""

    def assistant(self, share: float) -> str:
        """A description of the assistant with probability `share`, else an empty text."""
        return self.rng.choice(backgrounds.ASSISTANTS) if self.rng.random() < share else ""


def put_under(example: Example, options: SourceOptions) -> list[Example]:
    """Apply the source's recipe to an example.

    Raises:
        RowError: the recipe cannot use the example.
    """
    draw = _Draw(example, options)
    made = list(_RECIPES[str(options.recipe)](example, draw))
    tags = {"recipe": str(options.recipe)}
    if draw.unseen:
        tags["unseen"] = " ".join(sorted(draw.unseen))
    return [replace(each, tags={**each.tags, **tags}) for each in made]


def _helpful(example: Example, draw: _Draw) -> Iterable[Example]:
    pairs = ordered_pairs(example.order_scores())
    if len(example.responses) != 2 or not pairs:
        raise RowError("the recipe helpful needs pairs of a better and a worse answer")
    better, worse = (example.responses[k].text for k in pairs[0])
    tier = draw.rng.choices(("user_info", "system_info"), weights=(2, 1))[0]
    around = {"system_info": draw.assistant(0.4), "user_info": draw.person(0.6)}
    for side, texts in zip(_SIDES, ((better, worse), (worse, better)), strict=True):
        said = {**around, tier: _joined(around[tier], draw.phrasing(side[tier]))}
        yield _pair(example, *texts, **said, family="safety")


def _consensus(example: Example, draw: _Draw) -> Iterable[Example]:
    if not ordered_pairs(example.order_scores()):
        raise RowError("the recipe consensus needs answers of which some are better than others")
    system = draw.assistant(0.5)
    for person in ("", draw.person(1.0)):
        tags = {**example.tags, "family": "none", "conflict": ""}
        yield replace(example, system_info=system, user_info=person, tags=tags)


def _priority(example: Example, draw: _Draw) -> Iterable[Example]:
    text = _answer(example)
    wish, against, sides = _made_to_obey(text, draw)
    cell = draw.rng.choices(list(CELLS), weights=list(CELLS.values()))[0]
    around = {"system_info": draw.assistant(0.3), "user_info": draw.person(0.5)}
    for winner, loser, own, other in ((wish, against, *sides), (against, wish, *sides[::-1])):
        system = None if cell in ("user", "silent") else winner
        user = {"against": loser, "agree": winner, "user": winner}.get(cell)
        said = {
            tier: _joined(around[tier], wanted and draw.phrasing(wanted.phrasings(tier)))
            for tier, wanted in (("system_info", system), ("user_info", user))
        }
        chosen, rejected = (text, own) if cell == "silent" else (own, other)
        if chosen != rejected:  # equal if the cell is silent and the text obeys as it is
            tags = {"family": winner.instruction, "conflict": cell}
            wishes = () if cell == "silent" else (winner,)
            yield _pair(example, chosen, rejected, **said, wishes=wishes_tag(wishes), **tags)


def _answer(example: Example) -> str:
    best = best_response(
        example.order_scores(), [response.desirable for response in example.responses]
    )
    if best is None:
        raise RowError("the recipe priority needs an answer that is not undesirable")
    return example.responses[best].text


def _made_to_obey(text: str, draw: _Draw) -> tuple[Wish, Wish, tuple[str, str]]:
    """The first instruction that the text can be edited to obey, its opposite, and both texts."""
    for name in draw.families():
        wish = draw.wish(name)
        against = draw.rng.choice(_open_opposites(wish, draw))
        sides = answers(text, wish, against)
        if sides is not None:
            draw.involves(wish, against)
            return wish, against, sides
    raise RowError("the recipe priority has no instruction that this answer can be edited to obey")


def _open_opposites(wish: Wish, draw: _Draw) -> list[Wish]:
    """The opposites of a wish that may be used in the example's split."""
    opposites = wish.opposites()
    parameters = INSTRUCTIONS[opposites[0].instruction].parameters
    closed = parameters[-1] if len(parameters) > 2 and not draw.held_out else None
    return [each for each in opposites if each.parameter != closed]


def _joined(*texts: str | None) -> str:
    return " ".join(text for text in texts if text)


def _pair(
    example: Example,
    chosen: str,
    rejected: str,
    *,
    system_info: str,
    user_info: str,
    family: str,
    conflict: str = "",
    wishes: str = "",
) -> Example:
    return replace(
        example,
        system_info=system_info,
        user_info=user_info,
        responses=(
            Response(chosen, {PREFERENCE: 1.0}, True),
            Response(rejected, {PREFERENCE: 0.0}),
        ),
        order_by=PREFERENCE,
        tags={**example.tags, "family": family, "conflict": conflict}
        | ({"wishes": wishes} if wishes else {}),
    )


_RECIPES: dict[str, Callable[[Example, _Draw], Iterable[Example]]] = {
    "helpful": _helpful,
    "consensus": _consensus,
    "priority": _priority,
}
