"""Objects and designs: what is read, and what is refused with a line that says why."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from core_utils.data import DataError
from core_utils.errors import UserError
from diffract import ConfigError, Design, Grid, load_objects, placed
from diffract.units import metres

GRID = Grid((24, 30), 0.3e-3, 0.75e-3)


def write_idx(folder, count=12, zipped=False):
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        content = struct.pack(">4I", 2051, count, 28, 28) + images.tobytes()
        labels = struct.pack(">2I", 2049, count) + bytes(count)
        for name, data in ((f"{part}-images-idx3-ubyte", content), (f"{part}-labels-idx1-ubyte", labels)):
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return images


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_and_a_sixth_is_held_out(tmp_path, zipped):
    images = write_idx(tmp_path / "mnist", zipped=zipped)
    objects = load_objects(tmp_path / "mnist")
    assert (len(objects.train), len(objects.validation), len(objects.test)) == (10, 2, 12)
    np.testing.assert_allclose(objects.train[0], images[0] / 255, atol=1e-6)


def test_digits_arrays_and_pictures_are_objects_too(tmp_path):
    assert load_objects().test.shape == (360, 8, 8)
    values = np.random.default_rng(0).random((20, 9, 9)).astype(np.float32)
    np.save(tmp_path / "o.npy", values)
    objects = load_objects(tmp_path / "o.npy")
    np.testing.assert_array_equal(objects.test, values[-4:])
    np.savez(tmp_path / "o.npz", x_train=values, x_test=values[:3])
    assert len(load_objects(tmp_path / "o.npz").test) == 3
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, value in enumerate(values[:10]):
        Image.fromarray((255 * value).astype(np.uint8)).save(folder / f"{number}.png")
    np.testing.assert_allclose(load_objects(folder).test, (255 * values[8:10]).astype(np.uint8) / 255, atol=1e-6)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "a.png")
    with pytest.raises(DataError, match=r"a\.png has the shape \(9, 9, 3\)"):
        load_objects(folder)


def test_objects_are_scaled_between_pixel_centres_and_padded_in_the_middle():
    image = np.zeros((1, 4, 4), np.float32)
    image[0, 1, 2] = 1
    out = placed(image, GRID, 16)
    assert out.shape == (1, 24, 30)
    assert out.sum() == pytest.approx(16.0)  # every pixel became sixteen
    rows, columns = np.nonzero(out[0] == out.max())
    assert rows.mean() == pytest.approx(4 + 4 * 1.5 - 0.5)
    assert columns.mean() == pytest.approx(7 + 4 * 2.5 - 0.5)
    np.testing.assert_allclose(placed(np.ones((1, 8, 8), np.float32), GRID, 16)[0, 4:20, 7:23], 1)
    np.testing.assert_array_equal(placed(out, GRID, 16), out)
    with pytest.raises(UserError, match=r"\(40, 40\) pixels do not fit"):
        placed(image, GRID, 40)


def test_damaged_files_are_named_with_what_was_expected(tmp_path):
    write_idx(tmp_path / "mnist")
    file = tmp_path / "mnist/train-images-idx3-ubyte"
    content = file.read_bytes()
    for damaged, message in (
        (content[:-5], r"has 9419 bytes, its header asks for 9424"),
        (b"PK" + content[2:], "not an IDX file"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            load_objects(tmp_path / "mnist")
    for name, value, message in (
        ("a.npy", np.ones((3, 4)), r"shape \(3, 4\)"),
        ("b.npy", np.full((9, 4, 4), -1.0), r"object 0 leaves \[0, 1\]"),
        ("c.npy", np.full((9, 4, 4), np.nan), "object 0 holds NaN"),
    ):
        np.save(tmp_path / name, value)
        with pytest.raises(DataError, match=message):
            load_objects(tmp_path / name)
    np.savez(tmp_path / "d.npz", x_train=np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match="needs x_train and x_test"):
        load_objects(tmp_path / "d.npz")
    (tmp_path / "e.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"e\.npy cannot be read"):
        load_objects(tmp_path / "e.npy")
    with pytest.raises(DataError, match="neither a folder nor"):
        load_objects(tmp_path / "f.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither IDX files nor PNG"):
        load_objects(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.75 mm", 0.75e-3),
        ("4 lambda", 3e-3),
        ("4λ", 3e-3),
        ("27 um", 27e-6),
        ("27µm", 27e-6),
        ("1e-3 m", 1e-3),
        (2e-3, 2e-3),
    ],
)
def test_lengths_are_written_as_people_do(text, expected):
    assert metres("z", text, 0.75e-3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.75", "z has no unit: '0.75' (known: nm, um"),
        ("3 furlongs", "z has the unknown unit 'furlongs'"),
        ("wide", "z is no length: 'wide' (write it as '0.75 mm'"),
        ("-1 mm", "z must be positive"),
        ("0 mm", "z must be positive"),
        (float("nan"), "z must be positive and finite"),
    ],
)
def test_other_lengths_are_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        metres("z", text, 0.75e-3)
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="unknown unit 'lambda'"):
        metres("wavelength", "1 lambda")


def test_presets_hold_the_published_design():
    design = Design.preset("luo2022")
    assert design.grid == Grid((240, 240), 0.3e-3, 0.75e-3)
    assert design.planes.distances == (2e-3, 2e-3, 2e-3, 2e-3, 7e-3)
    assert design.planes.object_to_diffuser == 40e-3
    assert (design.train.n, design.train.batch_size, design.train.epochs) == (20, 4, 100)
    assert design.screens[0].preset == "luo2022"
    assert Design.preset("mini").screens[0].sigma == pytest.approx(1.5 * 0.75e-3)
    with pytest.raises(ConfigError, match="preset must be one of luo2022, mini"):
        Design.preset("tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wavelength": "0.75"}, "wavelength has no unit"),
        ({"pitch": "300 mm"}, "another unit"),
        ({"object_side": 300}, "object_side must lie in 1..240"),
        ({"geometry__n_layers": 0}, "n_layers must be at least 1"),
        ({"geometry__layer_spacing": "0 mm"}, "geometry.layer_spacing must be positive"),
        ({"train__n": 0}, "n must be at least 1"),
        ({"train__epochs": 0}, "epochs must be at least 1"),
        ({"train__learning_rate": 0.0}, "learning_rate must be positive"),
        ({"train__lateral": "-1 mm"}, "train.lateral must be at least 0"),
        ({"diffuser__kind": "random"}, "either sigma or correlation_length"),
        ({"diffuser__kind": "random", "diffuser__sigma": ("1 lambda",)}, "lacks rms_phase"),
    ],
)
def test_designs_refuse_what_cannot_be_built(changes, message):
    with pytest.raises(UserError, match=message):
        Design().with_(**changes)
