"""The humanoid's body and its textures: Gymnasium's own humanoid.xml, in memory.

The paper found realistic colours critical (section 4.3). Its own textures are stock
photographs under licence; these are made from formulas instead, so the picture is not
the paper's.
"""

from pathlib import Path

import mujoco
import numpy as np
from gymnasium.envs.mujoco import mujoco_env

NUM_QPOS, NUM_QVEL = 24, 23
STATE_SIZE = NUM_QPOS + NUM_QVEL  # (qpos, qvel)


def humanoid_spec() -> mujoco.MjSpec:
    """Gymnasium's humanoid.xml, editable."""
    assets = Path(mujoco_env.__file__).parent / "assets"
    return mujoco.MjSpec.from_file(str(assets / "humanoid.xml"))


def dress(spec: mujoco.MjSpec, textures: str) -> None:
    """Change a humanoid spec's colours in place; `plain` leaves Gymnasium's."""
    if textures == "plain":
        return
    sky = next(t for t in spec.textures if t.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    sky.rgb1, sky.rgb2 = (0.86, 0.91, 0.96), (0.30, 0.52, 0.80)
    _paint(spec, "texplane", _tiles())
    floor = spec.material("MatPlane")
    floor.texrepeat = (10, 10)  # a tile of 1 m: the floor is 40 m and a picture 4 tiles
    floor.reflectance = 0.0
    floor.specular = floor.shininess = 0.1
    spec.geom("floor").rgba = (1, 1, 1, 1)
    _paint(spec, "texgeom", _metal())
    body = spec.material("geom")
    body.specular, body.shininess = 0.8, 0.8
    for geom in spec.geoms:
        if geom.name != "floor":
            geom.rgba = _part_colour(geom.name)
    spec.visual.headlight.ambient = (0.35, 0.35, 0.35)
    spec.visual.headlight.diffuse = (0.45, 0.45, 0.45)
    # Sunlight from the front and above: seen from the camera the body is not a shadow.
    light = spec.lights[0]
    light.dir = (-0.5, 0.3, -1.0)
    light.diffuse = (0.6, 0.58, 0.55)
    # Without haze the floor meets the sky at a line, as outdoors.
    spec.visual.map.fogstart, spec.visual.map.fogend = 8, 25


def _part_colour(name: str) -> tuple[float, float, float, float]:
    """White shell, dark joints and limbs, as on many humanoid robots."""
    if name == "head":
        return (0.30, 0.33, 0.38, 1)
    if "hand" in name or "foot" in name:
        return (0.25, 0.27, 0.32, 1)
    if "arm" in name or "shin" in name:
        return (0.62, 0.66, 0.72, 1)
    return (0.88, 0.90, 0.94, 1)


def _paint(spec: mujoco.MjSpec, name: str, pixels: np.ndarray) -> None:
    """Replace a texture's pixels: (H, W, 3) uint8."""
    texture = next(t for t in spec.textures if t.name == name)
    texture.builtin = mujoco.mjtBuiltin.mjBUILTIN_NONE
    texture.mark = mujoco.mjtMark.mjMARK_NONE
    texture.type = mujoco.mjtTexture.mjTEXTURE_2D
    texture.colorspace = mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR
    texture.height, texture.width, texture.nchannel = pixels.shape
    texture.data = pixels.tobytes()


def _tiles() -> np.ndarray:
    """Four stone tiles with joints, (256, 256, 3) uint8."""
    rng = np.random.default_rng(0)
    shade = np.kron(rng.uniform(0.92, 1.0, (4, 4)), np.ones((64, 64)))
    grain = rng.normal(0, 0.015, (256, 256))
    pixels = np.array([176, 168, 156]) * (shade + grain)[..., None]
    edge = np.arange(256) % 64 < 2
    pixels[edge] = pixels[:, edge] = (128, 122, 114)
    return pixels.clip(0, 255).astype(np.uint8)


def _metal() -> np.ndarray:
    """Brushed metal with a panel seam, (128, 128, 3) uint8."""
    rng = np.random.default_rng(1)
    streaks = 1 + rng.normal(0, 0.02, (128, 1)) + rng.normal(0, 0.01, (128, 128))
    pixels = np.array([236, 238, 242]) * streaks[..., None]
    pixels[:2] = (150, 155, 165)
    return pixels.clip(0, 255).astype(np.uint8)
