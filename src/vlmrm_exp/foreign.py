"""Code of others: reward models and worlds of one's own."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from vlmrm_exp.config import ConfigError, ForeignError
from vlmrm_exp.files import reason


@contextlib.contextmanager
def blaming(other: object, doing: str | Callable[[], str]) -> Iterator[None]:
    """Name a reward model or world of one's own that fails here, in a ForeignError.

    `other` is an instance, or what it says is `blamed` in its place; a class; or
    `module:NAME`. The project's own errors pass as they are. `doing` is what it was
    asked for, as "in rewards", or what tells it afterwards.
    """
    try:
        yield
    except (ConfigError, FloatingPointError, ForeignError):
        raise
    except (Exception, SystemExit) as error:
        name = other = getattr(other, "blamed", other)
        if not isinstance(name, str):
            kind = other if isinstance(other, type) else type(other)
            name = f"{kind.__module__}:{kind.__qualname__}"
        if ":" not in name or re.match(r"vlmrm_exp\b", name):
            raise
        where = doing if isinstance(doing, str) else doing()
        raise ForeignError(
            f"{name} failed {where} ({reason(error, named=True)})."
        ) from error


def close(other: Any) -> None:
    """Close it; results are whole even where that of one's own fails."""
    try:
        with blaming(other, "in close"):
            other.close()
    except ForeignError as error:
        print(error, file=sys.stderr)
