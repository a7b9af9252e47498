"""Weights from the Hugging Face hub: its cache first, then a download that is checked.

The hub's own client keeps trying for minutes where there is no network and checks only
the length of what arrived. So a file is looked for in the cache first (which also pins
its version), the network is tried once, and a fresh file is held against its SHA-256.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from vlmrm_exp.config import ConfigError, UnavailableError
from vlmrm_exp.files import reason, sha256

# It tells of each request at INFO, which Hydra's programs print.
logging.getLogger("httpx2").setLevel(logging.WARNING)


def hub_file(repo: str, names: Sequence[str], what: str, instead: str) -> Path:
    """The first of `names` that the repository has, from the cache or downloaded.

    A refusal says `what` is wanted, and how to get it `instead`. Without a network it
    comes after one attempt: 10 s, unless HF_HUB_ETAG_TIMEOUT says otherwise.
    """
    for name in names:
        cached = try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        try:
            etag = get_hf_file_metadata(hf_hub_url(repo, name)).etag
        except EntryNotFoundError:
            continue
        except Exception as error:  # the HTTP library's, or the hub's own
            wrong_name = isinstance(error, RepositoryNotFoundError)
            raise (ConfigError if wrong_name else UnavailableError)(
                f"{what} is not in the cache ({constants.HF_HUB_CACHE}) and cannot be "
                f"had from {constants.ENDPOINT} ({reason(error, named=True)}): run the "
                "same command where there is a network, copy that cache folder here "
                f"and set HF_HUB_OFFLINE=1, or {instead}."
            ) from error
        try:
            path = Path(hf_hub_download(repo, name))
        except Exception as error:
            raise UnavailableError(
                f"The download of {what} from {constants.ENDPOINT} broke off "
                f"({reason(error, named=True)}): run the same command again, or "
                f"{instead}."
            ) from error
        if etag is not None and len(etag) == 64:  # a large file's is its SHA-256
            digest = sha256(path)
            if digest != etag:
                path.resolve().unlink()
                raise UnavailableError(
                    f"The download of {what} arrived damaged (its SHA-256 is "
                    f"{digest[:12]}..., not {etag[:12]}...) and was deleted: run the "
                    "same command again."
                )
        return path
    raise ConfigError(
        f"The repository {repo} at {constants.ENDPOINT} has no {' or '.join(names)}, "
        f"which {what} would be: choose another model, or {instead}."
    )


def unreadable(path: Path, why: str, instead: str, as_what: str = "") -> ConfigError:
    """Says why, and what to do: in the hub's cache, to delete what is behind it."""
    if path.is_relative_to(constants.HF_HUB_CACHE):
        instead = f"delete {path.resolve()}, so that it is downloaded again"
    return ConfigError(f"{path} cannot be read{as_what} ({why}): {instead}.")
