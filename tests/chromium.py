"""A real headless Chromium through its DevTools protocol, with nothing beside aiohttp."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
BINARY = next((path for name in NAMES if (path := shutil.which(name))), None)
ANSWER_S = 30.0


class Page:
    """One tab; every call waits for its answer."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop):
        self._socket, self._loop = socket, loop
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        return self._run(self._call(method, params))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str) -> dict[str, Any]:
        """The next event of that name."""
        while True:
            for index, event in enumerate(self.events):
                if event.get("method") == method:
                    return self.events.pop(index)
            self.events.append(self._run(self._socket.receive_json()))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, ANSWER_S))

    def js(self, expression: str) -> Any:
        """The value of an expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def settle(self) -> None:
        """Wait until what was scrolled or changed is drawn."""
        frames = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        self.call("Runtime.evaluate", expression=frames, awaitPromise=True)

    def open(self, path: Path) -> None:
        """Load a file, to the end."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.wait("Page.loadEventFired")

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def key(self, name: str) -> None:
        """Press a key, such as ``Tab`` or ``ArrowRight``."""
        codes = {"Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, "Escape": 27}
        key = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **key)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and uncaught exceptions."""
        self.js("0")  # what was said until now has arrived
        found: list[str] = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(json.dumps(params["args"]))
            if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """What was asked for beside the page itself and data URIs."""
        asked = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")][1:]

    def screenshot(self, path: Path, *, selector: str = "", whole: bool = False) -> None:
        """A PNG of the window, of an element, or of the whole page."""
        clip: dict[str, Any] = {}
        if selector or whole:
            element = f"document.querySelector({json.dumps(selector or 'html')})"
            box = self.js(
                f"(() => {{const r = {element}.getBoundingClientRect();"
                "return [r.left + scrollX, r.top + scrollY, r.width, r.height]})()"
            )
            clip = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
        options = {"clip": clip, "captureBeyondViewport": True} if clip else {}
        shot = self.call("Page.captureScreenshot", **options)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """As it would be printed."""
        done = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=False)
        path.write_bytes(base64.b64decode(done["data"]))


@contextmanager
def chromium() -> Iterator[Page]:
    """A tab of a fresh browser, which ends with the context."""
    assert BINARY is not None
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [
            BINARY, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars",
            "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        try:
            yield from _tab(process, loop)
        finally:
            process.terminate()
            process.wait(10)
            loop.close()


def _tab(process: subprocess.Popen[str], loop: asyncio.AbstractEventLoop) -> Iterator[Page]:
    assert process.stderr is not None
    port = next(
        found[1] for line in process.stderr if (found := re.search(r"127\.0\.0\.1:(\d+)/", line))
    )

    async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            tabs = await answer.json()
        url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        return session, await session.ws_connect(url, max_msg_size=0)

    session, socket = loop.run_until_complete(connect())
    try:
        yield Page(socket, loop)
    finally:
        loop.run_until_complete(session.close())
