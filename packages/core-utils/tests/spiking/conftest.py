import importlib.util
from pathlib import Path

import jaxtyping
import pytest

if importlib.util.find_spec("torch") is None:
    torch_free = {"test_events_camera.py", "test_events_frames.py", "test_events_pose.py", "test_events_readers.py"}
    collect_ignore = [file.name for file in Path(__file__).parent.glob("test_*.py") if file.name not in torch_free]


@pytest.fixture
def as_users_run_it():
    """Without the tests' own type checks, which would refuse bad input before the code under test does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
