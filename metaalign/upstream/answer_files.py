"""Answers that were paid for, kept by the key of what was asked, one small file each.

    answers/3f/a91c....json   {"text": "Lima.", "finish_reason": "stop",
                               "prompt_tokens": 31, "completion_tokens": 3, "limit": 64}

A file is there whole or not at all, and the first answer to a request stays. Any number of
processes may keep and find answers at once.
"""

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from metaalign.folders import whole_file

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What disks without hard links answer."""


class Answers:
    """A folder of answers."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, key: str) -> asyncio.Lock:
        """Held by whoever asks for the answer of a key, so that no other of this process does."""
        return self._locks.setdefault(key, asyncio.Lock())

    def find(self, key: str) -> dict[str, Any] | None:
        """What is kept under a key; None where nothing is, or a crash of the machine spoiled it."""
        try:
            found = json.loads(self._file(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, key: str, answer: dict[str, Any], *, replace: bool = False) -> dict[str, Any]:
        """Keep an answer; returns the one that is kept from now on, which may be an earlier one.

        Args:
            replace: Put it in the place of an earlier one.

        Raises:
            OSError: the storage cannot take it.
        """
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as unfinished:
            unfinished.write_text(json.dumps(answer), encoding="utf-8")
            spoiled = file.exists() and self.find(key) is None
            if not replace and not spoiled:
                _put_first(unfinished, file)
        return self.find(key) or answer

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key[2:]}.json"


def _put_first(unfinished: Path, file: Path) -> None:
    """Put a file in its place unless one is there.

    A rename would replace what another process has put there in this moment, and a link does not.
    On a disk without links, `whole_file` renames what is left here if no file is there yet.
    """
    try:
        os.link(unfinished, file)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not file.exists():
            return
    unfinished.unlink()
