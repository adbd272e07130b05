"""A job on a cluster, followed until it ends, over lost connections and lost heads."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morel_core.errors import MorelError
from orchestrator.submission import there

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

LOOK_EVERY_S = 5.0
"""Between two looks whether the head still answers, while its log is followed."""
MISSED = 3
"""So many looks in vain, and the head is taken for lost: a closed connection says it at once."""
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
LOST, STOPPED, FAILED = 4, 130, 1
"""Exit codes where the run's own is not known."""
DIED_WITH_ITS_NODE = "JOB_SUPERVISOR_ACTOR_DIED"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is submitted, again if need be."""

    entrypoint: str
    runtime_env: dict[str, Any]
    name: str

    def submit(self, client: JobSubmissionClient) -> str:
        """Submit it under an id of its own; returns that."""
        submission = f"morel-{self.name}-{uuid.uuid4().hex[:8]}"
        return client.submit_job(
            entrypoint=self.entrypoint, runtime_env=self.runtime_env, submission_id=submission
        )


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended."""

    submission: str
    status: str
    """Ray's, or LOST."""
    exit_code: int
    """The run's own; without one 1 (failed), 130 (stopped) or 4 (lost with its cluster)."""
    message: str
    submitted: int
    """Times it was submitted."""


class Unreachable(Exception):
    """The head does not answer, or no longer knows the job."""


class Watcher:
    """Submits a job and follows it until it ends; submits it again after its head was lost.

    Args:
        client: of its cluster.
        job: what it is.
        retries: how often it is submitted again, at most.
        wait_s: how long a head that does not answer is waited for, each time.
        out: gets the job's log, as it comes.
        say: gets what happens, a line each.
    """

    def __init__(
        self,
        client: JobSubmissionClient,
        job: Job,
        *,
        retries: int,
        wait_s: float,
        out: Say,
        say: Say,
    ) -> None:
        self._client = client
        self._job = job
        self._retries = retries
        self._wait_s = wait_s
        self._out = out
        self._say = say
        self.submitted = 0
        self.submission = ""
        """Id of the last submission."""
        self._seen = 0  # characters of its log

    def submit(self) -> str:
        """Submit the job; returns the submission's id."""
        self.submitted += 1
        self.submission = self._job.submit(self._client)
        self._seen = 0
        return self.submission

    def watch(self) -> Ended:
        """Follow what was submitted to its end."""
        while True:
            try:
                asyncio.run(self._follow())
                info = _info(self._client, self.submission)
            except Unreachable as error:
                self._say(f"the head is lost ({error}); waiting for it, {self._wait_s:.0f} s")
                info = _back(self._client, self.submission, self._wait_s)
                if isinstance(info, str):
                    return self._lost(info)
            if info is not None and info.error_type != DIED_WITH_ITS_NODE:
                if info.status.is_terminal():
                    return self._ended(info)
                time.sleep(FIRST_PAUSE_S)  # it runs on: its log is taken up where it broke off
                continue
            if self.submitted > self._retries:
                return self._lost("the job is gone with its head")
            self._submit_again()

    def _submit_again(self) -> None:
        """After a pause; a head that is lost meanwhile costs one more of the retries."""
        time.sleep(min(FIRST_PAUSE_S * 2**self.submitted, LAST_PAUSE_S))
        try:
            self.submit()
        except (RuntimeError, OSError) as error:
            self._say(f"the job was lost, and could not be submitted again: {first_line(error)}")
        else:
            again = f"{self.submitted - 1} of {self._retries} retries"
            self._say(f"the job was lost; submitted again as {self.submission} ({again})")

    async def _follow(self) -> None:
        """Pass on what is new in the log until the job ends.

        Raises:
            Unreachable: the connection broke off, or the head answers no more.
        """
        tasks = [
            asyncio.create_task(self._tail()),
            asyncio.create_task(_silence(self._client.get_address())),
        ]
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
        for task in done:
            error = task.exception()
            if error is not None:
                raise Unreachable(first_line(error)) from error

    async def _tail(self) -> None:
        position = 0  # Ray gives the log from its beginning
        async for text in self._client.tail_job_logs(self.submission):
            fresh = text[max(0, self._seen - position) :]
            position += len(text)
            self._seen = max(self._seen, position)
            if fresh:
                self._out(fresh)

    def _lost(self, message: str) -> Ended:
        return Ended(
            submission=self.submission,
            status="LOST",
            exit_code=LOST,
            message=message,
            submitted=self.submitted,
        )

    def _ended(self, info: JobDetails) -> Ended:
        status, code = str(info.status), info.driver_exit_code
        if code is None:
            code = {"SUCCEEDED": 0, "STOPPED": STOPPED}.get(status, FAILED)
        return Ended(
            submission=self.submission,
            status=status,
            exit_code=code if code >= 0 else 128 - code,  # a signal, as shells say it
            message=(info.message or "").partition("\n")[0],
            submitted=self.submitted,
        )


async def _silence(address: str) -> None:
    """Raise `Unreachable` when the head has not answered for several looks."""
    missed = 0
    while missed < MISSED:
        await asyncio.sleep(LOOK_EVERY_S)
        reason = await asyncio.to_thread(there.answers, address)
        missed = missed + 1 if reason else 0
    raise Unreachable("it answers no more")


def _info(client: JobSubmissionClient, submission: str) -> JobDetails | None:
    """The job's state; None if the head does not know it. Raises `Unreachable`."""
    try:
        return client.get_job_info(submission)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise Unreachable(first_line(error)) from error
    except OSError as error:  # of the connection
        raise Unreachable(first_line(error)) from error


def _back(client: JobSubmissionClient, submission: str, wait_s: float) -> JobDetails | str | None:
    """Wait for the head; the job's state, None if it does not know it, or why it is given up."""
    deadline, pause = time.monotonic() + wait_s, FIRST_PAUSE_S
    while True:
        reason = there.answers(client.get_address())
        if reason is None:
            try:
                client.list_jobs()  # it may answer before it can take jobs
                return _info(client, submission)
            except Exception as error:  # not yet itself again
                reason = first_line(error)
        left = deadline - time.monotonic()
        if left <= 0:
            return f"the head did not come back in {wait_s:.0f} s ({reason})"
        time.sleep(min(pause, left))
        pause = min(2 * pause, LAST_PAUSE_S)


def first_line(error: BaseException) -> str:
    """Of an error's message; its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_retries(retries: int, wait_s: float) -> None:
    """Raise `MorelError` unless both are possible."""
    if retries < 0:
        raise MorelError(f"--retries {retries}: 0 or more")
    if wait_s <= 0:
        raise MorelError(f"--wait {wait_s:g}: seconds, more than 0")
