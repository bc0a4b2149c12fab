"""Ctrl-C and SIGTERM during a build: one line, the exit code of the signal, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from paired_index_assets.cli.stopping import Stopped, stoppable
from paired_index_assets.sample import sample_model


def command_of(root, pictures):
    return [
        *(sys.executable, "-m", "paired_index_assets.cli.main", "build", "--root", root, "--images", pictures),
        *("--model", sample_model(), "--shards", "3", "--part-rows", "500", "--nlist", "8"),
        *("--validation-captions", "100", "--test-captions", "100"),
    ]


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGTERM, "image_embeddings"), pytest.param(signal.SIGINT, "caption_image_pairs", marks=pytest.mark.heavy)],
)
def test_a_build_that_is_stopped_says_so_in_one_line(tmp_path, small_pairs, number, after):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
    command = [str(word) for word in command_of(tmp_path / "root", small_pairs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, bufsize=1) as running:
        for line in running.stdout:
            if after in line:
                time.sleep(0.5)
                running.send_signal(number)
                break
        rest = running.stdout.read()
        said = running.stderr.read()
        status = running.wait(120)
    assert status == 128 + number, (rest, said)
    assert said.strip().splitlines() == ["stopped; what is finished is kept, and the same command goes on from there"]


def test_a_signal_that_finds_the_thread_in_a_destructor_is_not_lost(capfd):
    class Deadly:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    before = signal.getsignal(signal.SIGTERM)
    with stoppable() as signals:
        with pytest.raises(Stopped):
            made = Deadly()
            del made
            time.sleep(10)
        assert signals.number() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err == ""
