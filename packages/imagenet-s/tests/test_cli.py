"""The command line."""

import json
import sys

import pytest

from imagenet_s import cli


@pytest.fixture
def program(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["imagenet-s", *words])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def test_decoders_are_listed_with_versions_and_equals(program):
    code, out, _ = program("list", "--json")
    facts = json.loads(out)
    assert code == 0
    listed = {row["name"]: row for row in facts["decoders"]}
    assert listed["pillow"]["version"]
    assert all(row["version"] or row["missing"] for row in listed.values())
    together = next(group for group in facts["identical"] if "pillow" in group)
    assert "turbo" in together
    assert "turbo-fastdct" not in together


def test_tables_name_what_gives_the_same_pixels(program):
    code, out, _ = program("list")
    assert code == 0
    assert "pillow-bilinear" in out
    assert "same pixels here: " in out
