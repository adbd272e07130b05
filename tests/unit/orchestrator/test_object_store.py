"""Storage on an S3 API: the same files, journal and requests as in a folder, and clear mistakes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from object_store import ObjectStore, serve

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.config import compose
from orchestrator.driver import control, lease
from orchestrator.driver.lease import LeaseHeldError, LeaseLostError, held
from orchestrator.provenance.identity import check_identity
from orchestrator.tracking import Journal

BUCKET = "s3://runs"


@pytest.fixture(scope="module")
def served() -> Iterator[ObjectStore]:
    with serve() as store:
        store.client.create_bucket(Bucket="runs")
        yield store


@pytest.fixture
def s3(served: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The store, and the environment that names it."""
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    storage.forget_stores()
    served.requests.clear()
    yield served
    served.delay_s = served.busy = 0
    storage.forget_stores()


def test_files_of_a_folder(s3: ObjectStore) -> None:
    folder = f"{BUCKET}/files"
    assert storage.names(folder) == []
    assert storage.read_text(f"{folder}/a.json") is None
    storage.write(f"{folder}/a.json", b"first")
    storage.write(f"{folder}/a.json", b"second")
    storage.write(f"{folder}/deep/er/b.json", b"b")
    assert storage.read_text(f"{folder}/a.json") == "second"
    assert s3.read("runs", "files/a.json") == b"second"
    assert storage.names(folder) == ["a.json", "deep"]
    copied = storage.local_copy(folder)
    assert (copied / "deep" / "er" / "b.json").read_text() == "b"
    storage.delete(f"{folder}/a.json")
    storage.delete(f"{folder}/a.json")
    assert storage.names(folder) == ["deep"]
    storage.remove(f"{folder}/deep")
    storage.remove(f"{folder}/deep")
    assert s3.keys("runs", "files/") == []


def test_a_small_file_is_one_request(s3: ObjectStore) -> None:
    storage.write(f"{BUCKET}/one/file.json", b"content")
    assert s3.requests == ["PUT /runs/one/file.json"]


def test_the_check_writes_and_leaves_nothing(s3: ObjectStore) -> None:
    storage.check_writable(f"{BUCKET}/checked")
    assert any(request.startswith("PUT /runs/checked/.writable-") for request in s3.requests)
    assert s3.keys("runs", "checked/") == []


def test_requests_to_a_driver(s3: ObjectStore) -> None:
    folder = f"{BUCKET}/search"
    assert control.requests(folder) == []
    control.ask_stop(folder, 3)
    control.ask_pause(folder)
    assert control.stops_asked(control.requests(folder)) == {3}
    assert control.pause_asked(control.requests(folder))
    control.forget_pause(folder)
    assert not control.pause_asked(control.requests(folder))


def test_a_name_stands_for_one_run(s3: ObjectStore) -> None:
    folder = f"{BUCKET}/named"
    check_identity(folder, {"seed": 0}, may_change=set())
    check_identity(folder, {"seed": 0}, may_change=set())
    with pytest.raises(MorelError, match=r"s3://runs/named holds another run, which differs in se"):
        check_identity(folder, {"seed": 1}, may_change=set())


def test_the_journal_comes_back_after_a_kill(s3: ObjectStore) -> None:
    root = f"{BUCKET}/journal"
    first = Journal(root)
    for number in range(12):
        first.append("run", "epoch", f"epoch:{number}", {"epoch": number, "metrics": {}})
    second = Journal(root)  # as the next driver opens it: the first never closed it
    assert second.append("run", "epoch", "epoch:11", {"epoch": 11, "metrics": {}}) is None
    second.append("run", "epoch", "epoch:12", {"epoch": 12, "metrics": {}})
    events = list(Journal(root).events())
    assert [event.seq for event in events] == list(range(13))
    assert [event.payload["epoch"] for event in events] == list(range(13))


def test_a_store_that_is_busy_is_waited_for(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.01, 0.02))
    journal = Journal(f"{BUCKET}/busy")
    journal.append("run", "start", "start", {})
    s3.busy = 4  # the store's client tries three times by itself
    journal.append("run", "epoch", "epoch:1", {"epoch": 1, "metrics": {}})
    assert s3.busy == 0
    s3.busy = 4
    storage.write(f"{BUCKET}/busy/file", b"content")
    s3.busy = 4
    assert storage.read_text(f"{BUCKET}/busy/file") == "content"
    assert [event.key for event in Journal(f"{BUCKET}/busy").events()] == ["start", "epoch:1"]


@pytest.mark.parametrize(
    ("where", "environment", "message"),
    [
        (
            "s3://missing/runs",
            {},
            r"storage_path = 's3://missing/runs': cannot be written \(NO_SUCH_BUCKET: .*make this "
            "bucket first",
        ),
        (
            "s3://runs/x",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            "NETWORK_CONNECTION: .*AWS_ENDPOINT_URL must be .* S3 API; it is http://127.0.0.1:1$",
        ),
        (
            "s3://runs/x",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            r"\(ACCESS_DENIED.*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role",
        ),
        (
            "s3://runs/x",
            {"AWS_ACCESS_KEY_ID": "another"},
            r"\(INVALID_ACCESS_KEY_ID.*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the ",
        ),
        ("ftp://runs/x", {}, r"Unrecognized filesystem type.*write s3://bucket/folder, gs://"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    s3: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    with pytest.raises(MorelError, match=message) as caught:
        storage.check_writable(where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://runs/x?endpoint_override=localhost:9000",
        "s3://",
        "s3://runs//x",
        "s3://runs/x y",
    ],
)
def test_a_uri_is_a_bucket_and_a_folder(uri: str) -> None:
    with pytest.raises(MorelError, match=r"storage_path.*scheme://bucket/folder"):
        compose("digits", [f"storage_path={uri}"])
    assert compose("digits", ["storage_path=s3://runs/x/"]).storage_path == "s3://runs/x"


# --- the lease ------------------------------------------------------------------------------------

SECONDS = 2.0


@pytest.fixture
def settles(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long a driver waits before it believes that a lease is its own."""
    monkeypatch.setattr(storage, "SETTLE_S", 1.5)
    return 1.5


def test_one_driver_at_a_time(
    s3: ObjectStore, settles: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"{BUCKET}/lease"
    with held(folder, SECONDS):
        with pytest.raises(LeaseHeldError, match="held by another driver"), held(folder, SECONDS):
            pass
        monkeypatch.setattr(lease, "_machine", lambda: "elsewhere")  # only its heartbeat is seen
        with pytest.raises(LeaseHeldError, match="held by another driver"), held(folder, SECONDS):
            pass
    with held(folder, SECONDS) as fence:
        assert fence.number == 2


def test_a_lease_runs_out_and_fences(
    s3: ObjectStore, settles: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"{BUCKET}/silent"
    keeper = lease._Keeper(folder, SECONDS)
    keeper.take()  # and no heartbeat: suspended
    monkeypatch.setattr(lease, "_machine", lambda: "elsewhere")
    began = time.monotonic()
    with held(folder, SECONDS) as fence:
        assert fence.number == 2
        assert time.monotonic() - began >= SECONDS
        with storage.guarded(folder, keeper), pytest.raises(LeaseLostError, match="has taken over"):
            storage.write(f"{folder}/status.json", b"{}")
    assert storage.read_text(f"{folder}/status.json") is None


def test_of_many_that_create_a_file_at_most_one_has_it(s3: ObjectStore, settles: float) -> None:
    """On a busy machine none of them may have been fast enough."""
    contents = [b"a", b"b", b"c", b"d"]
    winners: list[bytes] = []
    with ThreadPoolExecutor(len(contents)) as pool:
        for number in range(3):
            path = f"{BUCKET}/created/{number}"
            got = list(pool.map(lambda content, path=path: storage.create(path, content), contents))
            have = [content for content, has in zip(contents, got, strict=True) if has]
            assert len(have) <= 1
            assert [storage.read(path)] * len(have) == have
            winners += have
    assert winners


def test_who_was_slow_waits_for_its_own_lease(
    s3: ObjectStore, settles: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may have had it before, and has not noticed yet."""
    create = storage.create

    def slow(path: str, content: bytes) -> bool:
        monkeypatch.setattr(storage, "create", create)
        storage.write(path, content, guard=False)
        return False

    monkeypatch.setattr(storage, "create", slow)
    began = time.monotonic()
    with held(f"{BUCKET}/own", SECONDS) as fence:
        assert fence.number == 2
        assert time.monotonic() - began >= SECONDS


def test_who_was_slow_to_create_a_file_gives_up(s3: ObjectStore, settles: float) -> None:
    """Its write may have hit the file of one that had read back already, which finds that out."""
    folder = f"{BUCKET}/slow"
    with held(folder, 60) as fence:
        path = f"{folder}/lease/{fence.number:06d}.json"
        own = storage.read_text(path)
        storage.delete(path)
        s3.delay_s = 1.0  # each of two requests
        assert not storage.create(path, b"{}")
        s3.delay_s = 0
        assert storage.read_text(path) == "{}"
        assert own is not None
        storage.write(path, own.replace(fence.nonce, "another's").encode(), guard=False)
        with pytest.raises(LeaseLostError):
            fence.check()
