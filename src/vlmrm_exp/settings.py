"""A configuration in other forms: as YAML, by dotted names, as six digits."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vlmrm_exp import words
from vlmrm_exp.config import Config


def resolved(config: Config) -> str:
    """A configuration as YAML, which OmegaConf reads back."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: escaped(each) for key, each in value.items()}
        if isinstance(value, list):
            return [escaped(each) for each in value]
        return words.literal(value) if isinstance(value, str) else value

    return OmegaConf.to_yaml(escaped(asdict(config)))


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{before}{key}.") if nested else {before + key: value}
    return found


def defaults() -> dict[str, Any]:
    """The schema's own values by their dotted names: what no file sets."""
    own: Any = OmegaConf.to_container(OmegaConf.structured(Config))
    return flat(own)


def is_how(key: str) -> bool:
    """Whether a setting says how a run is logged or computed, not what it learns.

    With overlap the agent acts before it has learned from the rollout before, unless
    rewards cost nothing.
    """
    return key.startswith(("log.", "compute.")) and key != "compute.overlap"


OF_ONE_MODEL = (
    *("clip.name", "clip.model", "clip.pretrained", "clip.quick_gelu"),
    *("clip.mean", "clip.std", "clip.download_gb"),
)
"""Settings that belong to one vision-language model alone."""
IGNORED = (
    *("seed", "name", "log.", "clip.batch_size", "clip.download_gb", "judge."),
    *(f"evaluation.{of}_episodes" for of in ("final", "video", "reward")),
)
"""How settings begin that do not change which policy is kept, beside those of compute
but the overlap. How often a run evaluates while it trains does change it."""


def group_hash(config: Config) -> str:
    """Six digits of all settings that runs of one group share: all but their seeds."""
    kept = {
        key: value
        for key, value in flat(asdict(config)).items()
        if not is_how(key) and not key.startswith(IGNORED)
    }
    return _digits(kept)


def settings_hash(*, _root_: DictConfig) -> str:
    """Six digits of a job's settings, by which a sweep finds its folder again.

    Values that are the schema's own are left out: a later version, with settings that
    there were not when a sweep began, goes on with it.
    """
    own = defaults()
    parts = {key: _root_[key] for key in _root_ if key != "hydra"}
    settings: Any = OmegaConf.to_container(OmegaConf.create(parts), resolve=True)
    kept = {
        key: value
        for key, value in flat(settings).items()
        if not is_how(key) and key != "name"
        if key not in own or own[key] != value
    }
    return _digits(kept)


def _digits(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:6]
