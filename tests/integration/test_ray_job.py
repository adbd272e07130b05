"""Jobs on a cluster with token authentication, by `ray job submit` and by `morel submit`.

No process of the cluster finds an installed copy of the project.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import recorded
from ray_heads import ROOT, Head

from orchestrator.tracking import Event, Journal

COMMIT, DIFF = "0123456789abcdef0123456789abcdef01234567-dirty", "0123456789abcdef"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head()
    try:
        head.start()
        yield head
    finally:
        head.remove()


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def ray_submit(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    sent = json.dumps({"env_vars": {"MOREL_COMMIT": COMMIT, "MOREL_DIFF": DIFF}})
    options = ("--working-dir", ".", "--runtime-env-json", sent)
    return run(environment, "ray", "job", "submit", *options, "--", *command)


def morel_submit(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return run(environment, sys.executable, "-m", "orchestrator", "submit", *command)


def test_the_project_is_not_installed_on_the_cluster(head: Head) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import ray, mlflow; import orchestrator"],
        cwd=head.folder,
        env=head.inside,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "No module named 'orchestrator'" in found.stderr


def test_search_as_a_job_records_the_same(head: Head) -> None:
    storage = head.folder / "runs"
    done = ray_submit(
        head.environment,
        *("python", "-m", "orchestrator", "tune", "smoke"),
        *(f"storage_path={storage}", "name=jobbed", "overrides.model.width=4"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 1/2 paper: all 2 epochs trained" in done.stdout
    parent = recorded.one(storage, "jobbed")
    children = recorded.runs(storage, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 2
    assert {run.data.tags["morel.stop_reason"] for run in children} == {"all 2 epochs trained"}
    assert any(key.startswith("test.robust.pgd") for key in parent.data.metrics)
    assert parent.data.tags["morel.commit"] == COMMIT
    assert parent.data.tags["morel.diff"] == DIFF


def test_relative_storage_is_refused_in_a_job(head: Head) -> None:
    command = ("python", "-m", "orchestrator", "tune", "smoke", "storage_path=runs")
    refused = ray_submit(head.environment, *command)
    assert refused.returncode == 1  # of the submit command: the job failed
    assert "storage_path = 'runs': must be absolute in a Ray job" in refused.stdout


def test_submitting_checks_watches_and_returns_the_exit_code(head: Head) -> None:
    """The data is missing where the job runs, which nobody can see from here."""
    storage, missing = head.folder / "runs", head.folder / "no-data"
    command = ("train", "cifar10_resnet18", f"storage_path={storage}", f"data.root={missing}")
    command += ("scaling.gpus_per_worker=0",)
    done = morel_submit(head.environment, "--", *command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"morel: data.root = '{missing}': No such file" in done.stdout
    said = done.stderr
    assert "cluster: Ray 2." in said
    assert "1 node(s), 2 CPUs, 0 GPUs" in said
    assert "files, 1." in said  # MB uploaded
    assert "1 worker(s) of 1 CPUs and 0 GPUs; 2 CPUs and 0 GPUs are there" in said
    assert "FAILED, exit code 2" in said
    assert "name=cifar10_resnet18-" in said  # a name to resume under


def test_a_stopped_job_is_recorded_as_killed_and_goes_on(head: Head) -> None:
    """Ray sends SIGTERM, and SIGKILL three seconds later."""
    storage = head.folder / "runs"

    def events(kind: str) -> list[Event]:
        return [e for e in Journal(f"{storage}/stopped/journal").events() if e.kind == kind]

    command = ("python", "-m", "orchestrator", "train", "digits", f"storage_path={storage}")
    command += ("name=stopped", "model.width=4", "checkpoint.every_seconds=0")
    command += ("data.holdout=60", "data.train_size=320", "data.test_size=60")
    command += ("attack.num_steps=2", "evaluation.attack.num_steps=3")
    options = ("--working-dir", ".", "--submission-id", "stopped", "--no-wait")
    begun = run(
        head.environment, "ray", "job", "submit", *options, "--", *command, "training.epochs=1000"
    )
    assert begun.returncode == 0, begun.stdout + begun.stderr
    deadline = time.monotonic() + 200
    while len(events("epoch")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    asked = time.time()
    stopped = run(head.environment, "ray", "job", "stop", "stopped")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "was stopped" in stopped.stdout + stopped.stderr
    first, *_ = [end for end in events("final") if end.time > asked]
    print(f"ray job stop: closed {first.time - asked:.1f} s after the command began")
    assert first.payload["status"] == "KILLED"
    assert not [epoch for epoch in events("epoch") if epoch.time > events("final")[-1].time]
    last = events("epoch")[-1].payload["epoch"] + 1
    done = ray_submit(head.environment, *command, f"training.epochs={last}")
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = [epoch.payload["epoch"] for epoch in events("epoch")]
    assert len(numbers) >= last  # the workers trained on until Ray noticed
    assert numbers == list(range(1, len(numbers) + 1))
    assert events("final")[-1].payload["status"] == "FINISHED"


def test_a_missing_or_wrong_token_is_refused(head: Head) -> None:
    without = {k: v for k, v in head.environment.items() if not k.startswith("RAY_AUTH")}
    without |= {"HOME": str(head.folder)}
    refused = ray_submit(without, "python", "-c", "print('ran')")
    assert refused.returncode != 0
    assert "ran" not in refused.stdout
    told = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="
    refused = morel_submit(without, "--", "validate")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"morel: the cluster at {head.address} wants a token: {told}")
    wrong = head.folder / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("f" * 64)
    environment = head.environment | {"RAY_AUTH_TOKEN_PATH": str(wrong)}
    refused = morel_submit(environment, "--", "validate")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"morel: the cluster at {head.address} refuses the token")
    assert len(refused.stderr.splitlines()) == 1


def test_sqlite_is_refused_once_there_are_two_nodes(head: Head) -> None:
    """By who submits and by the driver, before anything is recorded."""
    head.add_node()
    command = ("train", "digits", f"storage_path={head.folder}/two", "name=two", "model.width=4")
    reason = "not SQLite on a cluster of 2 nodes: its file is on one of them and lost with it"
    refused = morel_submit(head.environment, "--", *command)
    assert refused.returncode == 2
    assert reason in refused.stderr
    joining = (*command, f"cluster.address=127.0.0.1:{head.ports['port']}")
    refused = run(head.environment, sys.executable, "-m", "orchestrator", *joining)
    assert refused.returncode == 2
    assert reason in refused.stderr
    kept = head.folder / "two" / "two" / "journal" / "events.jsonl"
    lines = kept.read_text().splitlines() if kept.exists() else []
    assert [line for line in lines if json.loads(line)["kind"] != "lease"] == []
