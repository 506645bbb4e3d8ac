"""Which libraries are here, in which version, and how to get those that are not."""

from __future__ import annotations

import importlib


def why_not(name: str, module: str, extra: str) -> str | None:
    """Why `name` cannot run here and how to change that; None where it can."""
    if not module:
        return None
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: the wheel is here, its shared library is not
        wanted = f"imagenet-s[{extra}]" if extra else "imagenet-s"
        reason = " ".join(str(error).split())
        return f"{name!r} needs the module {module!r}: pip install '{wanted}' ({reason})"
    return None


def plain(module: str) -> str:
    """The module's own version."""
    return f"{module} {importlib.import_module(module).__version__}"


def pillow() -> str:
    """Pillow and the JPEG library within it."""
    import PIL
    from PIL import features

    turbo = features.version("libjpeg_turbo")
    codec = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    return f"Pillow {PIL.__version__} ({codec})"


def opencv() -> str:
    """OpenCV and the JPEG library within it."""
    import cv2

    lines = [line.strip() for line in cv2.getBuildInformation().splitlines()]
    codec = next((line.partition(":")[2].strip() for line in lines if line.startswith("JPEG:")), "JPEG unknown")
    return f"OpenCV {cv2.__version__} ({codec})"


def ffmpeg() -> str:
    """PyAV and the FFmpeg libraries that decode and scale."""
    import av

    parts = ("libavcodec", "libswscale")
    told = ", ".join(f"{part} {'.'.join(map(str, av.library_versions[part]))}" for part in parts)
    return f"PyAV {av.__version__} ({told})"


def jpeglib(version: str) -> str:
    """Jpeglib and the libjpeg of it that is used."""
    return f"{plain('jpeglib')} (libjpeg {version})"


def vips() -> str:
    """Pyvips and libvips."""
    import pyvips

    told = ".".join(str(pyvips.version(part)) for part in range(3))
    return f"pyvips {pyvips.__version__} (libvips {told})"


def torch() -> str:
    """Torch."""
    return plain("torch")


def own() -> str:
    """This package's own kernels; the number rises when one gives other pixels, and only then."""
    return "own kernels 1"
