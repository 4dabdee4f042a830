"""Statements that a persona would or would not say -> pairs under opposed User Infos.

https://github.com/anthropics/evals, folder persona. The file's name is the persona. Statements that
the persona would say are paired with statements that it would not say, in file order within a
split. The shorter side's statements are repeated, so that none is dropped. If the persona has a
declared opposite, the same pair also occurs under the opposite, with flipped labels: a model that
sees each pair under only one User Info learns the style and not the condition.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from metaalign.data.sources.options import SourceOptions, conversation_key
from metaalign.data.sources.outcome import FileRead
from metaalign.data.sources.records import Record
from metaalign.errors import DataError, RowError
from metaalign.examples import HELD_OUT, PREFERENCE, TRAIN, Example, Response, Source, Turn

QUERY = "What is something you would say?"

PERSONAS = {
    "interest-in-science": "I am interested in science.",
    "politically-conservative": "I am politically conservative.",
    "politically-liberal": "I am politically liberal.",
    "risk-averse": "I am risk-averse.",
}
"""Persona -> its User Info, used if the source's settings have none."""

OPPOSITES = {
    "politically-conservative": "politically-liberal",
    "politically-liberal": "politically-conservative",
}
"""Persona -> the persona with the opposite answers."""


_KEYS = ("statement", "answer_matching_behavior")


class _Statement(NamedTuple):
    record: Record
    text: str
    would_say: bool


def read_personas(records: Iterable[Record], file: str, options: SourceOptions) -> FileRead:
    """Pair a file's statements under its persona, and then under the opposed one.

    Args:
        file: Name of the file, from which the persona is taken.

    Raises:
        DataError: the file cannot be read, or its name is not a known persona and the source's
            settings have no user_info.
    """
    persona_info(file, options)
    result = FileRead(file)
    sides: dict[str, tuple[list[_Statement], list[_Statement]]] = {
        split: ([], []) for split in (TRAIN, HELD_OUT)
    }
    seen: set[str] = set()
    for record in records:
        result.rows += 1
        try:
            statement = _statement(record, seen, options)
            sides[options.split(statement.text)][not statement.would_say].append(statement)
            result.ignore(record.object(), _KEYS)
        except RowError as error:
            result.refuse(record, str(error))
    for split, (would, would_not) in sides.items():
        for lonely in would if not would_not else would_not if not would else ():
            reason = f"no statement of the other kind to pair it with in the split {split}"
            result.refuse(lonely.record, reason)
        result.used += len(would) + len(would_not) if would and would_not else 0
        for said, unsaid in _pairs(would, would_not):
            result.examples += _examples(file, options, split, said, unsaid)
    return result


def persona_info(file: str, options: SourceOptions) -> str:
    """The User Info that states a file's persona.

    Raises:
        DataError: the file's name is not a known persona, and the settings have no user_info.
    """
    persona = persona_of(file)
    if options.user_info is None and persona not in PERSONAS:
        raise DataError(
            f"{file}: the persona {persona!r} has no known User Info; known personas are "
            f"{', '.join(PERSONAS)}. Give this source a user_info that states the persona"
        )
    return options.user_info if options.user_info is not None else PERSONAS[persona]


def persona_of(file: str) -> str:
    """The persona that a file is named after: its name before the first dot."""
    return file.rpartition("/")[2].split(".")[0]


def _statement(record: Record, seen: set[str], options: SourceOptions) -> _Statement:
    row = record.object()
    text, answer = row.get("statement"), row.get("answer_matching_behavior")
    if not isinstance(text, str) or not text.strip():
        raise RowError(f"statement: expected text, got {text!r}")
    if not isinstance(answer, str) or answer.strip() not in ("Yes", "No"):
        raise RowError(f"answer_matching_behavior: expected ' Yes' or ' No', got {answer!r}")
    if text in seen:
        raise RowError("the statement occurs twice in this file")
    example = _example(Source("", record.row), "", (text, "nothing"), {})
    example.validate()
    options.ordered([example])
    seen.add(text)
    return _Statement(record, text, answer.strip() == "Yes")


def _pairs(
    would: list[_Statement], would_not: list[_Statement]
) -> Iterator[tuple[_Statement, _Statement]]:
    """Pair each statement of the longer side once; the other side's statements are repeated."""
    if would and would_not:
        for i in range(max(len(would), len(would_not))):
            yield would[i % len(would)], would_not[i % len(would_not)]


def _examples(
    file: str, options: SourceOptions, split: str, said: _Statement, unsaid: _Statement
) -> list[Example]:
    persona = persona_of(file)
    source = Source(file, said.record.row)
    tags = {"persona": persona, "split": split, "pair": conversation_key(said.text, unsaid.text)}
    info = persona_info(file, options)
    system = options.system_info
    examples = [_example(source, info, (said.text, unsaid.text), tags, system)]
    opposite = OPPOSITES.get(persona) if options.oppose_personas else None
    if opposite is not None:
        texts, info = (unsaid.text, said.text), PERSONAS[opposite]
        examples.append(_example(source, info, texts, {**tags, "persona": opposite}, system))
    return examples


def _example(
    source: Source, info: str, texts: tuple[str, str], tags: Mapping[str, str], system: str = ""
) -> Example:
    chosen, rejected = texts
    return Example(
        turns=(Turn("user", QUERY),),
        responses=(Response(chosen, {PREFERENCE: 1.0}), Response(rejected, {PREFERENCE: 0.0})),
        source=source,
        system_info=system,
        user_info=info,
        tags=tags,
        conversation=tags.get("pair", ""),
    )
