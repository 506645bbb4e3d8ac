import pytest

from imagenet_s import decoding, resizing


@pytest.fixture(autouse=True, scope="module")
def registries():
    """What one file's tests register is gone in the next."""
    before = dict(decoding._DECODERS), dict(resizing._RESIZERS)
    yield
    for registry, entries in zip((decoding._DECODERS, resizing._RESIZERS), before, strict=True):
        registry.clear()
        registry.update(entries)
