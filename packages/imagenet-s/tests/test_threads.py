import concurrent.futures

import cv2
import pytest
import pyvips
import torch

from imagenet_s.threads import one_thread

COUNT = {"opencv": cv2.getNumThreads, "torch": torch.get_num_threads, "vips": pyvips.concurrency_get}
SET = {"opencv": cv2.setNumThreads, "torch": torch.set_num_threads, "vips": pyvips.concurrency_set}


@pytest.fixture(params=COUNT)
def library(request):
    before = COUNT[request.param]()
    SET[request.param](2)
    yield request.param
    SET[request.param](before)


def test_a_block_has_one_thread_and_the_user_has_two_again_after_it(library):
    with one_thread(library):
        assert COUNT[library]() == 1
        with one_thread(library):
            assert COUNT[library]() == 1
        assert COUNT[library]() == 1
    assert COUNT[library]() == 2


def test_an_error_in_the_block_restores_too(library):
    with pytest.raises(KeyError), one_thread(library):
        raise KeyError
    assert COUNT[library]() == 2


def test_blocks_that_overlap_in_many_threads_leave_no_trace(library):
    def enter(_):
        with one_thread(library):
            return COUNT[library]()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(enter, range(400))) == {1}
    assert COUNT[library]() == 2
