"""Reads a JSON array of any length value by value, alone or in an object.

Reads bytes from a callable, not files.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

_CHUNK_BYTES = 1 << 20
_BLANK = re.compile(r"[ \t\n\r]*")
_AFTER = tuple(" \t\n\r,]}:")
_LONGEST_WORD = 16
"""If a parse error is at most this many characters before the end of the text read so far, the
text may be cut off there and not wrong."""


def array_values(read: Callable[[int], bytes], decoder: json.JSONDecoder) -> Iterator[Any]:
    """The values of a file that is one JSON array, each as soon as its text was read.

    Args:
        read: Returns at most the given number of the file's next bytes. Invalid UTF-8 becomes lone
            surrogates.

    Raises:
        ValueError: the file is not a valid array.
        RecursionError: a value is nested too deep.
    """
    text = _Text(read, decoder)
    yield from _values(text)
    if text.mark():
        raise text.problem("expected nothing after the array")


def _values(text: "_Text") -> Iterator[Any]:
    text.take("[")
    yield from _rest(text)


def _rest(text: "_Text") -> Iterator[Any]:
    """The values of a list after its bracket."""
    if text.mark() != "]":
        yield text.value()
    while text.take(",]") == ",":
        yield text.value()


def listed_values(
    read: Callable[[int], bytes], decoder: json.JSONDecoder, key: str
) -> Iterator[Any]:
    """The values of the list under a key of an object. Text after the list is not read.

    Raises:
        LookupError: there is no list under the key. The message names the existing keys.
        ValueError, RecursionError: as `array_values`.
    """
    text = _Text(read, decoder)
    known = []
    for name in _keys(text):
        known.append(name)
        if name == key and text.mark() == "[":
            yield from _values(text)
            return
        text.value()
    raise LookupError(f"there is no list under {key!r}; its keys are {', '.join(map(str, known))}")


def first_list(read: Callable[[int], bytes], decoder: json.JSONDecoder) -> str | None:
    """The first key of an object whose value is a list of objects, by the list's first value.

    Without such a key, the first one whose value is a list; None if there is none.

    Raises:
        ValueError, RecursionError: as `array_values`.
    """
    text = _Text(read, decoder)
    found = None
    for name in _keys(text):
        if text.mark() != "[":
            text.value()
            continue
        text.take("[")
        if text.mark() == "{":
            return name
        found = name if found is None else found
        for _ in _rest(text):
            pass
    return found


def _keys(text: "_Text") -> Iterator[Any]:
    """Each key of an object. After each, the caller must read the key's value."""
    text.take("{")
    if text.mark() == "}":
        return
    while True:
        name = text.value()
        text.take(":")
        yield name
        if text.take(",}") == "}":
            return


class _Text:
    """The text of a file that was read and not parsed yet."""

    def __init__(self, read: Callable[[int], bytes], decoder: json.JSONDecoder) -> None:
        self._read, self._decoder = read, decoder
        self._characters = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._dropped, self._ended = "", 0, 0, False

    def mark(self) -> str:
        """The next character that is not blank; an empty text at the end. Does not consume it."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # pyright: ignore
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def take(self, marks: str) -> str:
        """Consume the next character that is not blank, which must be one of `marks`."""
        mark = self.mark()
        if not mark or mark not in marks:
            raise self.problem(f"expected {' or '.join(marks)}")
        self._at += 1
        return mark

    def value(self) -> Any:
        """Parse and consume the next value."""
        self.mark()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not self._is_cut_off(error):
                    self._at = error.pos
                    raise self.problem(error.msg) from error
            else:
                if self._ended or not self._may_go_on(end):
                    self._at = end
                    return value
            self._read_on()

    def problem(self, what: str) -> ValueError:
        """An error that names the current place."""
        return ValueError(f"{what}, at character {self._dropped + self._at}")

    def _is_cut_off(self, error: json.JSONDecodeError) -> bool:
        unterminated = error.msg.startswith("Unterminated")
        return unterminated or error.pos >= len(self._text) - _LONGEST_WORD

    def _may_go_on(self, end: int) -> bool:
        """Whether the value that ends here may be cut off: 1 may be the beginning of 1.5 or 1e9."""
        return len(self._text) - end < _LONGEST_WORD and self._text[end : end + 1] not in _AFTER

    def _read_on(self) -> None:
        """Read more text. The size at least doubles, so that long values take linear time."""
        rest = self._text[self._at :]
        chunk = self._read(max(_CHUNK_BYTES, len(rest)))
        self._dropped += self._at
        self._ended = not chunk
        self._text, self._at = rest + self._characters.decode(chunk, final=self._ended), 0
