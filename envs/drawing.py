"""Pictures of small environments, drawn off screen with pygame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pygame
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Point = tuple[float, float]

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (30, 30, 30)
BLUE: Colour = (63, 106, 191)
BROWN: Colour = (202, 152, 101)
RED: Colour = (200, 60, 60)
GREEN: Colour = (60, 150, 90)


class Canvas:
    """A white picture with world coordinates: x to the right, y upwards, the origin in the middle.

    Args:
        span: world units from the left to the right edge.
        size: width and height in pixels.
    """

    def __init__(self, span: float = 6.0, size: tuple[int, int] = (600, 400)) -> None:
        self.surface = pygame.Surface(size)
        self.surface.fill(WHITE)
        self.size, self.scale = size, size[0] / span

    def pixel(self, point: Point) -> tuple[int, int]:
        """World to pixel coordinates."""
        x, y = (max(-1e4, min(1e4, value)) for value in point)  # pygame refuses coordinates beyond 32 bits
        return round(self.size[0] / 2 + x * self.scale), round(self.size[1] / 2 - y * self.scale)

    def line(self, start: Point, end: Point, colour: Colour = BLACK, width: float = 0.02) -> None:
        pixels = max(1, round(width * self.scale))
        pygame.draw.line(self.surface, colour, self.pixel(start), self.pixel(end), pixels)

    def disc(self, centre: Point, radius: float, colour: Colour = BLUE) -> None:
        pygame.draw.circle(self.surface, colour, self.pixel(centre), max(2, round(radius * self.scale)))

    def box(self, centre: Point, width: float, height: float, colour: Colour = BLACK) -> None:
        left, top = self.pixel((centre[0] - width / 2, centre[1] + height / 2))
        pygame.draw.rect(self.surface, colour, (left, top, round(width * self.scale), round(height * self.scale)))

    def bars(self, values: Sequence[float]) -> None:
        """One upright bar a value, squashed into the picture."""
        self.line((-3.0, 0.0), (3.0, 0.0))
        width = 5.0 / max(len(values), 1)
        for i, value in enumerate(values):
            height = 1.8 * float(np.tanh(value / 2.0))
            centre = (-2.5 + (i + 0.5) * width, height / 2)
            self.box(centre, 0.7 * width, abs(height) + 0.01, BLUE if value > 0 else RED)

    def image(self) -> NDArray[np.uint8]:
        """``[H, W, 3]``."""
        return np.transpose(pygame.surfarray.array3d(self.surface), (1, 0, 2)).copy()
