"""Every job of every sweep file composes into a checked configuration."""

import importlib
import itertools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from vlmrm_exp.study import settings

from vlmrm_exp import landscape, prompts
from vlmrm_exp.config import GOALS, Config, conf_dir, to_config

FILES = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
# The first line is the command: of Hydra's multirun, or of a verb that reads the file.
VERB = re.compile(r"# python -m vlmrm_exp\.(\w+) sweeps/")
STUDIES = [path for path in FILES if VERB.match(path.read_text())]
SWEEPS = [path for path in FILES if path not in STUDIES]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_everything_in_a_settings_file_of_a_verb_exists(path):
    text = path.read_text()
    verb = VERB.match(text)[1]
    assert text.startswith(f"# python -m vlmrm_exp.{verb} sweeps/{path.name}\n")
    asked = importlib.import_module(f"vlmrm_exp.{verb}").parse([str(path)])
    models = len(settings.resolve_models(asked))
    match verb:
        case "epic":
            tasks = settings.resolve_tasks(asked.task, asked)
            said = f"= {len(tasks) * models * len(asked.alpha)} rewards"
        case "prompts":
            sentences = [prompts.sentences(task).values() for task in asked.task]
            # The task's own prompt, and those in its lists.
            each = [1 + sum(map(len, kinds)) for kinds in sentences]
            said = f"= {sum(each) * models} rewards"
        case "landscape":
            panels = landscape.panels(asked)
            said = f"= {models * len(panels) * len(asked.alpha)} lines"
    comment = " ".join(line.strip("# ") for line in text.splitlines()[:5])
    assert said in comment, "comment is wrong"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_job_of_a_sweep_composes(path):
    with initialize_config_dir(str(path.parent), version_base="1.3"):
        search = f"hydra.searchpath=[file://{conf_dir()}]"
        all_jobs = composed_jobs(path.stem, search)
    assert len(all_jobs) > 1
    said = path.read_text().splitlines()[:4]
    assert any(f"= {len(all_jobs)} jobs" in line for line in said), "comment is wrong"


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
    with initialize_config_dir(str(FILES[0].parent), version_base="1.3"):
        search = f"hydra.searchpath=[file://{conf_dir()}]"
        paper = list(composed_jobs(name, search).values())
        twin = list(composed_jobs(f"{name}_embedded", search).values())
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


def composed_jobs(name: str, search: str) -> dict[tuple[str, ...], Config]:
    hydra = compose(name, [search], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    texts = [f"{key}={value}" for key, value in hydra.sweeper.params.items()]
    choices = []
    for override in OverridesParser.create().parse_overrides(texts):
        assert override.is_sweep_override()
        values = override.sweep_string_iterator()
        choices.append([f"{override.key_or_group}={value}" for value in values])
    return {
        job: to_config(compose(name, [search, *job, "name=test"]))
        for job in itertools.product(*choices)
    }
