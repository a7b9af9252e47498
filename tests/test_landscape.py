"""`python -m vlmrm_exp.landscape` on the real worlds, in small."""

import json

import numpy as np
import pytest
from PIL import Image

import studies
from studies import Folders
from vlmrm_exp import landscape
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs.cartpole import MAX_ANGLE, in_bounds
from vlmrm_exp.envs.toy_renderers import FLAG, RIGHT
from vlmrm_exp.landscape import Panel, panels, rescaled

pytestmark = pytest.mark.slow


def panels_of(*words: str) -> list[Panel]:
    return panels(studies.asked(landscape, *words, "clip=nano", "out=x"))


def test_panels_show_the_papers_ranges_and_each_appearance():
    near, far, plain, realistic = panels_of("states=11")
    assert (near.x[0], near.x[-1]) == (-0.25, 0.25)
    assert (far.x[0], far.x[-1]) == (-np.pi, np.pi)
    assert (plain.x[0], plain.x[-1]) == (-1.2, 0.6)
    states = near.states(near.x)
    np.testing.assert_array_equal(states[:, 2], near.x)
    assert not states[:, [0, 1, 3]].any()
    np.testing.assert_array_equal(realistic.states(plain.x)[:, 0], plain.x)
    textures = [p.config.task.textures for p in (near, far, plain, realistic)]
    assert textures == ["plain", "plain", "plain", "realistic"]
    (only,) = panels_of("task=mountaincar", "task.textures=realistic")
    assert only.title == "mountaincar, realistic"
    both = panels_of("task=mountaincar", "task.textures=realistic,plain")
    assert [panel.config.task.textures for panel in both] == ["realistic", "plain"]


def test_the_goal_that_is_shaded_is_where_the_world_says_it_is():
    near, far, plain, _ = panels_of("states=5")  # however few states
    for panel in (near, far):
        assert panel.goal() == pytest.approx((-MAX_ANGLE, MAX_ANGLE), abs=0.004)
        inside = np.linspace(*panel.goal(), 100)
        assert in_bounds(panel.states(inside)).all()
    assert plain.goal() == pytest.approx((FLAG, RIGHT), abs=0.001)


def test_rescaled_goes_from_0_to_1_in_the_same_order():
    np.testing.assert_allclose(rescaled(np.array([-2.0, 6, 0])), [0, 1, 0.25])


def test_landscape_is_highest_near_the_goal_and_written_whole(tmp_path, capsys):
    folders = Folders(tmp_path)
    words = ["states=21", "clip=tiny", "alpha=0,0.5", *folders]
    result = landscape.measure(studies.asked(landscape, *words))
    written = json.loads((folders.out / "landscape.json").read_text())
    assert written == result
    lines = written["rows"]
    assert len(lines) == 4 * 2
    for line in lines:
        reward = np.array(line["reward"])
        assert len(reward) == len(line["x"]) == 21
        assert line["maximum_at"] == line["x"][reward.argmax()]
        if line["task"] == "cartpole":
            assert abs(line["maximum_at"]) < 0.3
        else:
            assert line["maximum_at"] > 0.2
            assert line["pearson_graded"] > 0.8
    assert lines[0]["reward"] != lines[1]["reward"]  # of alphas
    assert lines[4]["reward"] != lines[6]["reward"]  # of textures
    assert "mountaincar, realistic" in capsys.readouterr().out
    with Image.open(folders.out / "landscape.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1200
    # The realistic mountain's sky is under its panel: the pictures are there.
    blue = (pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 2] > 150)
    assert blue[-300:, 600:].sum() > 2000
    assert (folders.out / "landscape.svg").stat().st_size > 10_000


def test_what_orders_states_by_another_goal_is_not_compared_with(tmp_path, capsys):
    words = ["task=mountaincar", "task.goal=left_hilltop", "clip=nano", "states=9"]
    words += ["task.textures=plain", *Folders(tmp_path)]
    rows = landscape.measure(studies.asked(landscape, *words))["rows"]
    assert {line["pearson_graded"] for line in rows} == {None}
    assert "None" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["task=kneeling"], "task=kneeling has no landscape"),
        (["task.textures=marble"], "textures is 'marble', but must be one of plain"),
        (["task.textures=plain,plain"], "names plain twice"),
        (["states=2"], "states is 2"),
        (["alpha=-1"], "alpha is -1.0"),
        (["task=[]"], "task is an empty list"),
    ],
)
def test_what_has_no_landscape_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        panels_of(*words)
