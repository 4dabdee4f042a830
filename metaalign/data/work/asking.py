"""The pass that asks: what teachers answer about every example that needs it, kept on the disk.

One process asks, by an actor of Ray Data: an event loop has hundreds of requests under way at once,
and rates and costs are kept exactly. The passes after it look the answers up.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.data

from metaalign.config import PrepareConfig, resolve
from metaalign.data.work.enriching import made_of
from metaalign.data.work.ledger import FOLDER
from metaalign.data.work.limits import max_bad_ratio
from metaalign.data.work.near_duplicates import NearHeldOut
from metaalign.data.work.overview import spending
from metaalign.data.work.parts import Part
from metaalign.data.work.passes import raw_examples
from metaalign.data.work.tasks import CONSOLE, data_context
from metaalign.errors import MetaAlignError, RowError, UpstreamError
from metaalign.examples import Example
from metaalign.upstream import (
    AnswerError,
    Answers,
    Client,
    Kept,
    Reply,
    Request,
    Served,
    key_in_environment,
    look_up,
)

ANSWERS = "answers"
"""Folder of the kept answers, under the storage."""

_TOLD_EVERY_S = 15.0
_ENOUGH = 200
"""Examples of a source after which too many failures end the pass."""

_UNDER_WAY = 2
"""Examples under way for every request that may be."""


def look_up_teachers(config: PrepareConfig) -> dict[str, Served]:
    """What the servers of the teachers that are asked say of them.

    Raises:
        UpstreamError: one cannot be reached, refuses the key, or cannot do what is asked of it.
    """
    names = sorted({ask.teacher for ask in config.asks()})
    remembered = resolve(config.storage, ANSWERS) / "served"
    served = {name: look_up(name, config.teachers[name], remembered) for name in names}
    asked = [each.negatives for each in (*config.sources, config.recipes) if each is not None]
    for negatives in asked:
        if negatives is None or negatives.way != "hidden_tails":
            continue
        teacher = served[negatives.teacher]
        if not teacher.continues:
            raise UpstreamError(
                f"teachers.{negatives.teacher}: negatives of the way hidden_tails need a server "
                "that knows continue_final_message, as metaalign's, vLLM's and SGLang's do; this "
                f"one calls itself {teacher.owner or 'nothing'!r}. Set way=hidden"
            )
    return served


def kept_answers(config: PrepareConfig, served: Mapping[str, Served], folder: Path) -> Kept:
    """Where the answers of a job are.

    Args:
        folder: That the store is built in.
    """
    return Kept(
        teachers={name: config.teachers[name] for name in served},
        served=served,
        answers=resolve(config.storage, ANSWERS),
        failed=folder / FOLDER / "failed",
    )


def ask_teachers(
    config: PrepareConfig, parts: Sequence[Part], kept: Kept, near: NearHeldOut | None
) -> dict[str, dict[str, Any]]:
    """Ask for everything that is not kept yet.

    Returns:
        What was asked of each teacher, and its cost.

    Raises:
        UpstreamError: a teacher cannot be asked any more; its answers so far are kept.
    """
    taught = [part for part in parts if part.options.is_taught]
    allowed = {part.number: max_bad_ratio(config, part.number) for part in taught}
    CONSOLE.print(f"asking {', '.join(kept.served)} about {len(taught)} parts")
    keys = {name: key_in_environment(each) for name, each in kept.teachers.items()}
    given = {"work": ray.put((taught, kept, keys, near, allowed))}
    # It has one output, at its end, and that may be hours away.
    with data_context(execution_no_progress_timeout_s=-1):
        asked = ray.data.from_items([0]).map_batches(
            _Asker,
            fn_constructor_kwargs=given,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0,  # it waits, and nothing else
            ray_remote_args_fn=_no_restart,
        )
        (told,) = (json.loads(row["told"]) for row in asked.take_all())
    for name, spent in told["spent"].items():
        CONSOLE.print(f"{name}: {spending(spent)}")
    if told["stopped"]:
        raise UpstreamError(told["stopped"])
    return told["spent"]


def _no_restart() -> dict[str, Any]:
    """One that started over would know nothing of what it spent; the job is started again."""
    return {"max_restarts": 0}


class _Asker:
    """Asks about the examples of all parts, in one process."""

    def __init__(self, work: ray.ObjectRef) -> None:
        self._parts, kept, keys, self._near, self._allowed = ray.get(work)
        answers, failed = Answers(kept.answers), Answers(kept.failed)
        self._clients = {
            name: Client(
                name, each, kept.served[name], key=keys[name], answers=answers, failed=failed
            )
            for name, each in kept.teachers.items()
        }
        self._most = _UNDER_WAY * sum(each.concurrency for each in kept.teachers.values())
        self._stopped = self._reason = ""
        self._unread: MetaAlignError | OSError | None = None
        self._done: Counter[int | None] = Counter()
        self._failed: Counter[int | None] = Counter()

    def __call__(self, _: Any) -> dict[str, list[str]]:
        asyncio.run(self._ask_all())
        spent = {name: asdict(client.spending) for name, client in self._clients.items()}
        # A teacher's refusal is told, not raised, so that what was spent is told with it.
        return {"told": [json.dumps({"stopped": self._stopped, "spent": spent})]}

    async def _ask_all(self) -> None:
        room = asyncio.Semaphore(self._most)
        async with AsyncExitStack() as stack:
            for client in self._clients.values():
                await stack.enter_async_context(client.opened())
            teller = asyncio.create_task(self._tell())
            try:
                await self._ask_about_all(room)
            except ExceptionGroup as errors:  # an error of ours
                raise errors.exceptions[0] from errors
            finally:
                teller.cancel()

    async def _ask_about_all(self, room: asyncio.Semaphore) -> None:
        async with asyncio.TaskGroup() as group:
            for part, example in self._examples():
                await room.acquire()
                if self._stopped:
                    break
                group.create_task(self._ask_about(part, example, room))
        if self._unread is not None:
            raise self._unread

    def _examples(self) -> Iterator[tuple[Part, Example]]:
        """All of them, up to what cannot be read; what is under way then still comes in."""
        try:
            for part in self._parts:
                for example in raw_examples(part, self._near and self._near.keeps):
                    yield part, example
        except (MetaAlignError, OSError) as error:
            self._unread = error

    async def _ask_about(self, part: Part, example: Example, room: asyncio.Semaphore) -> None:
        number = part.number
        try:
            await made_of(example, part.options, self._ask)
        except AnswerError as error:
            self._failed[number] += 1
            self._reason = str(error)
        except RowError:
            pass  # Told by the passes that write.
        except (MetaAlignError, OSError) as error:
            self._stopped = self._stopped or str(error)
        finally:
            room.release()
        self._done[number] += 1
        if self._failed[number] > self._allowed[number] * max(self._done[number], _ENOUGH):
            self._stopped = self._stopped or self._too_many(part)

    async def _ask(self, teacher: str, request: Request) -> Reply:
        if self._stopped:
            raise UpstreamError(self._stopped)
        return await self._clients[teacher].answer(request)

    def _too_many(self, part: Part) -> str:
        failed, done = self._failed[part.number], self._done[part.number]
        allowed = self._allowed[part.number]
        return (
            f"{part.source}: teachers gave no answer for {failed} of the first {done} examples, "
            f"more than max_bad_ratio {allowed} allows; what was answered is kept. The last "
            f"reason: {self._reason}"
        )

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_TOLD_EVERY_S)
            for name, client in self._clients.items():
                print(f"{name}: {spending(asdict(client.spending))}", flush=True)
