"""The page on which raters label, by NiceGUI: one picture after another."""

import hmac
import json
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.requests import HTTPConnection
from fastapi.responses import PlainTextResponse, RedirectResponse
from nicegui import app as pages
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from vlmrm_exp.labelling.agreement import BUCKETS
from vlmrm_exp.labelling.raters import LONGEST_NAME, NameRefusedError, Rater, Raters
from vlmrm_exp.labelling.shown import Item
from vlmrm_exp.refusals import one_sentence

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<rect width="16" height="16" rx="4" fill="#0b62a8"/>'
    '<path d="M4 8.5l3 3 5-7" fill="none" stroke="#fff" stroke-width="2"/></svg>'
)
A_YEAR = 365 * 24 * 3600
"""Seconds."""
RECONNECT_S = 60.0
"""A phone that slept for less goes on without loading the page again."""


@dataclass(frozen=True)
class Labelling:
    """What the page is about."""

    items: Sequence[Item]
    shown: Path
    """The folder of pictures or videos."""
    raters: Raters
    question: str
    buckets: bool
    """Keys 1 to 5 for shares of a video, and not 0 and 1."""
    token: str
    """Needed to open the page, on this machine too: else a web site that is open in a
    browser here could get in (DNS rebinding)."""
    address: str
    """As http://127.0.0.1:8080."""

    def path(self, key: str = "") -> str:
        """The page's, or a rater's own; it holds the token."""
        return f"/rate/{key}?token={self.token}" if key else f"/?token={self.token}"

    def link(self, key: str = "") -> str:
        """The path with the address."""
        return f"{self.address}{self.path(key)}"


def serve(labelling: Labelling, listening: socket.socket) -> None:
    """Serve the page on a listening socket until the program is told to stop."""
    pages.add_static_files("/shown", labelling.shown, max_cache_age=A_YEAR)
    _start_page(labelling)
    _rate_page(labelling)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        app,
        title="Labelling",
        favicon=ICON,
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=RECONNECT_S,
    )
    config = uvicorn.Config(
        Guard(app, labelling.token),
        log_level="warning",
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        # NiceGUI looks for its server among all objects, of which one of torch's warns.
        uvicorn.Server(config).run(sockets=[listening])


class Guard:
    """Lets only those in who came once with the token, which a cookie then holds."""

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._token = app, token
        self._cookie = f"token_{token[:6]}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI application around another, pages and web sockets alike."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        asked = HTTPConnection(scope)
        if self._is_token(asked.cookies.get(self._cookie, "")):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if self._is_token(asked.query_params.get("token", "")):
            answer = RedirectResponse(scope["path"], 303)
            # Not strict: a link in a web mail would not get past the redirect.
            answer.set_cookie(
                self._cookie, self._token, A_YEAR, httponly=True, samesite="lax"
            )
        else:
            told = "Open the link with the token that the program printed."
            answer = PlainTextResponse(told, 403)
        await answer(scope, receive, send)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())


def _head(title: str) -> None:
    ui.page_title(title)
    here = Path(__file__).parent
    ui.add_head_html(f"<style>{(here / 'page.css').read_text()}</style>")
    ui.add_head_html(f"<script>{(here / 'page.js').read_text()}</script>")


def _start_page(labelling: Labelling) -> None:
    """The page on which a rater begins, or goes on in the same browser."""
    raters, cookie = labelling.raters, _cookie(labelling)

    @ui.page("/")
    def start(request: Request) -> None:
        _head("Labelling")
        known = raters.by_key.get(request.cookies.get(cookie, ""))
        with ui.element("main").classes("start"), ui.element("div"):
            count = len(labelling.items)
            kind = "videos" if labelling.items[0].file.endswith(".mp4") else "pictures"
            asked, keys = f"Does each of the {kind} show this?", "0 (no) and 1 (yes)"
            if labelling.buckets:
                asked, keys = "How much of each video shows this?", "1 to 5"
            _text("h1", f"{count} {kind} to label")
            _text("p", asked)
            _text("p", labelling.question).style("font-weight: 600")
            _text(
                "p",
                f"Use the keys {keys}, U to undo, S to skip; or the buttons. Each "
                "press is kept at once: close the page whenever you like and come back "
                "later. What is skipped comes again at the end.",
            ).classes("quiet")
            if known:
                _text("button", f"Go on as {known.name}").on(
                    "click", lambda: ui.navigate.to(f"/rate/{raters.key(known.name)}")
                )
                _text("p", "Somebody else? Begin with your own name:").classes("quiet")
            field = ui.element("input").props(
                f'maxlength={LONGEST_NAME} placeholder="Your name" aria-label="Your '
                'name" autocomplete=off'
            )
            refused = _text("p", "").classes("refused").props("role=alert")

            def begin(event: Any) -> None:
                try:
                    key = raters.join(str(event.args))
                except NameRefusedError as error:
                    refused.set_text(str(error))
                except OSError as error:
                    refused.set_text(f"The name cannot be kept: {one_sentence(error)}")
                else:
                    joined = raters.by_key[key].name
                    print(f"  {joined}: {labelling.link(key)}", flush=True)
                    ui.navigate.to(f"/rate/{key}")

            typed = f"emit(document.getElementById('{field.html_id}').value)"
            field.on("keydown.enter", begin, js_handler=f"() => {typed}")
            _text("button", "Begin").on("click", begin, js_handler=f"() => {typed}")


def _rate_page(labelling: Labelling) -> None:
    """The page on which a rater labels."""

    @ui.page("/rate/{key}")
    def rate(key: str) -> Any:
        rater = labelling.raters.by_key.get(key)
        if rater is None:
            return RedirectResponse("/", 303)
        _head(f"Labelling: {rater.name}")
        cookie = f"{_cookie(labelling)}={key};path=/;max-age={A_YEAR};samesite=lax"
        ui.add_head_html(f"<script>document.cookie = {json.dumps(cookie)}</script>")
        Desk(labelling, rater, key)


class Desk:
    """The page of one rater in one window."""

    def __init__(self, labelling: Labelling, rater: Rater, key: str) -> None:
        self._labelling, self._rater = labelling, rater
        self._files = {item.key: item.file for item in labelling.items}
        self._turn = 0
        self._item: str | None = None  # that this window shows
        with ui.element("main").classes("rate") as self._page:
            with ui.element("header"):
                with ui.element("div").classes("bar") as self._bar:
                    self._filled = ui.element("div")
                self._bar.props("role=progressbar aria-label=labelled aria-valuemin=0")
                self._bar.props(f"aria-valuemax={len(labelling.items)}")
                with ui.element("div").classes("status"):
                    with ui.element("span").classes("who"):
                        own = _text("a", rater.name)
                        own.props(f'href="{labelling.path(key)}"')
                        own.props('title="Your own link: go on with it elsewhere"')
                    self._count = _text("span", "").props("data-is=count")
                    self._left = _text("span", "")
            _text("p", labelling.question).classes("question")
            self._stage = ui.element("div").classes("stage")
            labels = [(0, "no", "0"), (1, "yes", "1")]
            if labelling.buckets:
                labels = [(b, f"{b} %", str(i)) for i, b in enumerate(BUCKETS, 1)]
            with ui.element("div").classes("keys"):
                self._keys = [self._button(*label) for label in labels]
            with ui.element("div").classes("more"):
                self._undo = self._button("undo", "undo", "u backspace")
                self._skip = self._button("skip", "skip", "s")
        self._show()

    def _button(self, do: str | int, text: str, keys: str) -> Any:
        button = ui.element("button").props(f'type=button data-keys="{keys}"')
        with button:
            _text("span", text)
            _text("kbd", keys.split()[0].upper())
        return button.on(
            "click",
            lambda event: self._pressed(do, event.args),
            js_handler="(event) => press(event.currentTarget, emit)",
        )

    def _pressed(self, do: str | int, told: Any) -> None:
        """Keep a press, then show what follows; browsers may send anything."""
        match told:
            case {"turn": str(turn), "seconds": int() | float() as seconds}:
                if turn != str(self._turn) or not 0 <= seconds < A_YEAR:
                    return
            case _:
                return
        rater, item = self._rater, self._item
        try:
            if do == "undo":
                rater.undo()
            elif item is not None and do == "skip":
                rater.skip(item)
            elif item is not None:
                rater.label(item, int(do), seconds)
        except OSError as error:
            ui.notify(
                f"Not kept: {one_sentence(error)} Try again, or tell who runs this.",
                type="negative", timeout=0, close_button="OK",
            )  # fmt: skip
        self._show()

    def _show(self) -> None:
        """Show the rater's present item; another window of theirs may have gone on."""
        rater, labelling = self._rater, self._labelling
        self._item = rater.current
        self._turn += 1
        done, total = len(rater.labels), len(labelling.items)
        self._filled.style(f"width: {100 * done / total:.2f}%")
        self._bar.props(f"aria-valuenow={done}")
        skipped = f", {rater.skipped} skipped" if rater.skipped else ""
        self._count.set_text(f"{done} of {total}{skipped}")
        left = rater.seconds_left if self._item else None
        self._left.set_text("" if left is None else f"{max(left / 60, 1):.0f} min left")
        self._stage.clear()
        with self._stage:
            for item, which in zip(rater.queue, ("now", "next"), strict=False):
                self._media(self._files[item], which)
            if self._item is None:
                with ui.element("div").classes("done"):
                    _text("p", f"All {total} are labelled. Thank you!")
                    _text("p", "You can close this page.")
        for button in (*self._keys, self._skip):
            _enable(button, self._item is not None)
        _enable(self._undo, rater.can_undo)
        # Last, so that no press is taken before the page is as it should be.
        self._page.props(f"data-turn={self._turn}")

    def _media(self, file: str, which: str) -> None:
        now = which == "now"
        if file.endswith(".mp4"):
            video = ui.element("video").props("muted loop playsinline preload=auto")
            video.props("autoplay controls" if now else "")
        else:
            video = ui.element("img").props('alt="to be labelled"' if now else 'alt=""')
        video.classes(which).props(f'src="/shown/{file}"')


def _cookie(labelling: Labelling) -> str:
    """Its own for each session: cookies of one host are shared by all its ports."""
    return f"rater_{labelling.raters.sign('cookie')[:8]}"


def _text(tag: str, text: str) -> Any:
    """An element with a text, which may hold anything."""
    return TextElement(tag=tag, text=text)


def _enable(button: Any, enabled: bool) -> None:
    button.props(**({"remove": "disabled"} if enabled else {"add": "disabled"}))
