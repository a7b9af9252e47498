"""What raters said: for each one a file of key presses, and the order of what is shown.

A rater's file is only ever added to, a line for each press, and the line is on disk
before the press counts. What a rater has labelled is what the lines say, read in their
order, so a server that was killed goes on from there.
"""

import contextlib
import errno
import hashlib
import hmac
import json
import os
import re
import secrets
import unicodedata
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median_high
from typing import Any

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import written_whole

LONGEST_NAME = 40
"""Letters of a rater's name."""
TIMED = 20
"""Labels whose median time says how long the rest will take,"""
TIMED_FROM = 5  # when there are so many
RESERVED = ("predicate", "majority")
"""Names that tables have for something else."""


class NameRefusedError(ValueError):
    """A name that a new rater cannot have; its text is one sentence for them."""


def order(items: Sequence[str], rater: str, seed: int) -> list[str]:
    """Items in a random order that is a rater's own, and the same wherever it is asked.

    They are sorted by the SHA-256 of seed, name and item, so that no version of a
    random generator matters.
    """
    key = f"{seed}/{rater.casefold()}/"
    return sorted(items, key=lambda x: hashlib.sha256(f"{key}{x}".encode()).digest())


class Rater:
    """One person's labels, kept in one file."""

    def __init__(
        self, path: Path, name: str, items: Sequence[str], values: Sequence[int],
        seed: int, writes: bool = True,
    ) -> None:  # fmt: skip
        """Read the file, whose first line holds the name, and go on; or begin it.

        `items`, `values`, `seed` and `writes` are as `Raters` has them. A ConfigError
        if the file holds something else; an OSError if it cannot be read or written.
        """
        self.path, self.name = path, name
        self.labels: dict[str, int] = {}
        self._values = values
        self.queue = deque(order(items, name, seed))
        """What is not labelled yet; the first is shown."""
        # Item, label (None: skipped) and seconds of what can be undone.
        self._presses: list[tuple[str, int | None, float]] = []
        how = os.O_RDWR | os.O_CREAT | os.O_APPEND if writes else os.O_RDONLY
        self._file = os.open(path, how, 0o644)
        whole = self._read()
        if not writes:
            return
        # A line without an end was being written when the server was killed: its press
        # had not counted, as the next picture was not shown.
        os.ftruncate(self._file, whole)
        if whole == 0:
            self._append({"rater": name, "seed": seed})
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # so that the file's name is on disk too
            os.close(folder)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    @property
    def current(self) -> str | None:
        """What is shown now; None: everything is labelled."""
        return self.queue[0] if self.queue else None

    @property
    def can_undo(self) -> bool:
        """Whether there is a press to take back."""
        return bool(self._presses)

    @property
    def skipped(self) -> int:
        """How many were skipped and are not labelled yet."""
        return len({item for item, *_ in self._presses} - set(self.labels))

    @property
    def median_s(self) -> float | None:
        """Median seconds of the latest labels; None: there are too few."""
        took = [seconds for _, label, seconds in self._presses if label is not None]
        return median_high(took[-TIMED:]) if len(took) >= TIMED_FROM else None

    @property
    def seconds_left(self) -> float | None:
        """Of work, at the pace of the latest labels; None: not known yet."""
        pace = self.median_s
        return None if pace is None else pace * len(self.queue)

    def label(self, item: str, value: int, seconds: float) -> bool:
        """Label what the rater saw for so many seconds.

        False if it is not shown any more, an OSError if the disk does not take it: then
        nothing is changed.
        """
        assert value in self._values
        return item == self.current and self._press(
            "label", item, label=value, seconds=round(seconds, 2)
        )

    def skip(self, item: str) -> bool:
        """Put what is shown behind all others; as `label`."""
        return item == self.current and self._press("skip", item)

    def undo(self) -> bool:
        """Take back the latest label or skip that is left; as `label`."""
        return self.can_undo and self._press("undo", self._presses[-1][0])

    def _press(self, do: str, item: str, **more: float) -> bool:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        told = {"time": now, "do": do, "item": item, **more}
        self._append(told)
        self._apply(told)
        return True

    def _apply(self, told: dict[str, Any]) -> None:
        """Let a press count; a KeyError or ValueError: it is impossible here."""
        do, item = told["do"], told["item"]
        if do == "undo":
            undone, label, _ = self._presses.pop()
            if undone != item:
                raise ValueError(f"{item} was not the latest")
            if label is None:
                self.queue.rotate(1)
            else:
                del self.labels[item]
                self.queue.appendleft(item)
        elif item != self.current:
            raise ValueError(f"{item} was not shown")
        elif do == "skip":
            self.queue.rotate(-1)
            self._presses.append((item, None, 0.0))
        elif do == "label" and told["label"] in self._values:
            self._presses.append((item, told["label"], float(told["seconds"])))
            self.labels[item] = told["label"]
            self.queue.popleft()
        else:
            raise ValueError(f"there is no such press as {do}")

    def _append(self, line: dict[str, Any]) -> None:
        """Put a line on disk, whole or not at all."""
        data = f"{json.dumps(line, ensure_ascii=False)}\n".encode()
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def _read(self) -> int:
        """Let all whole lines count; how many bytes they are."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines()[1:], 2):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ConfigError(
                    f"{self.path}, line {number}, cannot be read ({error}): mend it, "
                    "or move the file away, which leaves this rater out."
                ) from error
        return whole


class Raters:
    """All who label the same items, in one folder."""

    def __init__(
        self, folder: Path, items: Sequence[str], values: Sequence[int], seed: int,
        writes: bool = True,
    ) -> None:  # fmt: skip
        """Read what there is of earlier sessions; a ConfigError if it is damaged.

        `folder` is the session's, `items` names what is labelled, `values` are the
        labels that there are, and `seed` is that of the orders. Unless `writes`, no
        file is changed, as another process may be writing it, and nobody can label.
        """
        self._folder = folder / "raters"
        self._about = items, values, seed, writes
        self._secret = b""
        if writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._secret = _secret(folder / "secret")
        self.by_key: dict[str, Rater] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open(encoding="utf-8", errors="replace") as file:
                first = file.readline()
            if not first.endswith("\n"):  # killed before there was anything to keep
                if writes:
                    path.unlink()
                continue
            try:
                name = str(json.loads(first)["rater"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path} does not begin with a rater's name: move it away."
                ) from error
            self._open(path, name)

    def close(self) -> None:
        """Close all files."""
        for rater in self:
            rater.close()

    def __iter__(self):
        """By name."""
        return iter(sorted(self.by_key.values(), key=lambda x: x.name.casefold()))

    def sign(self, what: str) -> str:
        """32 hexadecimal digits that only who reads the folder can know."""
        return hmac.new(self._secret, what.encode(), "sha256").hexdigest()[:32]

    def key(self, name: str) -> str:
        """What a rater's own link ends with."""
        return self.sign(f"rater {name.casefold()}")

    def join(self, name: str) -> str:
        """Begin a new rater's file and return their key.

        A NameRefusedError if the name is taken, empty, too long, or no text; an OSError
        if the file cannot be written.
        """
        name = unicodedata.normalize("NFC", " ".join(name.split()))
        if not name:
            raise NameRefusedError("Please type a name.")
        if len(name) > LONGEST_NAME:
            raise NameRefusedError(
                f"The name has {len(name)} letters; at most {LONGEST_NAME}, please."
            )
        if not name.isprintable() or name.casefold() in RESERVED:
            raise NameRefusedError("This name cannot be used: please take another.")
        if self.key(name) in self.by_key:
            raise NameRefusedError(
                f"{name} is labelling already. If this is you, use the browser or the "
                "link that you began with; if not, take another name."
            )
        # Readable, and never the same for two names.
        digest = hashlib.sha256(name.casefold().encode()).hexdigest()[:6]
        stem = re.sub(r"[^\w-]+", "_", name.casefold())
        return self._open(self._folder / f"{stem}-{digest}.jsonl", name)

    def _open(self, path: Path, name: str) -> str:
        key = self.key(name)
        if key in self.by_key:
            raise ConfigError(
                f"{path} and {self.by_key[key].path} are both {name}'s: move one away."
            )
        self.by_key[key] = Rater(path, name, *self._about)
        return key


def _secret(path: Path) -> bytes:
    """What links are made from; only the owner may read it."""
    if not path.exists():
        with written_whole(path) as part:
            part.touch(0o600)
            part.write_text(secrets.token_hex(32))
    return path.read_bytes()
