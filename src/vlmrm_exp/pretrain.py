"""Make an embedded CLIP from nothing: draw states, render, caption, contrast.

    python -m vlmrm_exp.pretrain clip=base

The result is a folder that open_clip loads like any other (`local-dir:`), with a report
on states and paraphrases that were held out. The models know only these worlds.
"""

import time
from functools import partial
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vlmrm_exp import app, composition
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import ConfigError, FolderTakenError, cores
from vlmrm_exp.device import choose_device
from vlmrm_exp.files import write_json
from vlmrm_exp.pretraining import settings
from vlmrm_exp.pretraining.settings import PretrainConfig
from vlmrm_exp.run_folder import mapping
from vlmrm_exp.studies.settings import HELD

ConfigStore.instance().store(name="pretrain_schema", node=PretrainConfig)
OmegaConf.register_new_resolver(
    "recipes",
    lambda: composition.options_text("recipe").partition(": ")[2],
    replace=True,
)


def check(composed: Composed, taken: set[str] | None = None) -> PretrainConfig:
    """Typed values that fit each other, or a ConfigError.

    `taken` has the folders of a sweep's jobs before this one, whose is added.
    """
    config = OmegaConf.to_object(composed.cfg)
    assert isinstance(config, PretrainConfig)
    settings.check(config)
    # An unfinished pretraining's files are written anew.
    unfinished = "recipe" in mapping(Path(config.folder, "config.yaml"))
    for name in () if unfinished else HELD:
        if Path(config.folder, name).exists():
            raise FolderTakenError(
                f"{config.folder} holds {name} already: choose another folder=..., or "
                "remove it."
            )
    if taken is not None:
        if config.folder in taken:
            raise ConfigError(
                f"folder is {config.folder}, as an earlier job's: start these one by "
                "one, each with another folder=...."
            )
        taken.add(config.folder)
    if config.device == "gpu":
        choose_device(config.device, "device")
    return config


def pretrain(composed: Composed) -> None:
    """Draw the worlds, train, and report on what was held out."""
    config = check(composed)
    from vlmrm_exp.log.versions import versions  # here, as --help is immediate
    from vlmrm_exp.pretraining.check import examine, print_table
    from vlmrm_exp.pretraining.drawing import WORLDS, Drawing, drawn_before
    from vlmrm_exp.pretraining.training import train

    folder, clip, recipe = Path(config.folder), config.clip, config.recipe
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    # What the weights are made of and by, for whoever gets them.
    OmegaConf.save(composed.cfg, folder / "config.yaml", resolve=True)
    device = str(choose_device(config.device, "device"))
    write_json(folder / "versions.json", versions({"device": device}))
    assert clip.frame_height is not None
    # Not of the other worlds, so that theirs are drawn once for every share.
    visited = {"humanoid": recipe.visited}
    sizes = clip.frame_height, recipe.image_size
    drawings = [
        Drawing(world, recipe.states[world], *sizes, visited.get(world, 0.0))
        for world in WORLDS
    ]
    processes = config.processes or cores()
    train(config, drawn_before(Path(config.worlds), drawings, processes), folder)
    found = examine(folder, clip, config.held_out_states)
    write_json(folder / "report.json", found)
    print_table(found)
    print(f"{folder} after {(time.monotonic() - started) / 60:.0f} min")


if __name__ == "__main__":
    app.start(
        pretrain,
        config_name="pretrain",
        check=partial(check, taken=set()),
        interrupted="Interrupted: a model without a report.json is not finished.",
    )
