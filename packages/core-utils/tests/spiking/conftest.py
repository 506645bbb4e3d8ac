import importlib.util

import jaxtyping
import pytest

if importlib.util.find_spec("torch") is None:
    collect_ignore = [f"test_{name}.py" for name in ("diagnostics", "networks", "neurons", "norm", "surrogates")]


@pytest.fixture
def as_users_run_it():
    """Without the tests' own type checks, which would refuse bad input before the code under test does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
