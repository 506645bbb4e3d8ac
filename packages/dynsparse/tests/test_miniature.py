import numpy as np

from core_utils.data import fashion_mnist_small
from dynsparse import miniature_images


def test_images_are_pooled_normalised_and_half_of_them_turned():
    split, images = miniature_images(), fashion_mnist_small()
    assert (split.x_train.shape, split.x_train.dtype) == ((8000, 1, 14, 14), np.float32)
    assert split.x_test.shape == (2000, 1, 14, 14)
    np.testing.assert_array_equal(split.y_train, images.y_train)
    corner = images.x_train[:, :2, :2].mean((1, 2)) / 255  # background in almost all
    expected = (corner - 0.286) / 0.353
    sign = np.sign(split.x_train[:, 0, 0, 0]) * np.sign(expected)
    np.testing.assert_allclose(split.x_train[:, 0, 0, 0], sign * expected, atol=1e-5)
    assert abs((sign > 0).mean() - 0.5) < 0.02
    again = miniature_images()
    np.testing.assert_array_equal(again.x_test, split.x_test)
