"""Image files that tests write themselves."""

from io import BytesIO

from PIL import Image

from imagenet_s.probes import encode_jpeg, synthetic_picture

PICTURE = synthetic_picture(40, 56)


def saved(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tagged(orientation, picture=PICTURE):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(picture), "JPEG", exif=exif)


def declaring(width, height):
    """A JPEG of 56x40 pixels whose header says otherwise."""
    data = bytearray(encode_jpeg(PICTURE))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def with_thumbnail():
    """A JPEG whose EXIF block holds a whole JPEG, end marker and all."""
    exif = Image.Exif()
    exif[0x010E] = "x" * 8
    thumbnail = encode_jpeg(PICTURE[:16, :16])
    return saved(Image.fromarray(PICTURE), "JPEG", exif=exif.tobytes() + thumbnail)
