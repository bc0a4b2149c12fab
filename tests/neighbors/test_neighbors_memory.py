import subprocess
import sys

import numpy as np

LIMIT = 48 << 20
# What torch and the workers' stacks and tiles take besides, whatever the size of the inputs.
BESIDE = 64 << 20

MEASURED = """
import sys, threading, time
import numpy as np
from paired_index_assets.neighbors.exact import exact_neighbors

def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

base = np.load(sys.argv[1], mmap_mode="r")
exact_neighbors(base[:2048], base[:2048], 1)  # threads and libraries are there before the count starts
start, peak, stop = held(), 0, threading.Event()

def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, held())

watcher = threading.Thread(target=watch)
watcher.start()
exact_neighbors(base[:800], base, 10, memory_bytes=int(sys.argv[2]))
stop.set()
watcher.join()
print(peak - start)
"""


def test_a_base_many_times_the_memory_limit_is_searched_within_it(tmp_path):
    path = tmp_path / "base.npy"
    base = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(400_000, 256))
    assert base.nbytes > 4 * LIMIT
    some = np.random.default_rng(0).standard_normal((50_000, 256), dtype=np.float32)
    for start in range(0, len(base), 50_000):
        base[start : start + 50_000] = some * (1 + start / len(base))
    base.flush()
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path), str(LIMIT)], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < LIMIT + BESIDE
