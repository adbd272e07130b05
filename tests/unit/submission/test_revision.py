"""Which commit a run is of, in a checkout and in a job that has none."""

import hashlib
import subprocess

import pytest

from orchestrator.provenance.revision import Revision, revision
from orchestrator.tracking import records


@pytest.fixture(autouse=True)
def nothing_sent_along(monkeypatch):
    for name in ("MOREL_COMMIT", "MOREL_DIFF"):
        monkeypatch.delenv(name, raising=False)


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def test_the_checkout_and_how_it_differs_from_its_commit(tmp_path):
    package = tmp_path / "orchestrator"
    package.mkdir()
    assert revision(package) == Revision(commit="unknown", diff="")

    (package / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "--quiet")
    assert revision(package).commit == "unknown"  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD").decode().strip()
    assert revision(package) == Revision(commit=head, diff="")
    assert revision(package).tags() == {"morel.commit": head}

    (tmp_path / "new.py").write_text("")  # git diff does not show it
    assert revision(package) == Revision(commit=f"{head}-dirty", diff="")
    seen = set()
    for text in ("a = 2\n", "a = 3\n"):
        (package / "a.py").write_text(text)
        found = revision(package)
        assert found.commit == f"{head}-dirty"
        assert found.diff == hashlib.sha256(git(tmp_path, "diff", "HEAD")).hexdigest()[:16]
        seen.add(found.diff)
    assert len(seen) == 2


def test_a_job_says_what_it_was_sent_from(monkeypatch, tmp_path):
    sent = Revision(commit="abc123-dirty", diff="0123456789abcdef")
    for name, value in sent.environment().items():
        monkeypatch.setenv(name, value)
    assert revision(tmp_path) == sent
    tags = records.environment_tags.__wrapped__()
    assert tags["morel.commit"] == "abc123-dirty"
    assert tags["morel.diff"] == "0123456789abcdef"


def test_the_hash_of_no_difference_is_none(monkeypatch):
    """As `git diff HEAD | sha256sum | cut -c1-16` sends it with Ray's own command."""
    monkeypatch.setenv("MOREL_COMMIT", "abc123")
    monkeypatch.setenv("MOREL_DIFF", hashlib.sha256(b"").hexdigest()[:16])
    assert revision().tags() == {"morel.commit": "abc123"}


def test_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision() == Revision(commit="unknown", diff="")
