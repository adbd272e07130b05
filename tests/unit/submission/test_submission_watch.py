"""What happens to a submitted job, and what `morel submit` makes of it."""

import asyncio
import signal
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from morel_core import MorelError
from orchestrator.submission import there, watch
from orchestrator.submission.watch import Job, Watcher, check_retries

GONE = RuntimeError("Request failed with status code 404: Job x does not exist.")


def state(status, code=None, message=None, error_type=None):
    return SimpleNamespace(
        status=JobStatus(status), driver_exit_code=code, message=message, error_type=error_type
    )


class Cluster:
    """A head that plays a script: each submission is a list of (log or error, state or error)."""

    def __init__(self, *submissions):
        self.submissions = [list(moments) for moments in submissions]
        self.ids = []

    def get_address(self):
        return "http://head:8265"

    def list_jobs(self):
        return []

    def submit_job(self, *, entrypoint, runtime_env, submission_id):
        assert (entrypoint, runtime_env) == ("python -m orchestrator tune demo", {"a": "b"})
        self.ids.append(submission_id)
        self.moments = self.submissions.pop(0)
        return submission_id

    async def tail_job_logs(self, submission):
        assert submission == self.ids[-1]
        log, _ = self.moments[0]
        for part in log if isinstance(log, list) else [log]:
            if isinstance(part, BaseException):
                raise part
            yield part

    def get_job_info(self, submission):
        _, found = self.moments.pop(0) if len(self.moments) > 1 else self.moments[0]
        if isinstance(found, BaseException):
            raise found
        return found


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    monkeypatch.setattr(there, "answers", lambda address: None)
    monkeypatch.setattr(watch, "FIRST_PAUSE_S", 0.0)


def play(cluster, retries=1, wait_s=1.0):
    log, said = [], []
    job = Job(entrypoint="python -m orchestrator tune demo", runtime_env={"a": "b"}, name="demo")
    watcher = Watcher(cluster, job, retries=retries, wait_s=wait_s, out=log.append, say=said.append)
    watcher.submit()
    ended = watcher.watch()
    return ended, "".join(log), said


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (state("SUCCEEDED", 0), 0),
        (state("FAILED", 3), 3),
        (state("FAILED", 137), 137),  # as the shell tells a signal
        (state("FAILED", -9), 137),
        (state("STOPPED"), 130),
        (state("FAILED", None, "the environment\nlog", "RUNTIME_ENV_SETUP_FAILURE"), 1),
    ],
)
def test_the_exit_code_is_the_runs_own(end, expected):
    ended, log, said = play(Cluster([(["epoch 1\n", "epoch 2\n"], end)]))
    assert ended.exit_code == expected
    assert ended.status == str(end.status)
    assert ended.message in ("", "the environment")
    assert log == "epoch 1\nepoch 2\n"
    assert (said, ended.submitted) == ([], 1)
    assert ended.submission.startswith("morel-demo-")


def test_a_log_that_breaks_off_is_taken_up_where_it_was():
    broken = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    whole = ["epoch 1\n", "epoch 2\n", "epoch 3\n"]
    first = (["epoch 1\n", "epo", broken], state("RUNNING"))
    ended, log, said = play(Cluster([first, (whole, state("SUCCEEDED", 0))]))
    assert log == "".join(whole)
    assert (ended.exit_code, ended.submitted) == (0, 1)
    assert said == [f"the head is lost ({broken}); waiting for it, 1 s"]


def test_a_job_unknown_to_the_head_that_came_back_is_submitted_again():
    cluster = Cluster(
        [(["epoch 1\n", ConnectionError("reset")], GONE)], [("all over\n", state("SUCCEEDED", 0))]
    )
    ended, log, said = play(cluster)
    assert (ended.exit_code, ended.submitted) == (0, 2)
    assert len(set(cluster.ids)) == 2
    assert ended.submission == cluster.ids[1]
    assert log == "epoch 1\nall over\n"
    assert said[1] == f"the job was lost; submitted again as {cluster.ids[1]} (1 of 1 retries)"


def test_a_job_whose_process_died_with_its_node_is_submitted_again():
    died = state("FAILED", None, "died", "JOB_SUPERVISOR_ACTOR_DIED")
    ended, _, _ = play(Cluster([("", died)], [("", state("SUCCEEDED", 0))]))
    assert (ended.exit_code, ended.submitted) == (0, 2)


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_end(retries):
    lost = [([ConnectionError("reset")], GONE)]
    ended, _, _ = play(Cluster(*[list(lost) for _ in range(retries + 1)]), retries=retries)
    assert (ended.status, ended.exit_code) == ("LOST", 4)
    assert ended.submitted == retries + 1
    assert ended.message == "the job is gone with its head"


def test_a_submission_that_fails_again_costs_a_retry():
    class Failing(Cluster):
        def submit_job(self, **job):
            if len(self.ids) == 1:
                self.ids.append("refused")
                raise RuntimeError("Request failed with status code 500")
            return super().submit_job(**job)

        async def tail_job_logs(self, submission):
            if self.ids[-1] == "refused":
                raise RuntimeError("closed")
            async for text in super().tail_job_logs(submission):
                yield text

    lost = [([ConnectionError("reset")], GONE)]
    ended, _, said = play(Failing(lost, [("", state("SUCCEEDED", 0))]), retries=2)
    assert (ended.exit_code, ended.submitted) == (0, 3)
    assert "could not be submitted again: Request failed with status code 500" in said[1]


def test_a_head_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr(there, "answers", lambda address: "refused")
    monkeypatch.setattr(watch, "FIRST_PAUSE_S", 0.05)
    ended, _, _ = play(Cluster([([ConnectionError("reset")], GONE)]), wait_s=0.2)
    assert (ended.status, ended.exit_code, ended.submitted) == ("LOST", 4, 1)
    assert ended.message == "the head did not come back in 0 s (refused)"


def test_a_head_that_falls_silent_is_noticed(monkeypatch):
    """Without a word on the connection, as when its machine loses power."""

    class Silent(Cluster):
        async def tail_job_logs(self, submission):
            if len(self.ids) == 1:
                await asyncio.sleep(60)
            yield "all over\n"

    looks = iter(["timed out"] * 3)
    monkeypatch.setattr(there, "answers", lambda address: next(looks, None))
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.01)
    ended, log, _ = play(Silent([("", GONE)], [("", state("SUCCEEDED", 0))]))
    assert (ended.exit_code, ended.submitted, log) == (0, 2, "all over\n")


def test_watching_is_interrupted_the_job_is_not():
    """By Python's own handler; Ray Train leaves another behind in a process that it trained in."""

    class Interrupting(Cluster):
        async def tail_job_logs(self, submission):
            yield "epoch 1\n"
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)

    cluster = Interrupting([("", state("RUNNING"))])
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            play(cluster)
    finally:
        signal.signal(signal.SIGINT, found)
    assert len(cluster.ids) == 1


def test_impossible_options():
    check_retries(0, 1.0)
    with pytest.raises(MorelError, match=r"^--retries -1: 0 or more"):
        check_retries(-1, 1.0)
    with pytest.raises(MorelError, match=r"^--wait 0: seconds, more than 0"):
        check_retries(0, 0)
