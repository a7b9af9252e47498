"""`python -m vlmrm_exp.accept`: pretrained models beside published figures."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save, save_file

import studies
from test_hub import WEIGHTS, Hub
from vlmrm_exp import accept
from vlmrm_exp.accept import at_share, judge, plain_pictures, told_apart
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs.goals import GOALS
from vlmrm_exp.measures import pearson
from vlmrm_exp.vlm.imported import open_clip

SMALL = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
}
"""RN50's architecture, with fewer and narrower layers."""
CHILD = """
import runpy, sys
from vlmrm_exp.vlm.imported import open_clip
open_clip.add_model_config(sys.argv.pop(1))
runpy.run_module("vlmrm_exp.accept", run_name="__main__", alter_sys=True)
"""
PUBLISHED = yaml.safe_load(accept.PUBLISHED.read_text())


@pytest.mark.long
def test_a_small_checkpoint_goes_the_whole_way(tmp_path):
    """Downloaded under RN50's tag; it knows nothing, and that is what is said."""
    architecture = tmp_path / "RN50-quickgelu.json"
    architecture.write_text(json.dumps(SMALL))
    torch.manual_seed(1)
    weights = save(
        {k: v.contiguous() for k, v in open_clip.CLIP(**SMALL).state_dict().items()}
    )

    words = ["clip=rn50", "states=300", "resamples=20", "clip.frame_height=32"]
    words += ["clip.render_effects=false", f"cache={tmp_path}/cache"]
    words += [f"out={tmp_path}/out"]
    command = [sys.executable, "-c", CHILD, str(architecture), *words]
    env = {k: v for k, v in os.environ.items() if not k.upper().endswith("PROXY")}
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    with Hub({WEIGHTS: weights}, "timm/resnet50_clip.openai") as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        env["HF_ENDPOINT"] = hub.url
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        hub.shutdown()
    assert done.returncode == 1, done.stderr
    assert hub.ranges == [None]  # once, for both uses
    assert "HTTP" not in done.stdout
    head, ours, *shares, theirs = done.stdout.splitlines()[:5]
    assert head.split()[:3] == ["EPIC", "on", "kneeling"]
    epics = [row["epic"] for row in kneeling(tmp_path / "out" / "epic.json")]
    assert ours.split()[-5:] == [f"{epic:.3f}" for epic in epics]
    assert theirs.split()[-5:] == ["0.414", "0.415", "0.421", "0.445", "0.473"]
    assert len(shares) == 2
    assert "NO   rn50: plain colours and written words" in done.stdout
    assert "Not as expected" in done.stdout.splitlines()[-1]


def kneeling(path: Path) -> list[dict]:
    rows = json.loads(path.read_text())["rows"]
    return [row for row in rows if row["task"] == "kneeling"]


@pytest.mark.long
def test_plain_pictures_are_told_apart_by_a_model_that_learned_them(tmp_path):
    """And not by the same model before that."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL)
    colours = {"mean": [0.5] * 3, "std": [0.25] * 3}
    description = {"model_cfg": SMALL, "preprocess_cfg": colours}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description))

    def right() -> int:
        held = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(held, tmp_path / "open_clip_model.safetensors")
        study = studies.asked(accept, f"clip=local-dir:{tmp_path}", f"out={tmp_path}/o")
        (clip,) = study.models
        return told_apart(study, clip)

    assert right() < accept.NEEDED
    frames, sentences = plain_pictures()
    assert len({frame.tobytes() for frame in frames}) == len(set(sentences)) == 16
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, 32, mode="area")
    pixels = (pixels - 0.5) / 0.25
    tokens = open_clip.get_tokenizer("RN50")(sentences)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(150):
        images = model.encode_image(pixels, normalize=True)
        texts = model.encode_text(tokens, normalize=True)
        logits = 20 * images @ texts.T
        target = torch.arange(16)
        loss = torch.nn.functional.cross_entropy(logits, target)
        loss = loss + torch.nn.functional.cross_entropy(logits.T, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    assert right() >= accept.NEEDED


def test_another_share_of_goals_is_that_of_weighted_states():
    rng = np.random.default_rng(0)
    goal = rng.random(200_000) < 0.06
    reward = rng.normal(0, 1, len(goal)) + 1.7 * goal
    found = pearson(reward, goal)
    for other in (0.05, 0.2, 0.5):
        share = goal.mean()
        weights = np.where(goal, other / share, (1 - other) / (1 - share))
        wanted = pearson(reward, goal, weights)
        assert at_share(found, share, other) == pytest.approx(wanted, abs=0.01)
        assert at_share(-found, share, other) == pytest.approx(-wanted, abs=0.01)


def result_of(**epics: float) -> dict:
    """What the verb would have measured, with these EPIC distances on kneeling."""
    rows = [
        {
            "task": "kneeling",
            "clip": name,
            "alpha": 0.0,
            "epic": epic,
            "epic_high": epic + 0.02,
            "pearson": 1 - 2 * epic**2,
        }
        for name, epic in epics.items()
    ]
    return {"tasks": {"kneeling": {"goal_share": 0.06}}, "rows": rows}


@pytest.mark.parametrize(
    ("epics", "right", "fails"),
    [
        ({"rn50": 0.58, "bigG": 0.5}, 16, []),
        ({"rn50": 0.58, "bigG": 0.5}, 7, ["rn50: plain", "bigG: plain"]),
        ({"rn50": 0.70, "bigG": 0.5}, 16, ["rn50: EPIC", "rn50: the published"]),
        ({"rn50": 0.58, "bigG": 0.2}, 16, ["bigG: the published"]),
        ({"rn50": 0.5, "bigG": 0.58}, 16, ["all: rn50 has the largest"]),
        ({"vitb32": 0.69}, 16, ["vitb32: EPIC"]),
    ],
)
def test_what_is_not_as_expected_is_said(epics, right, fails):
    answers = judge(result_of(**epics), dict.fromkeys(epics, right), PUBLISHED)
    said = [f"{a['model']}: {a['question']}" for a in answers if not a["expected"]]
    assert len(said) == len(fails)
    for sentence, start in zip(said, fails, strict=True):
        assert sentence.startswith(start)


@pytest.mark.slow
def test_published_figures_are_of_models_and_tasks_that_there_are(compose):
    assert set(PUBLISHED["paper"]["success"]) == set(GOALS)
    other = PUBLISHED["replication"]
    for name, values in other["epic"].items():
        assert compose(f"clip={name}").clip.name == name
        assert len(values) == len(other["alphas"])


def test_what_published_figures_are_of_cannot_be_changed(tmp_path):
    words = "task=splits alpha=0 reward=predicate task.camera=track".split()
    for word in ("prompt=a robot", *words):
        with pytest.raises(ConfigError, match="what the published figures are of"):
            studies.asked(accept, word, f"out={tmp_path}/out")
