import importlib
import sys

import pytest

pytestmark = pytest.mark.bare

PACKAGE = """
from core_utils.lazy import lazy
__all__ = ["Heavy", "near", "tools"]
near = 1
__getattr__, __dir__ = lazy(__name__, {"frames": ("Heavy",)}, modules=("tools",))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "lazy_example"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "frames.py").write_text("class Heavy: ...\nhidden = 2\n")
    (folder / "tools.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazy_example")
    for name in [name for name in sys.modules if name.startswith("lazy_example")]:
        del sys.modules[name]


def test_a_module_is_loaded_when_one_of_its_names_is_asked_for(package):
    assert "lazy_example.frames" not in sys.modules
    assert package.Heavy is sys.modules["lazy_example.frames"].Heavy
    assert package.near == 1


def test_public_modules_are_names_like_others(package):
    assert package.tools is sys.modules["lazy_example.tools"]


def test_what_is_not_public_is_not_there(package):
    with pytest.raises(AttributeError, match="'lazy_example' has no attribute 'hidden'"):
        _ = package.hidden
    assert dir(package) == ["Heavy", "near", "tools"]
