"""Pictures are rewards: what a task looks like must not change unnoticed.

The frames in tests/golden/ were looked at. A new MuJoCo, driver or drawing library may
round otherwise, so a small mean difference is allowed; another viewpoint, texture,
light or colour of a part is not. To accept a change: delete the picture, run the test,
look at the new one.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmrm_exp.config import TaskConfig
from vlmrm_exp.envs.poses import ARMS, LEGS, PoseLibrary
from worlds import make_renderer

GOLDEN = Path(__file__).parent / "golden"
# Levels of 255, mean over the picture. Wrong light or texture differs by 5 and more.
TOLERANCE = 1.5
# The same over any square of 8 pixels: a body fills few of them. Its head painted white
# differs by 21 to 26.
TOLERANCE_SQUARE = 14

LOOKS = [
    ("cartpole", "plain", "fixed"),
    ("mountain_car", "plain", "fixed"),
    ("mountain_car", "realistic", "fixed"),
    *(("humanoid", t, c) for t in ("plain", "realistic") for c in ("fixed", "track")),
    ("humanoid", "realistic", "side"),
]


def state_of(env: str) -> np.ndarray:
    if env == "humanoid":
        names = [pose.name for pose in LEGS], [pose.name for pose in ARMS]
        kneeling, raised = names[0].index("kneeling"), names[1].index("raised")
        return PoseLibrary().state(LEGS[kneeling], ARMS[raised])
    return np.array([0.5, 0.0, -0.3, 0.0] if env == "cartpole" else [0.1, 0.0])


@pytest.mark.parametrize(("env", "textures", "camera"), LOOKS)
def test_picture_equals_the_golden_one(env, textures, camera):
    task = TaskConfig("x", env, episode_length=1, textures=textures, camera=camera)
    renderer = make_renderer(task, 96, effects=False)
    frame = renderer.render(state_of(env)[None])[0]
    renderer.close()
    path = GOLDEN / f"{env}-{textures}-{camera}.png"
    if not path.exists():
        Image.fromarray(frame).save(path, optimize=True)
        pytest.fail(f"{path} did not exist and was drawn: look at it.")
    golden = np.asarray(Image.open(path))
    apart = np.abs(frame.astype(int) - golden.astype(int)).mean(axis=2)
    difference = apart.mean()
    assert difference < TOLERANCE, f"differs by {difference:.2f} levels on average"
    height, width = np.array(apart.shape) // 8
    squares = apart[:, : 8 * width].reshape(height, 8, width, 8).mean(axis=(1, 3))
    assert squares.max() < TOLERANCE_SQUARE, f"a part differs by {squares.max():.0f}"
