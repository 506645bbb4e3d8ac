import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from core_utils.errors import UserError
from core_utils.settings import settings

pytestmark = pytest.mark.bare


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True)
class Inner:
    width: int = 4


@dataclass(frozen=True)
class Config:
    epochs: int = 10
    learning_rate: float = 1e-3
    loss: Literal["tet", "sdt"] = "tet"
    mode: Mode = Mode.FAST
    name: str = "run"
    folder: Path | None = None
    stages: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    verbose: bool = False

    def __post_init__(self):
        if self.epochs < 1:
            raise UserError(f"epochs must be at least 1, got {self.epochs}")


def toml(tmp_path, text):
    file = tmp_path / "config.toml"
    file.write_text(text)
    return file


def test_typed_beats_pair_beats_file_beats_default(tmp_path):
    file = toml(tmp_path, 'epochs = 2\nlearning_rate = 2\nname = "file"\n[inner]\nwidth = 2\n')
    config = settings(
        Config, file=file, pairs=["epochs=3", "learning_rate=3e-3", "inner.width=3"], typed={"epochs": 4, "loss": None}
    )
    assert config == Config(epochs=4, learning_rate=3e-3, name="file", inner=Inner(3))


def test_values_take_the_annotated_type(tmp_path):
    config = settings(
        Config,
        file=toml(tmp_path, 'mode = "exact"\nfolder = "a/b"\nstages = [3, 4, 5]\nlearning_rate = 1\nverbose = true'),
    )
    assert config.mode is Mode.EXACT
    assert config.folder == Path("a/b")
    assert config.stages == (3, 4, 5)
    assert isinstance(config.learning_rate, float)
    assert settings(Config, pairs=["name=plain text"]).name == "plain text"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epoch = 3", r"config.toml: unknown key 'epoch' \(did you mean 'epochs'\?\)"),
        ("[inner]\nwidht = 3", r"unknown key 'inner.widht' \(did you mean 'width'\?\)"),
        ("epochs = -1", "config.toml: epochs must be at least 1, got -1"),
        ("epochs = 1.5", "config.toml: epochs must be of type int, got 1.5"),
        ("epochs = true", "epochs must be of type int, got True"),
        ("learning_rate = nan", "config.toml: learning_rate must be a finite number, got nan"),
        ('learning_rate = "fast"', "learning_rate must be of type float"),
        ('loss = "mse"', "loss must be one of tet, sdt, got 'mse'"),
        ('mode = "slow"', "mode must be one of fast, exact"),
        ("stages = [1, 2.5]", "stages must be of type int"),
        ("[epochs]\na = 1", "epochs is no table"),
        ("epochs = ", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, text, complaint):
    with pytest.raises(UserError, match=complaint):
        settings(Config, file=toml(tmp_path, text))


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        (["epochs"], "--set epochs: expected key=value"),
        (["epochs=-3"], "--set epochs=-3: epochs must be"),
        (["x=1"], "--set x=1: unknown key 'x'"),
    ],
)
def test_a_bad_pair_is_named(pairs, complaint):
    with pytest.raises(UserError, match=complaint):
        settings(Config, pairs=pairs)


def test_a_bad_option_is_named():
    with pytest.raises(UserError, match="--learning-rate: learning_rate must be a finite number"):
        settings(Config, typed={"learning_rate": float("inf")})


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        settings(Config, file=tmp_path / "nowhere.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "binary", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            settings(Config, file=file)
