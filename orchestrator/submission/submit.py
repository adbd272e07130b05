"""``morel submit``: check, upload, watch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.provenance.revision import revision
from orchestrator.submission import there
from orchestrator.submission.asked import Asked, read_command
from orchestrator.submission.upload import Upload, upload_of
from orchestrator.submission.watch import Ended, Job, Watcher, check_retries

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``morel submit`` was asked for."""

    argv: Sequence[str]
    """The command that is to run."""
    address: str | None
    """Of the cluster's dashboard; None: as the environment says."""
    working_dir: str
    retries: int
    wait_s: float
    watch: bool
    """Follow the job to its end."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job, and how it ended if it was watched."""

    address: str
    submission: str
    name: str | None
    """Of the run."""
    ended: Ended | None

    @property
    def exit_code(self) -> int:
        """That of ``morel submit``."""
        return self.ended.exit_code if self.ended else 0


def submit(request: Request, *, out: Say, say: Say) -> Submitted:
    """Run a command as a job on a cluster.

    Args:
        request: what, where and how.
        out: gets the job's log, as it comes.
        say: gets what happens beside it, a line each.

    Raises:
        MorelError: the command, the upload, the cluster or its resources do not do; nothing was
            submitted.
        KeyboardInterrupt: watching was interrupted; it says how to go on.
    """
    check_retries(request.retries, request.wait_s)
    folder = Path(request.working_dir).expanduser().absolute()
    upload = upload_of(folder)
    upload.check()
    asked = read_command(request.argv, folder, upload.files)
    address = there.api_address(request.address)
    client = there.connect(address)
    for line in _checks(client, asked, upload):
        say(line)
    job = Job(
        entrypoint=shlex.join(["python", "-m", "orchestrator", *asked.argv]),
        runtime_env={
            "working_dir": str(folder),
            "env_vars": {**revision(folder).environment(), "PYTHONUNBUFFERED": "1"},
        },
        name=asked.name or asked.argv[0],
    )
    watcher = Watcher(client, job, retries=request.retries, wait_s=request.wait_s, out=out, say=say)
    say(f"submitted as {watcher.submit()}: morel {shlex.join(asked.argv)}")
    ended: Ended | None = None
    if request.watch:
        try:
            ended = watcher.watch()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(address, watcher.submission)) from None
        if ended.exit_code:
            say(f"{ended.submission}: {ended.status}, exit code {ended.exit_code}: {ended.message}")
    else:
        say(_how_to_go_on(address, watcher.submission))
    return Submitted(address=address, submission=watcher.submission, name=asked.name, ended=ended)


def _checks(client: JobSubmissionClient, asked: Asked, upload: Upload) -> list[str]:
    """Look at the cluster; what was found, for people. Raises `MorelError` if it does not do."""
    seen = there.look(client, there.needed_packages(upload.folder))
    differences = there.check_versions(seen, upload.folder)
    plan = asked.check(seen.nodes, seen.cpus, seen.gpus, seen.environment)
    grows = f"{seen.nodes} node(s), {seen.cpus:g} CPUs, {seen.gpus:g} GPUs, grown as far as it can"
    return [f"cluster: Ray {seen.ray}, {grows}", f"upload: {upload}", *differences, *plan]


def _how_to_go_on(address: str, submission: str) -> str:
    return (
        f"the job goes on; watch it with ray job logs --follow --address {address} {submission}, "
        f"end it with ray job stop --address {address} {submission}"
    )
