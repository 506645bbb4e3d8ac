import importlib.util
from pathlib import Path

import jaxtyping
import pytest

if importlib.util.find_spec("torch") is None:
    files = [file.name for file in Path(__file__).parent.glob("test_*.py")]
    collect_ignore = [name for name in files if not name.startswith("test_events_")]


@pytest.fixture
def as_users_run_it():
    """Without the tests' own type checks, which would refuse bad input before the code under test does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
