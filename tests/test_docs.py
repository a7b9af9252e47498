"""What README.md and docs/ say can be typed, followed and read without a network."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlmrm_exp import composition
from vlmrm_exp.config import conf_dir
from vlmrm_exp.words import to_keys

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:taskset \S+ \S+ )?python -m (vlmrm_exp\S*)(.*)"
)
FILES = {"score", "report", "dashboard"}
"""Verbs whose words without a key are files."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code, fenced or indented."""
    text = page.read_text()
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = fenced.findall(text)
    indented = re.compile(r"(?:\A|\n\n)((?:(?: {4}.*)\n|\n(?= {4}))+)")
    # Below a point of a list four spaces continue the point, which has no commands.
    found += [("", re.sub(r"^ {4}", "", t, flags=re.MULTILINE))
              for t in indented.findall(fenced.sub("", text))]  # fmt: skip
    return found


def commands() -> list[tuple[str, str, str]]:
    """Page, module and words of each `python -m vlmrm_exp...` in a block of code."""
    found = []
    for page in PAGES:
        for _, text in blocks(page):
            for line in text.replace("\\\n", " ").splitlines():
                if match := COMMAND.fullmatch(line.strip()):
                    found.append((page.name, match[1], match[2]))
    return found


def test_commands_are_found():
    words = {
        (module, rest.partition(" #")[0].strip()) for _, module, rest in commands()
    }
    assert (
        "vlmrm_exp.epic",
        "task=mountaincar clip=nano,tiny alpha=0,0.5 states=600",
    ) in words
    assert ("vlmrm_exp", "--config-dir sweeps --config-name tasks_embedded") in words
    assert len(words) > 25


@pytest.mark.long
def test_every_command_composes(monkeypatch):
    monkeypatch.chdir(ROOT)
    for page, module, rest in commands():
        words = [
            # [key=value]: what may be left out.
            word[1:-1] if re.fullmatch(r"\[\S+\]", word) else word
            for word in shlex.split(rest, comments=True)
            if word != "--help"
        ]
        try:
            compose_words(module.removeprefix("vlmrm_exp").lstrip("."), words)
        except Exception as error:
            pytest.fail(f"{page}: python -m {module}{rest}: {error}")


@pytest.mark.slow
def test_the_kubernetes_job_composes_and_goes_on_by_its_name():
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    *claims, job = documents
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:3] == ["python", "-m", "vlmrm_exp"]
    compose_words("", container["command"][3:])
    assert any(word.startswith("name=") for word in container["command"])
    codes = {
        code: rule["action"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert codes == {os.EX_TEMPFAIL: "Ignore", 2: "FailJob"}
    claimed = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
    assert claimed == {claim["metadata"]["name"] for claim in claims}


def compose_words(verb: str, words: list[str]) -> None:
    """Compose as Hydra would, each value of a sweep once."""
    plural = {}
    if verb:
        source = importlib.import_module(f"vlmrm_exp.{verb}")
        plural = getattr(source, "PLURAL", {})
    keys = to_keys(words, plural, verb in FILES, verb or "config")
    folder, name = str(conf_dir()), verb or "config"
    options = [key for key in keys if key.startswith("-")]
    if "--config-dir" in keys:
        where = keys[keys.index("--config-dir") + 1]
        if not Path(where).is_dir():
            return  # DIR of the reader's own
        folder = str(Path(where).resolve())
        options.append(where)
    if "--config-name" in keys:
        name = keys[keys.index("--config-name") + 1]
        options.append(name)
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        options.append("hydra/launcher=ray_cluster")  # in an environment of its own
    keys = [key for key in keys if key not in options]
    keys.append(f"hydra.searchpath=[file://{conf_dir()}]")
    with initialize_config_dir(folder, version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides(keys)
        for i in range(max(len(choices(one)) for one in parsed)):
            each = [choices(one)[i % len(choices(one))] for one in parsed]
            loader = GlobalHydra.instance().config_loader()
            composition.compose_values(loader, name, tuple(each), folder)


def choices(override) -> list[str]:
    """An override for each value that a sweep gives a key."""
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def test_python_in_the_pages_compiles():
    for page in PAGES:
        for language, text in blocks(page):
            if language == "python":
                ast.parse(text, page.name)


@pytest.mark.long
def test_the_site_is_built_without_a_broken_link_and_asks_no_other_host(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
    ]  # quiet would count no warning
    command += ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fetched = re.compile(
        r"<(?!a\b)\w+\b[^>]*?(?:src|href|data)=\"?((?:https?:)?//[^\s>\"]+)"
    )
    pages = list(tmp_path.rglob("*.html"))
    assert {"index.html", "api.html", "accept.html"} <= {page.name for page in pages}
    for page in pages:
        assert fetched.findall(page.read_text()) == [], page
    for style in tmp_path.rglob("*.css"):
        outside = re.findall(
            r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()
        )
        assert outside == [], style
    assert "Rewards of each step" in (tmp_path / "api.html").read_text()  # a docstring
