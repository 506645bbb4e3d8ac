"""The default robot, for tests that fly it."""

import functools

from jethr2 import RobotParams, load_model, takeoff_trim


@functools.cache
def robot():
    model = load_model(RobotParams())
    return model, takeoff_trim(model)
