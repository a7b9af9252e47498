"""Files that are whole or not there, and texts that fit their place."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from vlmrm_exp.config import FolderTakenError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk, a quota or a file that is full."""


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path, of the same suffix, that is renamed to `path` at the end.

    The folder is made. If the block raises, an older file stays as it was.

    Raises:
        OSError: it names `path`, not the temporary file; also where PyTorch hides that
            the disk is full behind an error of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        hidden = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(hidden, OSError):
            raise
        if hidden.errno not in NO_ROOM and str(hidden.filename) != str(part):
            raise
        hidden.filename = str(path)
        raise hidden from None
    finally:
        part.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The digest of a file's contents, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(file: IO[Any], key: str = "name") -> None:
    """Keep other processes out of a run's folder as long as the file is open.

    `key` is the setting that gives another folder. A FolderTakenError where one of them
    is in it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderTakenError(
            f"{Path(file.name).parent} is written by another process just now: wait "
            f"for its end, or give another {key}=...."
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, of mappings, sequences and primitives.

    Numbers that are not finite become null, NumPy scalars and paths their plain selves.
    """
    text = json.dumps(plain(value), indent=2, allow_nan=False)
    with written_whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """What JSON can hold of a value."""
    match value:
        case float():
            return float(value) if math.isfinite(value) else None
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Path():
            return str(value)
    # NumPy's scalars, without importing it here, as refusals should be immediate.
    return plain(value.item()) if getattr(value, "ndim", None) == 0 else value


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts job 2 before job 10, whatever the case of letters."""
    pieces = re.split(r"([0-9]+)", text.casefold())
    return [(int(p), "") if i % 2 else (0, p) for i, p in enumerate(pieces)]


def shorten(text: str, limit: int) -> str:
    """Text of at most `limit` characters: the middle of what is longer is left out.

    What no figure could show, in the name of a file that is no valid text, becomes `?`.
    """
    text, half = text.encode("utf-8", "replace").decode(), (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def reason(error: BaseException, named: bool = False) -> str:
    """The first line of what an error says, without the full stop; or its type.

    `named`: begin with its type, where that helps.
    """
    kind = type(error).__name__
    first, *more = str(error).strip().splitlines() or [""]
    if first.endswith(":") and more:  # a heading says nothing
        first += f" {more[0].strip()}"
    line = first.rstrip(".: ")
    if not line:
        return kind
    return shorten(f"{kind}: {line}" if named else line, 200)


def unusable(error: OSError, path: Path | None = None) -> str:
    """Which file or folder the system refused and why, without the full stop.

    `path` is named if the error does not say which it was.
    """
    why = error.strerror
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        why = "a file is where a folder is needed"
    return f"{error.filename or path} cannot be used: {why}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in line, for the terminal: the first to the left, others to the right."""
    lines = [head, *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = []
    for name, *cells in lines:
        aligned = [name.ljust(first), *map(str.rjust, cells, others)]
        text.append("  " + "  ".join(aligned).rstrip())
    return "\n".join(text)


def short_count(number: float) -> str:
    """A large number for people: 950 k, 1.6 M, 2.54 G."""
    rounded = float(f"{number:.3g}")  # first, or 999,999 would be 1e+03 k
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{rounded / size:.3g} {letter}"
    return f"{number:g}"
