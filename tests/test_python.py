"""Pictures scored from Python, and docs/python.md, whose blocks are run."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from vlmrm_exp.config import ConfigError
from vlmrm_exp.reward import Episodes
from vlmrm_exp.reward.clip import ClipReward
from vlmrm_exp.scorer import Scorer
from worlds import composed

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[1] / "docs"
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8)
SAID: Any = {"clip": "nano", "overrides": "compute=cpu"}


def of_training(pictures: np.ndarray, *words: str) -> np.ndarray:
    """What a run learns from these pictures, as frames of a Gymnasium id."""
    task = ("task=gym", "task.env_id=Pendulum-v1", "clip=nano", "compute=cpu")
    model = ClipReward(composed(*task, *words))
    return model.rewards(Episodes(states=pictures[:, None]))[:, 0]


def test_pictures_of_any_kind_get_the_rewards_of_training(tmp_path):
    """Two sentences that are averaged, an alpha, settings that are nobody's default."""
    scorer = Scorer(
        ["a car, red", "it's [a] car"], baseline="a car", alpha=0.5, clip="nano",
        overrides=["clip.preprocess=squash", "renormalise=false", "compute=cpu"],
    )  # fmt: skip
    expected = of_training(
        PICTURES, 'prompt=["a car, red", "it\'s [a] car"]', "baseline=a car",
        "alpha=0.5", "clip.preprocess=squash", "renormalise=false",
    )  # fmt: skip
    Image.fromarray(PICTURES[1]).save(tmp_path / "1.png")
    kinds = [PICTURES[0], str(tmp_path / "1.png"), Image.fromarray(PICTURES[2])]
    for given in (PICTURES, list(PICTURES), kinds, (one for one in PICTURES)):
        np.testing.assert_allclose(scorer(given), expected, rtol=0, atol=2e-6)
    mixed = scorer([PICTURES[0], PICTURES[1][:, :30], PICTURES[2]])  # of two sizes
    np.testing.assert_allclose(mixed[[0, 2]], expected[[0, 2]], rtol=0, atol=2e-6)
    assert abs(mixed[1] - expected[1]) > 1e-4
    assert scorer([]).shape == (0,)


def test_a_sentence_is_never_a_setting():
    """As nothing in it means anything to Hydra, OmegaConf or a shell."""
    sentence = """a ${car}, [red] = "it's" \\ 车"""
    found = Scorer(sentence, **SAID)(PICTURES)
    assert np.isfinite(found).all()
    other = Scorer(sentence.replace("car", "dog"), **SAID)(PICTURES)
    assert np.abs(found - other).max() > 1e-4


def test_a_scorer_is_made_within_a_program_that_uses_hydra_itself(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        assert len(Scorer("a car", **SAID)(PICTURES)) == 3
        assert GlobalHydra.instance().hydra is theirs


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prompt": ["a", 3]}, r"prompt is \['a', 3\]: give a sentence"),
        ({"prompt": "a " * 100}, "reads 30 and would not see its end"),
        ({"clip": "nan0"}, "clip=nan0 does not exist.*Did you mean nano"),
        ({"clip": "nano,tiny"}, "clip names 2 models: give one"),
        ({"overrides": ["alpha=1"]}, "alpha=1 is no override here"),
        ({"overrides": ["precision=x"]}, "There is no setting precision"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(changed, told):
    with pytest.raises(ConfigError, match=told):
        Scorer(**{"prompt": "a", **SAID, **changed})


def test_what_is_no_picture_is_one_sentence(tmp_path):
    scorer = Scorer("a car", **SAID)
    for one in (PICTURES[0] / 255.0, PICTURES[0, 0], PICTURES[:, :, :, 0], None, b""):
        with pytest.raises(ConfigError, match=r"A picture is .*, but must be an array"):
            scorer([one])
    for single in ("1.png", tmp_path, Image.new("RGB", (9, 9))):
        with pytest.raises(ConfigError, match="A single picture is given: give a list"):
            scorer(single)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="is not a picture that can be read"):
        scorer([tmp_path / "1.png"])


@pytest.mark.long
def test_the_page_runs_as_it_stands(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("experiment=smoke", "log=none", "clip=nano", "compute.workers=0")
    assert program(*words, "name=NAME").code == 0
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.S)
    assert len(blocks) == 4
    (tmp_path / "page.py").write_text("\n".join(blocks))
    command = [sys.executable, "page.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "instead of" in done.stdout
    assert (tmp_path / "policy.onnx").stat().st_size > 1000
