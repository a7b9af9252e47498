"""Arrays that are slow to make, kept on disk under a key of all that they depend on.

There is no list of what is kept and nothing expires: a file whose key nobody asks for
again is only lost space, and the folder may be deleted at any time.
"""

import hashlib
import importlib.metadata
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGE = Path(__file__).parents[1]


def key_of(what: Mapping[str, Any], *data: bytes) -> str:
    """A name for what a file holds: plain values and bytes, hashed."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for part in data:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]


def libraries(names: Iterable[str]) -> dict[str, str]:
    """Their installed versions."""
    return {name: importlib.metadata.version(name) for name in names}


def sources(files: Iterable[str]) -> str:
    """A digest of modules of this package, named as vlm/encoder.py."""
    digest = hashlib.sha256()
    for file in files:
        digest.update((_PACKAGE / file).read_bytes())
    return digest.hexdigest()[:16]


def load(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a kept file; None where there is none, or it is damaged."""
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return dict(file)
    # TypeError: of a file .npy, which is one array and no archive.
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def store(path: Path, **arrays: Any) -> None:
    """Write arrays whole: under a name of this process's own, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
