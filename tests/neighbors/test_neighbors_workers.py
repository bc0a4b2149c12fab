"""Workers share out tiles: each must compute on one core, or they wait for each other."""

import numpy as np
import torch

from paired_index_assets.neighbors.gemm import by_numpy, matrices, multiply
from paired_index_assets.neighbors.workers import workers


def test_torch_uses_one_thread_in_a_worker_and_as_many_as_before_after_it():
    torch.set_num_threads(2)
    with workers() as pool:
        product = torch.ones(600, 600) @ torch.ones(600, 600)  # in this thread, beside them
        assert set(pool.map(lambda _: (float((product @ product)[0, 0]) > 0, torch.get_num_threads()), range(8))) == {(True, 1)}
    assert torch.get_num_threads() == 2


def test_both_libraries_make_the_product():
    a, b = matrices()
    for product in (multiply, by_numpy):
        out = torch.empty(len(a), len(b))
        product(a, b, out)
        np.testing.assert_allclose(out, a.double() @ b.double().T, atol=1e-3)
