"""An S3 API on loopback, served by moto from memory, with a count of requests and a delay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

KEY = "key-of-a-test"


class _Handler(MotoRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Not a line for each request."""


def _refuse(status: str, code: str, start_response: Any) -> list[bytes]:
    start_response(status, [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]


@dataclass
class ObjectStore:
    """See `serve`; a WSGI application around moto's."""

    application: Callable[[dict[str, Any], Any], Iterable[bytes]]
    endpoint: str = ""
    delay_s: float = 0.0
    """How long each request waits first, as if the store was far away."""
    busy: int = 0
    """So many of the next requests are answered with 503."""
    requests: list[str] = field(default_factory=list)
    """``PUT /bucket/key`` of each request."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        time.sleep(self.delay_s)
        if self.busy:
            self.busy -= 1
            return _refuse("503 Slow Down", "SlowDown", start_response)
        # MLflow's server hands out links that are signed in their query.
        signed = environ.get("HTTP_AUTHORIZATION", "") or environ.get("QUERY_STRING", "")
        if KEY not in signed:  # moto lets everybody write
            code = "InvalidAccessKeyId" if "Credential=" in signed else "AccessDenied"
            return _refuse("403 Forbidden", code, start_response)
        return self.application(environ, start_response)

    @property
    def environment(self) -> dict[str, str]:
        """What a user of it sets."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": "secret-of-a-test",
            "AWS_REGION": "us-east-1",
        }

    @property
    def client(self) -> Any:
        """boto3's client: another reader than pyarrow."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys of all objects that begin with ``prefix``, without the marks of folders."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key for key in found if not key.endswith("/")]

    def read(self, bucket: str, key: str) -> bytes:
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()


@contextmanager
def serve() -> Iterator[ObjectStore]:
    """An empty store, for as long as the block lasts."""
    store = ObjectStore(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=_Handler)
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
