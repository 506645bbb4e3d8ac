import sys

import pytest

from core_utils.errors import UserError, one_line
from core_utils.user_code import call_named

CODE = """
from dataclasses import dataclass

@dataclass
class Thing:
    size: int

def make(size=3):
    return Thing(size)

def broken():
    raise OSError("no disk\\nsecond line")

number = 5
"""


class OurError(UserError):
    pass


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "their_code.py").write_text(CODE)
    return tmp_path


@pytest.mark.parametrize("place", ["their_code", "their_code.py", "absolute"])
def test_a_function_is_found_in_a_module_and_in_a_file(here, place):
    place = f"{here / 'their_code.py'}" if place == "absolute" else place
    assert call_named(f"{place}:make").size == 3
    assert call_named(f"{place}:make", {"size": 7}).size == 7


def test_a_file_does_not_take_the_name_of_a_module_that_is_there(here):
    (here / "json.py").write_text("def make():\n    return 'theirs'\n")
    import json

    assert call_named("json.py:make") == "theirs"
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("none.py:make", "none.py does not exist"),
        ("absent_module:make", "no module 'absent_module' (it must lie on the Python path or here)"),
        ("absent_module.part:make", "no module 'absent_module' (it must lie on the Python path or here)"),
        ("torn.py:make", "torn.py cannot be imported: SyntaxError: invalid syntax (torn.py, line 1)"),
        ("needs.py:make", "needs.py cannot be imported: ModuleNotFoundError: No module named 'absent_module'"),
        ("needs:make", "needs cannot be imported: ModuleNotFoundError: No module named 'absent_module'"),
        ("their_code.py:mak", "their_code.py has no function 'mak' (did you mean 'make'?)"),
        ("their_code.py:number", "their_code.py has no function 'number'"),
        ("their_code.py:broken", "their_code.py:broken() failed: OSError: no disk"),
    ],
)
def test_what_cannot_be_called_is_named(here, name, complaint):
    (here / "torn.py").write_text("make = = 3")
    (here / "needs.py").write_text("import absent_module")
    with pytest.raises(OurError) as caught:
        call_named(name, error=OurError)
    assert str(caught.value) == complaint
    assert "torn" not in sys.modules


def test_an_exception_becomes_one_line():
    assert one_line(ValueError("\n  first \nsecond")) == "ValueError: first"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 500), longest=10) == "ValueError: xxxxxxxxxx"
