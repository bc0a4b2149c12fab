"""The GPU path. Without a GPU the same code runs in Triton's interpreter: slowly, so it is small, and in numpy's arithmetic."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from neighbor_cases import plain_neighbors, towers

from paired_index_assets.neighbors.exact import exact_neighbors

IN_THE_INTERPRETER = """
import numpy as np
from neighbor_cases import plain_neighbors, towers
from paired_index_assets.neighbors import cuda
from paired_index_assets.neighbors.arithmetic import FLOAT16_FUSED
from paired_index_assets.neighbors.engine import Engine
from paired_index_assets.neighbors.exact import exact_neighbors

for d, dtype, scale in ((7, np.float16, 1), (64, np.float32, 1), (100, np.float32, 1e6)):
    images, captions = towers(400, 50, d, dtype=dtype)
    images[300:310] = images[5]
    captions = captions * dtype(scale)
    for k in (1, 20):
        engine = Engine("cpu", FLOAT16_FUSED, cuda.scan, 33, 300 * d * 4, parallel=False)
        scores, ids = exact_neighbors(captions, images, k, engine=engine)
        expected = plain_neighbors(captions, images, k)
        assert (ids == expected[1]).all() and (scores == expected[0]).all(), (d, dtype, scale, k)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: `make test-kernel` runs this")
def test_the_fused_kernel_finds_the_exact_neighbors_in_tritons_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", IN_THE_INTERPRETER], env=environment, check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
@pytest.mark.parametrize("k", [1, 10, 100, 3_000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_gpu_finds_what_sorting_every_float64_score_finds(dtype, k):
    images, captions = towers(60_000, 700, 96, dtype=dtype)
    scores, ids = exact_neighbors(captions, images, k, device="cuda")
    expected = plain_neighbors(captions, images, k)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(scores, expected[0])


def test_the_search_imports_and_runs_where_faiss_and_triton_are_absent():
    script = (
        "import sys; sys.modules['faiss'] = sys.modules['triton'] = None\n"
        "import numpy as np; from paired_index_assets import exact_neighbors\n"
        "print(exact_neighbors(np.eye(3, dtype='f'), np.eye(3, dtype='f'), 1)[1].ravel().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 1, 2]"
