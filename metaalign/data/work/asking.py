"""The pass that sends requests to teachers for all examples that need them, and stores the answers.

One process, an actor of Ray Data, sends all requests. Its event loop has hundreds of them in flight
and keeps exact rates and costs. The later passes look the answers up.
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
from metaalign.data.work.enriching import enrich
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
"""Folder of the stored answers, under the storage."""

_PROGRESS_EVERY_S = 15.0
_ENOUGH = 200
"""Minimum number of examples of a source before its failures can end the pass."""

_EXAMPLES_PER_REQUEST = 2
"""Examples in progress for each request that may be in flight."""


def look_up_teachers(config: PrepareConfig) -> dict[str, Served]:
    """Query the server of each teacher that a source uses for its model and abilities.

    Raises:
        UpstreamError: a server cannot be reached, refuses the key, or lacks a needed ability.
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
                "that supports continue_final_message, as metaalign, vLLM and SGLang do; this "
                f"server names its owner {teacher.owner or 'nothing'!r}. Set way=hidden"
            )
    return served


def kept_answers(config: PrepareConfig, served: Mapping[str, Served], folder: Path) -> Kept:
    """The folders in which a job finds its teachers' answers and failures.

    Args:
        folder: The folder that the store is built in.
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
    """Send every request whose answer is not stored yet.

    Returns:
        Requests, failures and cost of each teacher.

    Raises:
        UpstreamError: a teacher refuses further requests. Its answers so far are stored.
    """
    taught = [part for part in parts if part.options.is_taught]
    allowed = {part.number: max_bad_ratio(config, part.number) for part in taught}
    CONSOLE.print(f"asking {', '.join(kept.served)} about {len(taught)} parts")
    keys = {name: key_in_environment(each) for name, each in kept.teachers.items()}
    given = {"work": ray.put((taught, kept, keys, near, allowed))}
    # The actor gives one output, at its end, which may be hours away.
    with data_context(execution_no_progress_timeout_s=-1):
        asked = ray.data.from_items([0]).map_batches(
            _Asker,
            fn_constructor_kwargs=given,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0,  # it mostly waits for the network
            ray_remote_args_fn=_no_restart,
        )
        (result,) = (json.loads(row["result"]) for row in asked.take_all())
    for name, spent in result["spent"].items():
        CONSOLE.print(f"{name}: {spending(spent)}")
    if result["stopped"]:
        raise UpstreamError(result["stopped"])
    return result["spent"]


def _no_restart() -> dict[str, Any]:
    """A restarted actor would lose its count of requests and costs, so the job fails instead."""
    return {"max_restarts": 0}


class _Asker:
    """Sends the requests for the examples of all parts, in one process."""

    def __init__(self, work: ray.ObjectRef) -> None:
        self._parts, kept, keys, self._near, self._allowed = ray.get(work)
        answers, failed = Answers(kept.answers), Answers(kept.failed)
        self._clients = {
            name: Client(
                name, each, kept.served[name], key=keys[name], answers=answers, failed=failed
            )
            for name, each in kept.teachers.items()
        }
        self._most = _EXAMPLES_PER_REQUEST * sum(
            each.concurrency for each in kept.teachers.values()
        )
        self._stopped = self._reason = ""
        self._unread: MetaAlignError | OSError | None = None
        self._done: Counter[int | None] = Counter()
        self._failed: Counter[int | None] = Counter()

    def __call__(self, _: Any) -> dict[str, list[str]]:
        asyncio.run(self._ask_all())
        spent = {name: asdict(client.spending) for name, client in self._clients.items()}
        # A refusal is returned, not raised, so that the cost is returned with it.
        return {"result": [json.dumps({"stopped": self._stopped, "spent": spent})]}

    async def _ask_all(self) -> None:
        room = asyncio.Semaphore(self._most)
        async with AsyncExitStack() as stack:
            for client in self._clients.values():
                await stack.enter_async_context(client.opened())
            progress = asyncio.create_task(self._print_progress())
            try:
                await self._ask_about_all(room)
            except ExceptionGroup as errors:  # a bug in our own code
                raise errors.exceptions[0] from errors
            finally:
                progress.cancel()

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
        """All examples up to the first read error. Requests in flight then still finish."""
        try:
            for part in self._parts:
                for example in raw_examples(part, self._near and self._near.keeps):
                    yield part, example
        except (MetaAlignError, OSError) as error:
            self._unread = error

    async def _ask_about(self, part: Part, example: Example, room: asyncio.Semaphore) -> None:
        number = part.number
        try:
            await enrich(example, part.options, self._ask)
        except AnswerError as error:
            self._failed[number] += 1
            self._reason = str(error)
        except RowError:
            pass  # The later passes count and report it.
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
            f"more than max_bad_ratio {allowed} allows; the answers so far are kept. The last "
            f"reason: {self._reason}"
        )

    async def _print_progress(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_EVERY_S)
            for name, client in self._clients.items():
                print(f"{name}: {spending(asdict(client.spending))}", flush=True)
