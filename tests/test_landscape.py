"""`python -m vlmrm_exp.landscape` on the real worlds, in small."""

import json

import numpy as np
import pytest
from PIL import Image

from vlmrm_exp.config import ConfigError
from vlmrm_exp.landscape import panels, parse, rescaled, survey


def test_panels_show_the_papers_ranges_and_each_look():
    near, far, plain, realistic = panels(parse(["states=11"]))
    assert (near.x[0], near.x[-1]) == (-0.25, 0.25)
    assert (far.x[0], far.x[-1]) == (-np.pi, np.pi)
    assert (plain.x[0], plain.x[-1]) == (-1.2, 0.6)
    np.testing.assert_array_equal(near.rows[:, 2], near.x)
    assert not near.rows[:, [0, 1, 3]].any()
    np.testing.assert_array_equal(realistic.rows[:, 0], plain.x)
    looks = [p.config.task.textures for p in (near, far, plain, realistic)]
    assert looks == ["plain", "plain", "plain", "realistic"]
    (only,) = panels(parse(["task=mountaincar", "textures=plain"]))
    assert only.title == "mountaincar, plain"


def test_the_goal_that_is_shaded_is_where_the_world_says_it_is():
    from vlmrm_exp.envs.cartpole import in_bounds
    from vlmrm_exp.envs.mountain_car import GOAL

    near, _, plain, _ = panels(parse(["states=501"]))
    inside = (near.x >= near.goal[0]) & (near.x <= near.goal[1])
    np.testing.assert_array_equal(inside, in_bounds(near.rows))
    assert plain.goal[0] == GOAL


def test_rescaled_goes_from_0_to_1_in_the_same_order():
    np.testing.assert_allclose(rescaled(np.array([-2.0, 6, 0])), [0, 1, 0.25])


def test_landscape_is_highest_near_the_goal_and_written_whole(tmp_path, capsys):
    asked = ["states=41", "alpha=0,0.5", f"cache={tmp_path}/c", f"out={tmp_path}/out"]
    result = survey(parse(asked))
    written = json.loads((tmp_path / "out" / "landscape.json").read_text())
    assert written == result
    lines = written["rows"]
    assert len(lines) == 4 * 2
    for line in lines:
        reward = np.array(line["reward"])
        assert len(reward) == len(line["x"]) == 41
        assert line["maximum_at"] == line["x"][reward.argmax()]
        if line["task"] == "cartpole":
            assert abs(line["maximum_at"]) < 0.3
        else:
            assert line["maximum_at"] > 0.2
            assert line["pearson_graded"] > 0.8
    assert lines[0]["reward"] != lines[1]["reward"]  # of alphas
    assert lines[4]["reward"] != lines[6]["reward"]  # of looks
    assert "mountaincar, realistic" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "landscape.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1200
    # The realistic mountain's sky is under its panel: the pictures are there.
    blue = (pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 2] > 150)
    assert blue[-300:, 600:].sum() > 2000
    assert (tmp_path / "out" / "landscape.svg").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("task=kneeling", "needs one of cartpole, mountaincar"),
        ("textures=marble", "needs one of plain, realistic"),
        ("states=2", "states is 2"),
        ("alpha=-1", "alpha is -1.0"),
        ("task=[]", "task is an empty list"),
    ],
)
def test_what_has_no_landscape_is_refused(argument, words):
    with pytest.raises(ConfigError, match=words):
        parse([argument])
