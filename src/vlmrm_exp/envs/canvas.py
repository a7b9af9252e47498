"""The drawing surface of CartPole and MountainCar: pygame without window or display.

Everything is drawn at Gymnasium's size, so that the plain looks equal Gymnasium's
pictures to the pixel, and scaled to the asked height by area averaging (pygame's: its
rounding darkens by up to 3 of 255, but it takes half of Pillow's time).
"""

from collections.abc import Sequence

import numpy as np
import pygame
from pygame import gfxdraw

WIDTH, HEIGHT = 600, 400  # px, Gymnasium's
DRAWN_BY = f"pygame-ce {pygame.version.ver}, SDL {pygame.version.SDL}"

Color = tuple[int, int, int]


class Canvas:
    """A background that is drawn over again and again.

    The surface and `pixels` share their memory: clearing and reading are plain array
    copies, many times faster than going through pygame.
    """

    def __init__(self, frame_height: int, upside_down: bool) -> None:
        """Start white; `upside_down`: y grows upwards, as in Gymnasium's drawings."""
        self.pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
        self.surface = pygame.image.frombuffer(self.pixels.data, (WIDTH, HEIGHT), "RGB")
        self.frame_shape = (frame_height, round(frame_height * WIDTH / HEIGHT), 3)
        self._background = self.pixels.copy()
        self._upside_down = upside_down
        self._scaled = np.zeros(self.frame_shape, np.uint8)
        self._scaled_surface = pygame.image.frombuffer(
            self._scaled.data, self.frame_shape[1::-1], "RGB"
        )

    def keep_background(self) -> None:
        """Make what is drawn now the picture that `clear` restores."""
        self._background = self.pixels.copy()

    def clear(self) -> None:
        """Restore the background."""
        np.copyto(self.pixels, self._background)

    def read(self, frame: np.ndarray) -> None:
        """Copy the drawing, scaled, into a frame (H, W, 3) uint8."""
        drawn = self.pixels
        if self.frame_shape != drawn.shape:
            size = self.frame_shape[1::-1]
            pygame.transform.smoothscale(self.surface, size, self._scaled_surface)
            drawn = self._scaled
        np.copyto(frame, drawn[::-1] if self._upside_down else drawn)

    def polygon(
        self,
        corners: Sequence[tuple[float, float]],
        angle: float,
        origin: tuple[float, float],
        color: Color,
    ) -> None:
        """Fill a polygon whose corners are turned by `angle` rad about `origin`."""
        turned = [pygame.Vector2(corner).rotate_rad(angle) for corner in corners]
        placed = [(c[0] + origin[0], c[1] + origin[1]) for c in turned]
        gfxdraw.aapolygon(self.surface, placed, color)
        gfxdraw.filled_polygon(self.surface, placed, color)

    def disc(self, center: tuple[float, float], radius: int, color: Color) -> None:
        """Fill a circle around the pixel that holds `center`."""
        x, y = int(center[0]), int(center[1])
        gfxdraw.aacircle(self.surface, x, y, radius, color)
        gfxdraw.filled_circle(self.surface, x, y, radius, color)
