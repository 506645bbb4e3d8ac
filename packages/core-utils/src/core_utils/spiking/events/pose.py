"""Where an object stands in the picture: small images turned, mirrored, shifted and scaled."""

import numpy as np

from core_utils.errors import UserError


def random_pose(
    images: np.ndarray,
    rng: np.random.Generator | int,
    *,
    size: int | None = None,
    mirror: float = 0.5,
    rotation: float = 20.0,
    shift: float = 3.0,
) -> np.ndarray:
    """Gives every image a pose of its own, in one bilinear resampling; what comes from outside the image is 0.

    Args:
        images: shape [n, height, width], uint8, or floating in [0, 1].
        rng: generator or seed.
        size: height and width of the result in pixels, the whole image scaled to it; None keeps the image's.
        mirror: probability of mirroring left to right.
        rotation: largest angle either way, degrees; uniform.
        shift: largest shift either way in x and in y, pixels of the result; uniform.

    Returns:
        float32 in [0, 1], shape [n, size, size] or that of `images`.

    Raises:
        UserError: another shape, or intensities outside the range.
    """
    images, rng = intensities(images), np.random.default_rng(rng)
    n, height, width = images.shape
    rows, columns = (height, width) if size is None else (size, size)
    sign = np.where(rng.random(n) < mirror, -1, 1)
    angle = np.deg2rad(rng.uniform(-rotation, rotation, n))
    down, right = rng.uniform(-shift, shift, (2, n)) * [[height / rows], [width / columns]]

    # From a pixel of the result back to its place in the image, both measured from their centres.
    y = _from_centre(rows, height)[None, :, None] - down[:, None, None]
    x = _from_centre(columns, width)[None, None, :] - right[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    source_y = cos * y - sin * x + (height - 1) / 2
    source_x = sign[:, None, None] * (sin * y + cos * x) + (width - 1) / 2
    return _bilinear(images, source_y, source_x)


def intensities(images: np.ndarray) -> np.ndarray:
    """The images as float32 in [0, 1], shape [n, height, width].

    Raises:
        UserError: another shape, or intensities outside [0, 1].
    """
    if images.ndim != 3:
        raise UserError(f"images must be [n, height, width], got shape {list(images.shape)}")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images must be uint8 or floating in [0, 1], got {images.dtype}")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"intensities must lie in [0, 1], got {images.min()} to {images.max()}", "divide by the largest"
        )
    return images.astype(np.float32)


def _from_centre(pixels: int, extent: int) -> np.ndarray:
    """Centres of `pixels` equal parts of an axis of length `extent`, measured from its middle."""
    return (np.arange(pixels) + 0.5) * (extent / pixels) - extent / 2


def _bilinear(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The images [n, height, width] at the places y, x [n, rows, columns], with zeros around them."""
    n, height, width = images.shape
    framed = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    y, x = np.clip(y, -1, height) + 1, np.clip(x, -1, width) + 1
    top, left = y.astype(np.intp), x.astype(np.intp)
    y_part, x_part = (y - top).astype(np.float32), (x - left).astype(np.float32)
    image = np.arange(n)[:, None, None]
    upper = framed[image, top, left] * (1 - x_part) + framed[image, top, left + 1] * x_part
    lower = framed[image, top + 1, left] * (1 - x_part) + framed[image, top + 1, left + 1] * x_part
    return upper * (1 - y_part) + lower * y_part
