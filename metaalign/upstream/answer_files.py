"""A store of answers on disk: one small file per request, named by the request's key.

    answers/3f/a91c....json   {"text": "Lima.", "finish_reason": "stop",
                               "prompt_tokens": 31, "completion_tokens": 3, "limit": 64}

A file is written as a whole or not at all, and the first answer to a request is never overwritten
unless the caller sets `replace`. Any number of processes may read and write at once.
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
"""Error codes of file systems without hard links."""


class Answers:
    """A folder of answers."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, key: str) -> asyncio.Lock:
        """A lock per key: holding it keeps other tasks of this process from sending the same
        request."""
        return self._locks.setdefault(key, asyncio.Lock())

    def find(self, key: str) -> dict[str, Any] | None:
        """The answer stored under a key; None if there is none, or a machine crash damaged it."""
        try:
            found = json.loads(self._file(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, key: str, answer: dict[str, Any], *, replace: bool = False) -> dict[str, Any]:
        """Store an answer, and return the stored one: an earlier answer stays unless `replace`.

        Args:
            replace: Overwrite an earlier answer.

        Raises:
            OSError: the answer cannot be written.
        """
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as unfinished:
            unfinished.write_text(json.dumps(answer), encoding="utf-8")
            damaged = file.exists() and self.find(key) is None
            if not replace and not damaged:
                _link_if_absent(unfinished, file)
        return self.find(key) or answer

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key[2:]}.json"


def _link_if_absent(unfinished: Path, file: Path) -> None:
    """Move a file to its final name unless a file with that name exists.

    A link never overwrites a file that another process has written meanwhile; a rename would. On a
    disk without hard links, this leaves the file for `whole_file` to rename.
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
