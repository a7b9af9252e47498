"""Every sweep file asks for what its comment says, and every value of it composes."""

import functools
import importlib
import math
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlmrm_exp import composition
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import Config, conf_dir
from vlmrm_exp.envs import check_world
from vlmrm_exp.envs.goals import GOALS
from vlmrm_exp.told import judge_configs, with_members

pytestmark = pytest.mark.long

FILES = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
# The first line is the command: of Hydra's multirun, or of a verb that reads the file.
VERB = re.compile(r"# python -m vlmrm_exp\.(\w+) sweeps/")
STUDIES = [path for path in FILES if VERB.match(path.read_text())]
SWEEPS = [path for path in FILES if path not in STUDIES]
SEARCH = f"hydra.searchpath=[file://{conf_dir()}]"


@pytest.fixture(autouse=True)
def sweeps():
    with initialize_config_dir(str(FILES[0].parent), version_base="1.3"):
        yield


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_everything_in_a_settings_file_of_a_verb_exists(path):
    text = path.read_text()
    verb = VERB.match(text)[1]
    assert text.startswith(f"# python -m vlmrm_exp.{verb} sweeps/{path.name}\n")
    module = importlib.import_module(f"vlmrm_exp.{verb}")
    composed = composition.compose(path.stem, SEARCH, "out=x")
    module.check(composed)
    cfg = composed.cfg
    counts = {
        "epic": len(cfg.tasks) * len(cfg.clips) * len(cfg.alphas),
        # A task's own prompt, ten paraphrases and five misleading sentences.
        "prompts": len(cfg.tasks) * len(cfg.clips) * 16,
        # Two ranges of cartpole, and each texture of mountaincar.
        "landscape": len(cfg.clips) * 4 * len(cfg.alphas),
    }
    comment = " ".join(line.strip("# ") for line in text.splitlines()[:5])
    noun = "lines" if verb == "landscape" else "rewards"
    assert f"= {counts[verb]} {noun}" in comment, "comment is wrong"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_value_of_a_sweep_composes(path):
    choices = params(path.stem)
    count = math.prod(map(len, choices.values()))
    assert count > 1
    said = path.read_text().splitlines()[:4]
    assert any(f"= {count} jobs" in line for line in said), "comment is wrong"
    jobs_of(path.stem)


# Table 1 and Figures 3, 4, 8: of the paper, four seeds of ten million steps each
# (section 4.2); models by parameters as in Figure 4; alphas as in Figure 8's table.
PAPER = {
    "tasks": {"clip": ["bigG"], "task": list(GOALS), "alpha": [0.0]},
    "scaling": {"clip": ["rn50", "vitl14", "vith14", "bigG"], "alpha": [0.0]},
    "alpha": {"clip": ["bigG"], "alpha": [0.0, 0.2, 0.4, 0.6]},
    "textures_camera": {
        "clip": ["bigG"], "textures": ["plain", "realistic"],
        "camera": ["track", "fixed"],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_sweeps_of_the_paper_are_its_own_and_twins_ask_the_same(name):
    paper, twin = jobs_of(name), jobs_of(f"{name}_embedded")
    for job in paper:
        assert job.env_steps == 10_000_000
        assert job.clip.model != "embedded"
        assert not job.algo.bootstrap_at_time_limit  # as experiment=paper has it
    assert {job.seed for job in paper} == {0, 1, 2, 3}
    for job in twin:
        assert job.clip.model == "embedded"
    for key in ("task", "alpha", "textures", "camera"):
        asked = {values_of(job)[key] for job in paper}
        if key in PAPER[name]:
            assert asked == set(PAPER[name][key])
        if key != "camera" or name == "textures_camera":  # ours have two by default
            assert {values_of(job)[key] for job in twin} == asked
    assert {job.clip.name for job in paper} == set(PAPER[name]["clip"])


def values_of(job: Config) -> dict[str, object]:
    task = job.task
    return {
        "task": task.name, "alpha": job.alpha, "textures": task.textures,
        "camera": task.camera,
    }  # fmt: skip


def params(name: str) -> dict[str, list[str]]:
    """The values of each parameter of a sweep."""
    hydra = compose(name, [SEARCH], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    texts = [f"{key}={value}" for key, value in hydra.sweeper.params.items()]
    choices = {}
    for override in OverridesParser.create().parse_overrides(texts):
        assert override.is_sweep_override()
        choices[override.key_or_group] = list(override.sweep_string_iterator())
    return choices


@functools.cache
def jobs_of(name: str) -> list[Config]:
    """Jobs that hold each value of each parameter, with the others' first values.

    All together they would take minutes to compose and show no more.
    """
    choices = params(name)
    jobs = []
    for key, values in choices.items():
        for value in values:
            chosen = {k: v[0] for k, v in choices.items()} | {key: value}
            words = [f"{k}={v}" for k, v in chosen.items()]
            composed = composition.compose(name, SEARCH, *words, "name=test")
            jobs.append(to_config(composed.cfg))  # compute=gpu needs none here
            check_world(jobs[-1])
            with_members(composed, jobs[-1])
            if len(jobs) == 1:
                judge_configs(composed, jobs[0])
    return jobs
