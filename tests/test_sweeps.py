"""Every job of every sweep file composes into a checked configuration."""

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlmrm_exp.config import conf_dir, to_config

SWEEPS = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_job_of_a_sweep_composes(path):
    with initialize_config_dir(str(path.parent), version_base="1.3"):
        search = f"hydra.searchpath=[file://{conf_dir()}]"
        all_jobs = composed_jobs(path.stem, search)
    assert len(all_jobs) > 1
    said = path.read_text().splitlines()[:4]
    assert any(f"= {len(all_jobs)} jobs" in line for line in said), "comment is wrong"


def composed_jobs(name: str, search: str) -> list[tuple[str, ...]]:
    hydra = compose(name, [search], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    texts = [f"{key}={value}" for key, value in hydra.sweeper.params.items()]
    choices = []
    for override in OverridesParser.create().parse_overrides(texts):
        assert override.is_sweep_override()
        values = override.sweep_string_iterator()
        choices.append([f"{override.key_or_group}={value}" for value in values])
    listed = list(itertools.product(*choices))
    for job in listed:
        to_config(compose(name, [search, *job, "name=test"]))
    return listed
