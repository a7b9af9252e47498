"""Code of others: reward models and worlds of one's own."""

import contextlib
from collections.abc import Callable, Iterator

from vlmrm_exp.config import ConfigError, ForeignError
from vlmrm_exp.files import reason


@contextlib.contextmanager
def blaming(other: object, doing: str | Callable[[], str]) -> Iterator[None]:
    """Name a reward model or world of one's own that fails here, in a ForeignError.

    `other` is an instance or a class, and the project's own errors pass as they are.
    `doing` is what it was asked for, as "in rewards", or what tells it afterwards.
    """
    try:
        yield
    except (ConfigError, FloatingPointError, ForeignError):
        raise
    except (Exception, SystemExit) as error:
        kind = other if isinstance(other, type) else type(other)
        if kind.__module__.split(".")[0] == "vlmrm_exp":
            raise
        name = f"{kind.__module__}:{kind.__qualname__}"
        where = doing if isinstance(doing, str) else doing()
        raise ForeignError(
            f"{name} failed {where} ({reason(error, named=True)})."
        ) from error
