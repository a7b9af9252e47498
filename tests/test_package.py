"""The package as a whole: its imports, its pinned dependencies, and its built wheel."""

import ast
import graphlib
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vlmrm_exp"
LEAVES = {"checks", "config", "device", "files", "foreign", "refusals", "signals"}
TOOLS = {"app", "composition", "figures", "log", "measures", "settings", "video"}
TOOLS |= LEAVES
# What each part may import of ours, beside itself; what else is at the top is a verb.
MAY_IMPORT = {
    "verb": {"scorer", "studies", "pretraining", "reporting", "rl", "reward", "envs",
             "vlm", "told", "notes", "run_folder", "labelling", *TOOLS},
    "told": {"composition", "settings", "words", "envs", "reward", *LEAVES},
    "notes": {"composition", "reward", "told", "vlm", *LEAVES},
    "run_folder": {"settings", *LEAVES},
    "labelling": {"studies", "rl", "envs", "log", "measures", "video", *LEAVES},
    "scorer": {"studies", "reward", "vlm", "words", *TOOLS},
    "studies": {"rl", "reward", "envs", "vlm", "run_folder", "told", "words", *TOOLS},
    "pretraining": {"reward", "envs", "vlm", *TOOLS},
    "reporting": {"figures", "measures", "settings", *LEAVES},
    "rl": {"reward", "envs", "log", "measures", "video", *LEAVES},
    "reward": {"envs", "vlm", *LEAVES},
    "envs": LEAVES,
    "vlm": LEAVES,
    "app": {"check_first", "composition", "words", *LEAVES},
    "check_first": {"composition", "leftovers", "sweep", "refusals"},
    "composition": {"refusals", "settings", "words", "config"},
    "leftovers": {"config"},
    "sweep": {"log", "settings", "words", "config"},
    "settings": {"words", "config"},
    "words": {"checks", "config"},
    "refusals": {"checks", "config", "files"},
    "foreign": {"config", "files"},
    "log": {"settings", *LEAVES},
    "video": {"figures", *LEAVES},
    "figures": LEAVES,
    "measures": LEAVES,
    "files": {"config"},
    "checks": {"config"},
    "device": {"config"},
    "config": set(),
    "signals": {"words"},
    "__init__": set(),
}  # fmt: skip
ONLY_IN = {
    "open_clip": {"vlm/imported.py"},
    "nicegui": {"labelling/page.py"},
    "nltk": {"labelling/agreement.py"},
    "ray": {"reward/ray_worker.py"},
    "transformers": {"vlm/video_encoder.py"},
    "wandb": {"log/wandb.py", "dashboard.py"},
    "wandb_workspaces": {"dashboard.py"},
}


def imported_names(path: Path, package: Path) -> set[str]:
    """Full names of all that a file imports, inside its functions too."""
    parent = ".".join([package.name, *path.parent.relative_to(package).parts])
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            dotted = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(dotted, parent)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def test_a_run_imports_open_clip_in_workers_alone():
    """It takes seconds; a training process with workers needs none of it."""
    for path in (PACKAGE / "reward").glob("*.py"):
        at_top = [
            node.module or ""
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom)
        ]
        assert not [name for name in at_top if name.startswith("vlmrm_exp.vlm")]


@pytest.mark.slow
def test_help_waits_for_no_heavy_package():
    """Verbs import what takes seconds when they use it."""
    verbs = [p.stem for p in PACKAGE.glob("*.py") if "app.start(" in p.read_text()]
    assert {"__main__", "bench", "epic", "label", "report", "score"} < set(verbs)
    code = "; ".join(f"import vlmrm_exp.{verb}" for verb in verbs)
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "open_clip", "scipy.stats", "wandb"} & {*done.stdout.split()}


@pytest.mark.long
def test_open_clip_comes_without_a_compiler_and_both_can_be_had_later():
    code = (
        "import sys, vlmrm_exp.vlm.source, vlmrm_exp.vlm.encoder; print(*sys.modules);"
        "import torch, wandb; print(wandb.Settings.__name__);"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    at_first, *later = done.stdout.splitlines()
    assert "open_clip" in at_first.split()
    assert not {"torch._dynamo", "wandb", "sympy"} & {*at_first.split()}
    assert later == ["Settings", "2.0"]


def part_of(name: str) -> str:
    return name if name in MAY_IMPORT else "verb"


def forbidden_imports(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        own = part_of(file.with_suffix("").parts[0])
        for name in sorted(imported_names(path, package)):
            head, *rest = name.split(".")
            ours = head == package.name and rest
            wrong_way = ours and part_of(rest[0]) not in {own, *MAY_IMPORT[own]}
            if wrong_way or file.as_posix() not in ONLY_IN.get(head, {str(file)}):
                found.append(f"{file} imports {name}")
    return found


def test_imports_point_one_way():
    assert len(list(PACKAGE.rglob("*.py"))) > 10
    assert forbidden_imports(PACKAGE) == []


def cycle(package: Path) -> list[str]:
    """Modules that import each other, also in functions and for types; none: empty."""
    files = {
        ".".join([package.name, *path.relative_to(package).with_suffix("").parts])
        .removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }  # fmt: skip

    def modules(name: str) -> set[str]:
        found = set()
        for imported in imported_names(files[name], package):
            inside, _, _ = imported.rpartition(".")
            found.add(imported if imported in files else inside)
        return found & set(files) - {name}

    graph = {name: modules(name) for name in files}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other():
    assert cycle(PACKAGE) == []


def test_a_cycle_is_found_inside_functions_and_for_types_too(tmp_path):
    package = tmp_path / "vlmrm_exp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("def f():\n    from vlmrm_exp import b\n")
    (package / "b.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from vlmrm_exp.a import f\n"
    )
    assert sorted(set(cycle(package))) == ["vlmrm_exp.a", "vlmrm_exp.b"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("config.py", "from vlmrm_exp.log import RunLog"),
        ("__init__.py", "from vlmrm_exp import config"),
        ("envs/humanoid.py", "def f():\n    from vlmrm_exp.reward import clip"),
        ("envs/humanoid.py", "from ..vlm import encoder"),
        ("reward/pool.py", "from vlmrm_exp.rl.sac import train"),
        ("rl/sac.py", "import vlmrm_exp.evaluate"),
        ("rl/sac.py", "import open_clip.factory"),
        ("__main__.py", "from wandb import init"),
    ],
)
def test_forbidden_import_is_found(tmp_path, file, line):
    path = tmp_path / "vlmrm_exp" / file
    path.parent.mkdir(parents=True)
    path.write_text(f"import os\n{line}\n")
    assert len(forbidden_imports(tmp_path / "vlmrm_exp")) == 1


def test_every_dependency_is_pinned_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    extras = project["optional-dependencies"]
    del extras["ray-launcher"]  # for an environment of its own, says pyproject.toml
    lines = [line for extra in extras.values() for line in extra]
    for text in [*project["dependencies"], *lines]:
        dependency = Requirement(text)
        assert versions[canonicalize_name(dependency.name)] in dependency.specifier


def run(command: list[str | Path], cwd: Path) -> str:
    """Output of a command that neither sees PYTHONPATH nor may fail."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps"]
    run([*pip, "--no-build-isolation", "--wheel-dir", folder, ROOT], cwd=folder)
    return next(folder.glob("vlmrm_exp-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Python of an environment with the wheel, and this one's dependencies."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", code], cwd=folder).strip())
    # A path file inside a folder that a path file names is not read, so the editable
    # install of this environment stays out of sight.
    (site / "outer.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index"]
    run([*pip, "--no-deps", "--ignore-installed", wheel], cwd=folder)
    return python


@pytest.mark.slow
def test_wheel_holds_every_data_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    conf = [p for p in (ROOT / "conf").rglob("*") if p.is_file()]
    data = [p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    expected = {f"vlmrm_exp/conf/{p.relative_to(ROOT / 'conf')}" for p in conf}
    expected |= {f"vlmrm_exp/{p.relative_to(PACKAGE)}" for p in data}
    assert "vlmrm_exp/conf/config.yaml" in expected
    assert expected - held == set()


@pytest.mark.slow
def test_installed_wheel_composes_in_an_unrelated_folder(installed, tmp_path):
    code = "import vlmrm_exp; print(vlmrm_exp.__file__)"
    where = run([installed, "-c", code], cwd=tmp_path)
    assert Path(where).is_relative_to(installed.parents[1])
    shown = run([installed, "-m", "vlmrm_exp", "--cfg", "job"], cwd=tmp_path)
    assert "name: tiny" in shown
    assert "name: mountaincar" in shown


@pytest.mark.long
def test_installed_wheel_trains_in_an_unrelated_folder(installed, tmp_path):
    words = "experiment=smoke", "log=none", "compute.workers=0"
    run([installed, "-m", "vlmrm_exp", *words], cwd=tmp_path)
    (path,) = tmp_path.glob("outputs/*/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["gradient_steps"] > 0
    assert summary["task"] == "mountaincar"
