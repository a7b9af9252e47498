"""Arrays that are slow to make, kept on disk under a key of all that they depend on.

There is no list of what is kept and nothing expires: a file whose key nobody asks for
again is only lost space, and the folder may be deleted at any time.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlmrm_exp.files import written_whole


def key_of(what: Mapping[str, Any], *data: bytes) -> str:
    """A name for what a file holds: plain values and bytes, hashed."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for part in data:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]


def libraries(names: Iterable[str]) -> dict[str, str]:
    """Their installed versions."""
    return {name: importlib.metadata.version(name) for name in names}


def sources(files: Iterable[str | None]) -> str:
    """A digest of Python files."""
    text = b"".join(Path(str(file)).read_bytes() for file in files)
    return hashlib.sha256(text).hexdigest()[:16]


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a kept file; none where there is no such file, or a damaged one."""
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            held = dict(file)
    except Exception:  # a damaged or an encrypted file can raise nearly anything
        return {}
    return held if all(isinstance(x, np.ndarray) for x in held.values()) else {}


def store(path: Path, **arrays: Any) -> None:
    """Write arrays whole."""
    with written_whole(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
