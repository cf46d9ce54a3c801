"""The report in headless Chromium: no console error, no request but the page itself, model answers stay text.

Chromium is driven through `--remote-debugging-pipe` (DevTools messages on file descriptors 3 and 4), so that nothing
but the browser is needed.
"""

import http.server
import json
import os
import runpy
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sllm_tune.report import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]
ATTACK = "No<script>document.title='taken'</script><img src=/taken.png onerror=\"document.title='taken'\">"
UNIT = Path(__file__).parents[1] / "unit"
make_results = runpy.run_path(str(UNIT / "test_report.py"))["make_results"]
RESIZE = runpy.run_path(str(UNIT / "test_report_resize.py"))


class Browser:
    """One page of a headless Chromium, with every DevTools event that it sent."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{from_us} 4>&{to_us}',
                "bash",
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._to, self._from = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self._id, self._session, self.events = 0, "", list[dict[str, Any]]()
        page = self.send("Target.createTarget", url="about:blank")["targetId"]  # not the browser's own first page
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _receive(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser closed its pipe"
            message += byte
        return json.loads(message)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._id += 1
        session = {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps({"id": self._id, "method": method, "params": params, **session}).encode() + b"\0")
        self._to.flush()
        while (message := self._receive()).get("id") != self._id:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, url: str, width: int = 1200) -> None:
        """Load a page in a window `width` pixels wide and wait until its load event."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.send("Page.navigate", url=url)
        while not self.seen("Page.loadEventFired"):
            self.events.append(self._receive())
        self.value("new Promise(done => setTimeout(done, 200))")  # a late favicon or script would be seen here

    def value(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def seen(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] == method]

    def requests(self) -> list[str]:
        return [event["request"]["url"] for event in self.seen("Network.requestWillBeSent")]

    def complaints(self) -> list[dict[str, Any]]:
        return (
            self.seen("Log.entryAdded") + self.seen("Runtime.consoleAPICalled") + self.seen("Runtime.exceptionThrown")
        )

    def close(self) -> None:
        self._to.close()
        self._from.close()
        self._process.terminate()
        self._process.wait(timeout=20)


class Site(http.server.ThreadingHTTPServer):
    """Serves one page at /report.html on 127.0.0.1 and remembers every path that was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.page, self.asked = "", list[str]()
        self.url = f"http://127.0.0.1:{self.server_port}/report.html"

    def show(self, page: str) -> str:
        self.page, self.asked = page, []
        return self.url


class Answer(http.server.BaseHTTPRequestHandler):
    """The page to whoever asks for it, 404 to all else."""

    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200 if self.path == "/report.html" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        if self.path == "/report.html":
            self.wfile.write(self.server.page.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    served = Site()
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def hostile_page(language: str = "en") -> str:
    """A report with markup and words without a break wherever a model or a data set can put text."""
    results = make_results(language)
    flips = results["tasks"]["privacy_qa"]["flips"]
    flips[0].update(prompt=ATTACK + "W" * 400, specialised=ATTACK, base="W" * 300)
    results["models"]["an-endpoint/" + "with-a-long-name" * 6] = results["models"]["base"]
    results["tasks"]["privacy_qa"]["scores"]["an-endpoint/" + "with-a-long-name" * 6] = {
        "value": 0.67,
        "ci95": [0.63, 0.7],
    }
    results["name"] = ATTACK
    strange = RESIZE["DISTILL"] | {"kind": ATTACK + "W" * 100}
    strange["scores"] = strange["scores"] | {"W" * 60: {"kind": "general", "value": 0.2, "n": 100}}
    results["resize"] = [*RESIZE["STEPS"], RESIZE["UPSCALE"], strange]
    return render(results)[0]


@pytest.mark.parametrize("width", [1200, 375])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_opening_the_report_asks_for_the_page_alone_and_logs_no_complaint(
    browser: Browser, site: Site, language: str, width: int
) -> None:
    browser.open(site.show(hostile_page(language)), width)
    assert site.asked == ["/report.html"]
    assert browser.requests() == [site.url]
    assert browser.complaints() == []


def test_a_planted_request_and_a_planted_script_would_be_noticed(browser: Browser, site: Site) -> None:
    planted = hostile_page().replace("<main>", "<main><img src=planted.png><script>console.error('planted')</script>")
    browser.open(site.show(planted))
    assert "Content Security Policy" in json.dumps(browser.complaints())
    assert site.asked == ["/report.html"]
    browser.open(site.show(planted.replace("Content-Security-Policy", "x-none")))
    assert "/planted.png" in site.asked
    assert any(url.endswith("/planted.png") for url in browser.requests())
    assert "planted" in json.dumps(browser.seen("Runtime.consoleAPICalled"))


def test_markup_in_a_model_answer_is_shown_as_text(browser: Browser, site: Site) -> None:
    browser.open(site.show(hostile_page()))
    assert browser.value("document.querySelectorAll('script, img').length") == 0
    assert browser.value("document.title") == f"{ATTACK} · Specialist report"
    answers = browser.value("[...document.querySelectorAll('.answers dd')].map(answer => answer.innerText)")
    assert ATTACK in answers


@pytest.mark.parametrize("width", [1200, 375])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_nothing_is_wider_than_the_window(browser: Browser, site: Site, language: str, width: int) -> None:
    browser.open(site.show(hostile_page(language)), width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    outside = browser.value(
        "[...document.querySelectorAll('h1, h2, p, dd, figure, svg text, .flip, .box')]"
        ".filter(e => e.getBoundingClientRect().left < -1 || e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.textContent.slice(0, 60))"
    )
    assert outside == []
