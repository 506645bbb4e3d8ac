"""The default robot, for tests that fly it or draw it."""

import functools

import pytest

from jethr2 import RobotParams, load_model, takeoff_trim
from jethr2.errors import JetHR2Error
from jethr2.rendering import Camera


@functools.cache
def robot():
    model = load_model(RobotParams())
    return model, takeoff_trim(model)


def needs_gl():
    """Skips where no GL backend gives a picture."""
    try:
        Camera(robot()[0], 16, 16).close()
    except JetHR2Error as error:
        pytest.skip(str(error))
