"""Reads stored answers by request, without sending anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metaalign.config.teacher import TeacherConfig
from metaalign.upstream.answer_files import Answers
from metaalign.upstream.client import AnswerError
from metaalign.upstream.requests import Reply, Request, find_reply, key_of
from metaalign.upstream.served import Served


@dataclass(frozen=True)
class Kept:
    """The stored answers of several teachers.

    Attributes:
        answers: Folder of the answers.
        failed: Folder of the failed requests, each with its reason.
    """

    teachers: Mapping[str, TeacherConfig]
    served: Mapping[str, Served]
    answers: Path
    failed: Path

    async def answer(self, teacher: str, request: Request) -> Reply:
        """The stored answer of a teacher; no request is sent.

        Raises:
            AnswerError: no answer is stored.
        """
        served = self.served[teacher]
        key = key_of(request, self.teachers[teacher], served)
        kept = find_reply(Answers(self.answers), key)
        if kept is not None:
            return kept
        noted = Answers(self.failed).find(key.of_failure)
        raise AnswerError(noted["reason"] if noted else f"teachers.{teacher} was not asked")
