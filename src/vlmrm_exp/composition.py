"""A configuration as Hydra composes it from keys, and once more with other ones.

keys -> [Hydra composes conf/] -> Composed
"""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp import words
from vlmrm_exp.config import Config, ConfigError, conf_dir
from vlmrm_exp.refusals import one_sentence
from vlmrm_exp.settings import settings_hash

ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("wording", words.wording, replace=True)
OmegaConf.register_new_resolver("settings_hash", settings_hash, replace=True)
# Hydra copies all of the store for each group of options that it lists, and gives out
# nothing of it uncopied: this was most of the time of --help.
setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010


@dataclass(frozen=True)
class Composed:
    """A configuration, and how it was asked for."""

    cfg: DictConfig
    """Without Hydra's own part."""
    keys: tuple[str, ...]
    """key=value, as Hydra got them."""
    config_name: str
    """The primary configuration."""
    folder: Path | None = None
    """For results; None: a job of a sweep that has not begun."""

    def again(self, *keys: str, without: tuple[str, ...] = ()) -> "Composed":
        """Compose once more with other values; settings files hold for it too.

        Keys that begin with one of `without` are left out.
        """
        changed = {key.partition("=")[0] for key in keys}
        kept = [
            key
            for key in self.keys
            if key.partition("=")[0] not in changed
            and not key.lstrip("+~").startswith(without)
        ]
        return compose(self.config_name, *kept, *keys)


def compose(config_name: str, *keys: str) -> Composed:
    """Compose a configuration, within a program or without; else a ConfigError."""
    try:
        if GlobalHydra.instance().is_initialized():
            loader: Any = GlobalHydra.instance().config_loader()
            cfg = compose_values(loader, config_name, keys)
        else:
            with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                cfg = hydra.compose(config_name, list(keys))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_sentence(error)) from error
    return Composed(cfg, keys, config_name)


def compose_values(
    loader: Any, config_name: str, keys: tuple[str, ...], cache_key: object = None
) -> DictConfig:
    """Compose options once, some .2 s each time, and set values in a copy of that.

    Hydra sets them at last too. A sweep's jobs, judges and members differ mostly in
    values. `loader` is Hydra's present one; what it composed is kept for it, or for
    `cache_key`.
    """
    # This repository knows what a configuration itself adds to the search path.
    read = loader._parse_overrides_and_create_caching_repo
    overrides, repository = read(config_name, list(keys))
    values = [
        one
        for one in overrides
        if not one.is_sweep_override()
        and not one.is_hydra_override()
        and one.key_or_group != "hydra"
        and (
            isinstance(one.value(), dict)
            or not repository.group_exists(one.key_or_group)
        )
    ]
    lines = {one.input_line for one in values}
    options = tuple(key for key in keys if key not in lines)
    cfg = copy.deepcopy(_compose(cache_key or loader, config_name, options))
    OmegaConf.clear_cache(cfg)  # of ${now:...}
    try:
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    except (HydraException, OmegaConfBaseException):
        return hydra.compose(config_name, list(keys))  # it says what is wrong
    return cfg


@functools.lru_cache(maxsize=256)
def _compose(key: object, config_name: str, options: tuple[str, ...]) -> DictConfig:
    """Compose with options alone."""
    return hydra.compose(config_name, list(options))


def composed_by_hydra(cfg: DictConfig, own: Any, folder: Path) -> Composed:
    """What a program gets of Hydra's composition; `own` is Hydra's own part."""
    cfg = copy.deepcopy(cfg)
    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    # As they are: reading them would take the backslash off a \${ in a sentence.
    keys: Any = OmegaConf.to_container(own.overrides.task, resolve=False)
    return Composed(cfg, tuple(keys), own.job.config_name, folder)


def options_text(*groups: str) -> str:
    """The options of some groups, a line each, for --help."""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for group in groups:
        shown = [o for o in loader.get_group_options(group) if not o.startswith("_")]
        lines.append(f"  {group}: {', '.join(shown)}")
    return "\n".join(lines)
