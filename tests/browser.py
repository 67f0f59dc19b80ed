"""Drives a headless Chromium through its debugging pipe, so that tests can press keys and look at real pages."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking",
    "--disable-component-update --disable-sync --disable-dev-shm-usage --autoplay-policy=no-user-gesture-required",
    "--mute-audio --remote-debugging-pipe",
)


def binary() -> str | None:
    """The Chromium of this machine, if it has one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def chromium(profile: Path) -> Iterator["Browser"]:
    """A browser that lives inside the block; it reads commands on its file 3 and answers on its file 4."""
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()

    def place_pipes() -> None:
        copies = [os.dup(read_there), os.dup(write_there)]  # first away from 3 and 4, which they may occupy crosswise
        for target, copy in zip((3, 4), copies):
            os.dup2(copy, target)

    command = [str(binary()), *" ".join(FLAGS).split(), f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, preexec_fn=place_pipes, close_fds=False, stderr=subprocess.DEVNULL)
    os.close(read_there)
    os.close(write_there)
    try:
        yield Browser(read_here, write_here)
    finally:
        process.kill()
        process.wait()
        os.close(read_here)
        os.close(write_here)


class Left(AssertionError):
    """The page was left for another before it could answer."""


class Browser:
    """One tab."""

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end, self.write_end = read_end, write_end
        self.number, self.rest, self.session = 0, b"", None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "navigated" in str(answer.get("error")):
                    raise Left(answer["error"])
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            received = os.read(self.read_end, 1 << 16)
            assert received, "chromium ended"
            self.rest += received
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, url: str) -> None:
        """Load `url`, also if it differs from the present one only behind the #."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait(f"location.href !== 'about:blank' && document.readyState === 'complete' && {json.dumps(url)} !== ''")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 90) -> Any:
        """Wait until a JavaScript expression is true, be it on the page that comes after this one."""

        def attempt() -> Any:
            try:
                return self.run(f"Boolean({condition})")
            except AssertionError:  # the page was left, or its scripts are not all there yet
                return None

        return until(attempt, f"{condition} did not come true within {seconds} s", seconds)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            code = {"windowsVirtualKeyCode": 27} if key == "Escape" else {}  # without it no dialog closes
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text, **code)

    def click(self, x: float, y: float) -> None:
        """Press the mouse at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def until(attempt: Callable[[], Any], failure: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := attempt()):
        assert time.monotonic() < deadline, failure
        time.sleep(0.05)
    return value
