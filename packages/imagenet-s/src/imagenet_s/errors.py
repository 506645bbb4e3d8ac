"""What can go wrong with images, pipelines and models, each in one line."""

from core_utils.errors import UserError


class ImagenetSError(UserError):
    """Any bad input to this package; a ValueError whose text is one line."""


class DecodeError(ImagenetSError):
    """A file is no image that a decoder can read; the message names the file, the decoder and the reason."""


class TruncatedImageError(DecodeError):
    """An image file ends before its end marker."""


class ShapeMismatchError(ImagenetSError):
    """Two decoders give one image different shapes; the message names both and the orientation tag."""


class SampleError(ImagenetSError):
    """A data set cannot be listed or read; the message names the file and the line."""


class PipelineError(ImagenetSError):
    """A pipeline, grid or preset cannot be made as described."""


class ModelError(ImagenetSError):
    """A model cannot be loaded, or what it returns cannot be used."""
