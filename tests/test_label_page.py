"""The page of `python -m vlmrm_exp.label` in a real browser, with its server killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("nicegui")
pytest.importorskip("nltk")
playwright = pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Browser, BrowserContext, Page  # noqa: E402

from vlmrm_exp.studies.state_files import labels_of, picture_states  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
WIDE, PHONE = (1280, 800), (375, 667)
COUNT = 30
WAIT_MS = 120_000
ANSWER = """() => {
    const seen = document.querySelector(".stage .now");
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const pen = canvas.getContext("2d");
    pen.drawImage(seen, 0, 0, 1, 1);
    return pen.getImageData(0, 0, 1, 1).data[0] > 127 ? "1" : "0";
}"""
"""Whether what the rater sees is red."""


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Red ones are goals; their names say what nobody may see."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(COUNT):
        image = Image.new("RGB", (600, 400), (255 * (i % 3 == 0), 90, 8 * i))
        image.save(folder / f"bigG-reward-{i}.png")
    return folder


class Server:
    """The program, started in a folder of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        command = [sys.executable, "-m", "vlmrm_exp.label", "task=kneeling", *words]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        self.told = ""
        assert self.process.stdout
        for line in self.process.stdout:
            self.told += line
            if "Ctrl-C" in line:
                break
        root = r"http://127.0.0.1:(\d+)/"
        found = re.search(rf"to label: (({root})\?token=\w+)", self.told)
        assert found, self.told
        self.link, self.root, self.port = found.groups()

    def end(self, number: int) -> str:
        """Send a signal; all that was printed."""
        self.process.send_signal(number)
        text, _ = self.process.communicate(timeout=300)
        return self.told + text


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., Server]]:
    """`python -m vlmrm_exp.label`; what a test leaves running is ended."""
    started: list[Server] = []

    def start(*words: str) -> Server:
        started.append(Server(tmp_path, *words))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        sandbox = [] if os.getuid() else ["--no-sandbox"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser):
    """A page of a new person's browser."""
    opened: list[BrowserContext] = []

    def make(width: int, height: int) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(WAIT_MS)
        opened.append(context)
        return context.new_page()

    yield make
    for context in opened:
        context.close()


def begin(page: Page, address: str, name: str) -> None:
    page.goto(address)
    page.fill("input", name)
    page.keyboard.press("Enter")
    page.wait_for_selector(".stage .now")


def ready(page: Page) -> str:
    """Wait until a picture is seen; its turn."""
    page.wait_for_function("() => turn() && turn() === watched", polling=20)
    return page.get_attribute(".rate", "data-turn")


def follow(page: Page, turn: str) -> None:
    page.wait_for_function("(before) => turn() !== before", arg=turn, polling=20)


def answer(page: Page, key: str | None = None) -> None:
    """Press a key, by default the right one, and wait for what follows."""
    turn = ready(page)
    page.keyboard.press(key or page.evaluate(ANSWER))
    follow(page, turn)


def count(page: Page) -> int:
    return int(page.inner_text("[data-is=count]").split()[0])


def test_two_raters_label_at_once_and_a_killed_server_loses_nothing(
    pictures, tmp_path, open_page, serve
):
    words = f"frames={pictures}", "out=out", "question=Is it <b>red</b>? \"'${x} 红"
    server = serve(*words, "port=0")
    ada, bo = open_page(*WIDE), open_page(*PHONE)
    asked: list[str] = []
    for page, name in ((ada, "Ada"), (bo, "Bo <i>")):
        page.on("request", lambda request: asked.append(request.url))
        begin(page, server.link, name)
        held = {cookie["sameSite"] for cookie in page.context.cookies()}
        assert held == {"Lax"}  # of the token and the rater
    assert ada.inner_text(".question") == "Is it <b>red</b>? \"'${x} 红"
    assert bo.inner_text(".who") == "Bo <i>"
    firsts = [page.get_attribute(".now", "src") for page in (ada, bo)]
    assert firsts[0] != firsts[1]

    # Nothing tells what it is that is seen, and nothing comes from elsewhere.
    for page in (ada, bo):
        held = page.content()
        assert not re.search("bigG|reward|kneeling|humanoid", held)
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {
        f"127.0.0.1:{server.port}"
    }
    # The next picture is there before it is asked for.
    upcoming = ada.get_attribute(".next", "src")
    answer(ada)
    assert ada.get_attribute(".now", "src") == upcoming
    assert sum(url.endswith(upcoming) for url in asked) == 1

    for page in (bo, ada, bo, ada, bo):
        answer(page)
    assert (count(ada), count(bo)) == (3, 3)
    # A wrong key, taken back; a skipped one; keys that mean nothing; a button.
    wrong = "1" if ada.evaluate(ANSWER) == "0" else "0"
    seen = ada.get_attribute(".now", "src")
    answer(ada, wrong)
    answer(ada, "u")
    assert ada.get_attribute(".now", "src") == seen
    answer(ada, "s")
    assert "1 skipped" in ada.inner_text("[data-is=count]")
    ready(ada)
    for key in ("7", "x", "Control+1", "Enter"):
        ada.keyboard.press(key)
    turn = ready(bo)
    bo.click(f".keys button[data-keys='{bo.evaluate(ANSWER)}']")
    follow(bo, turn)
    bo.keyboard.press("Enter")  # does not press the button once more
    bo.keyboard.press(" ")
    assert (count(ada), count(bo)) == (3, 4)
    # However fast the keys come, each labels what was seen.
    ready(ada)
    shown = ada.get_attribute(".now", "src")
    right = ada.evaluate(ANSWER)
    ada.evaluate("""(key) => {
        for (let i = 0; i < 5; i++) document.dispatchEvent(
            new KeyboardEvent("keydown", {key, code: "Digit" + key, bubbles: true}));
    }""", right)  # fmt: skip
    ada.wait_for_function(
        "(src) => document.querySelector('.now').getAttribute('src') !== src", arg=shown
    )
    ready(ada)
    assert count(ada) == 4

    # Nobody labels under a name that is taken.
    eve = open_page(*PHONE)
    eve.goto(server.root)
    assert "Open the link with the token" in eve.inner_text("body")
    # Her mail is a page in the browser, of another site.
    mail = f'<a href="{server.link}">Please label this</a>'
    eve.route("http://mail.test/", lambda route: route.fulfill(body=mail))
    eve.goto("http://mail.test/")
    eve.click("a")
    eve.fill("input", "ADA")
    eve.click("button:has-text('Begin')")
    eve.wait_for_selector(".refused:has-text('labelling already')")
    eve.goto(f"{server.root}rate/0123456789abcdef")
    assert eve.url == server.root

    # Killed after a press, before the server says so: it is either kept or still seen.
    ready(ada)
    ada.keyboard.press(ada.evaluate(ANSWER))
    server.end(signal.SIGKILL)
    files = {path.name[:2]: path for path in (tmp_path / "out/raters").iterdir()}
    kept = len(labelled(files["ad"]))
    assert kept in (4, 5)
    ada.goto("about:blank")  # her page would load itself again in the same moment
    server = serve(*words, f"port={server.port}")
    assert f"Ada ({kept}): " in server.told
    ada.goto(server.root)  # the browser remembers her
    ada.click("button:has-text('Go on as Ada')")
    ada.wait_for_selector(".stage .now")
    own = re.search(r"Bo <i> \(4\): (\S+)", server.told)
    assert own  # who lost a link is told it by who runs the program
    phone = open_page(*PHONE)
    phone.goto(own[1])
    ready(ada), ready(phone)
    assert (count(ada), count(phone)) == (kept, 4)
    while ada.query_selector(".now"):
        answer(ada)
    assert "All 30 are labelled" in ada.inner_text(".stage")
    answer(phone)
    told = server.end(signal.SIGINT)
    assert server.process.returncode == 0
    assert "Traceback" not in told
    assert "Bo <i> has 25 to go" in told

    states = picture_states(pictures)
    goal = labels_of(tmp_path / "out" / "label.csv", states).goal
    assert goal.tolist() == [i % 3 == 0 for i in range(COUNT)]
    result = json.loads((tmp_path / "out" / "label.json").read_text())
    assert result["pairs"][0]["items"] == 5
    assert result["pairs"][0]["agreement"] == 1
    assert result["differences"] == []
    assert not (tmp_path / ".nicegui").exists()


def labelled(path: Path) -> dict[str, int]:
    """What a rater's file says at last, read by hand."""
    said: dict[str, int] = {}
    for line in path.read_text().splitlines()[1:]:
        press = json.loads(line)
        if press["do"] == "label":
            said[press["item"]] = press["label"]
        elif press["do"] == "undo":
            said.pop(press["item"], None)
    return said


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_all_of_the_page_is_in_sight(pictures, open_page, serve, size):
    """With a criterion of 300 letters: no scrolling between 200 pictures."""
    words = f"frames={pictures}", "out=out", "port=0", f"question={'long words ' * 27}"
    server = serve(*words)
    page = open_page(*size)
    held = []
    page.route("**/shown/*", lambda route: held.append(route))
    begin(page, server.link, "A" * 40)
    page.keyboard.press("1")  # nothing is seen yet
    page.keyboard.press("s")  # but can be skipped
    follow(page, "1")
    held.pop(0).abort()
    page.keyboard.press("u")
    follow(page, "2")
    for route in held:
        route.continue_()
    page.unroute("**/shown/*")
    assert ready(page) == "3"
    assert count(page) == 0
    inside = page.evaluate("""() => {
        const all = document.querySelectorAll(".rate .now, .rate button, .question");
        return [...all].every((one) => {
            const box = one.getBoundingClientRect();
            return box.left >= 0 && box.top >= 0 && box.width > 0
                && box.right <= innerWidth && box.bottom <= innerHeight;
        }) && document.documentElement.scrollWidth <= innerWidth
            && document.querySelector(".rate").scrollHeight <= innerHeight;
    }""")
    assert inside
    box = page.locator(".now").bounding_box()
    assert box
    assert box["height"] > 0.3 * size[1]
    server.end(signal.SIGTERM)
    assert server.process.returncode == 0
