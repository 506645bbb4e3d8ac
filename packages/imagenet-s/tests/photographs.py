"""Real JPEGs of the photographs that scikit-learn and scikit-image bring along, and files that are bad in every way."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SKLEARN = ("china.jpg", "flower.jpg")
SKIMAGE = ("astronaut", "coffee", "chelsea", "rocket", "motorcycle_left", "grass", "gravel", "brick")


def originals():
    """Name and bytes of the photographs that come as JPEGs, as they are."""
    import skimage
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    yield from ((name, (folder / name).read_bytes()) for name in SKLEARN)
    yield "rocket.jpg", (Path(skimage.__file__).parent / "data" / "rocket.jpg").read_bytes()


@cache
def photograph(name):
    """One photograph as uint8 [h, w, 3], by the names in SKLEARN and SKIMAGE."""
    import skimage
    import sklearn.datasets

    if name in SKLEARN:
        path = Path(sklearn.datasets.__file__).parent / "images" / name
    else:
        folder = Path(skimage.__file__).parent / "data"
        path = next(folder / f"{name}{suffix}" for suffix in (".jpg", ".png") if (folder / f"{name}{suffix}").exists())
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def jpeg(image, *, quality=92, subsampling="4:2:0", orientation=None, **options):
    """A JPEG file of an array or a Pillow image."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    if picture.mode in ("RGB", "YCbCr"):
        options["subsampling"] = subsampling
    picture.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def imagenet_like(height=375, width=500, names=(*SKLEARN, *SKIMAGE), **options):
    """(name, JPEG) of the photographs at the size that most of ImageNet has, quality 92 and 4:2:0."""
    for name in names:
        picture = Image.fromarray(photograph(name)).resize((width, height), Image.Resampling.LANCZOS)
        yield f"{Path(name).stem}.JPEG", jpeg(picture, **options)


def small(count=6, height=60, width=80, seed=0, **options):
    """JPEGs of pieces of photographs: quick to decode, and no two alike."""
    rng = np.random.default_rng(seed)
    large = [
        image for image in map(photograph, (*SKLEARN, *SKIMAGE)) if image.shape[0] > height and image.shape[1] > width
    ]
    for number in range(count):
        whole = large[number % len(large)]
        top, left = (
            int(rng.integers(0, side - want)) for side, want in zip(whole.shape, (height, width), strict=False)
        )
        yield jpeg(np.ascontiguousarray(whole[top : top + height, left : left + width]), **options)


def class_folder(root, count=6, classes=("cat", "dog"), **options):
    """Writes an ImageFolder of small photographs and returns its root."""
    for number, data in enumerate(small(count, **options)):
        folder = Path(root) / classes[number % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"photo {number:03d}.JPEG").write_bytes(data)
    return Path(root)


def odd_files():
    """Name and bytes of files that are images, but not the usual kind."""
    image = photograph("chelsea")[100:160, 200:280]
    picture = Image.fromarray(np.ascontiguousarray(image))
    yield "cmyk.jpg", jpeg(picture.convert("CMYK"))
    yield "grey.jpg", jpeg(picture.convert("L"))
    yield "palette.png", _png(picture.quantize(16))
    yield "alpha.png", _png(Image.merge("RGBA", (*picture.split(), picture.convert("L"))))
    yield "sixteen.png", sixteen_bit_png(np.array([[0, 255, 256], [1000, 65535, 32768]], np.uint16))
    yield "really-a-png.JPEG", _png(picture)
    yield "one.jpg", jpeg(image[:1, :1].copy())
    yield "row.jpg", jpeg(image[:1].copy())
    yield "column.jpg", jpeg(image[:, :1].copy())
    for orientation in range(2, 9):
        yield f"exif-{orientation}.jpg", jpeg(picture, orientation=orientation)


def broken_files():
    """Name and bytes of files that no decoder may turn into an image."""
    whole = jpeg(photograph("chelsea")[100:160, 200:280].copy())
    yield "empty.jpg", b""
    yield "garbage.jpg", np.random.default_rng(0).bytes(2000)
    yield "header-only.jpg", whole[:20]
    yield "truncated.jpg", whole[: len(whole) * 2 // 3]
    yield "text.jpg", b"this is no image\n"
    yield "bomb.png", bomb_png()
    yield "bomb.jpg", bomb_jpeg()


def write_files(folder, files):
    """Writes (name, bytes) pairs into a folder and returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files:
        (folder / name).write_bytes(data)
    return folder


def sixteen_bit_png(values):
    """A PNG of uint16 RGB values, [h, w], the same in the three channels; Pillow cannot write one."""
    rows = np.repeat(values[..., None], 3, axis=-1).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return _png_file(values.shape[1], values.shape[0], 16, zlib.compress(lines))


def bomb_png(side=30_000):
    """A PNG whose head claims 900 megapixels."""
    return _png_file(side, side, 8, zlib.compress(b"\0" * 1000))


def bomb_jpeg(side=30_000):
    """A small JPEG whose frame header claims 900 megapixels."""
    whole = bytearray(jpeg(photograph("chelsea")[:64, :64].copy()))
    frame = whole.index(b"\xff\xc0")
    whole[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(whole)


def _png_file(width, height, depth, content):
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", content), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
