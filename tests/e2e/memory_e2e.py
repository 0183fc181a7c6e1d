# SPDX-License-Identifier: Apache-2.0
"""A model larger than the memory that moged may use: stored panels are used where they are mapped, so it
runs, and answers the same.  With MOGE_LONG=1."""
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import unittest

import daemon
from limits_e2e import collect, pb_grpc, request_of

SHAPE = """[model]
name = large
architecture = pangu-moe
vocabulary = 512
layers = 2
hidden = 512
heads = 4
kv_heads = 2
head_dim = 128
context = 512
experts = 64
experts_used = 8
groups = 8
expert_ffn = 2048
ffn = 512
"""
LIMIT_BYTES = 128 << 20  # the file has 227 MB


def read(path):
    with open(path) as file:
        return file.read()


def write(path, value):
    with open(path, "w") as file:
        file.write(str(value))


def memory_group():
    """(directory, file of the limit, file of the peak) of a new memory control group, or None."""
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "memory":
            root, limit, peak = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"
        elif controllers == "":
            root, limit, peak = "/sys/fs/cgroup", "memory.max", "memory.peak"
        else:
            continue
        for parent in (root + own.rstrip("/"), root):
            place = os.path.join(parent, f"moged-test-{os.getpid()}")
            with contextlib.suppress(OSError):
                os.mkdir(place)
                if all(os.access(os.path.join(place, name), os.W_OK) for name in (limit, "cgroup.procs")):
                    return place, os.path.join(place, limit), os.path.join(place, peak)
                os.rmdir(place)
    return None


def remove(place):
    """A group is busy for a moment after its last process."""
    for _ in range(1000):
        try:
            return os.rmdir(place)
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(place + " cannot be removed")


def drop(path):
    """Out of the page cache: pages that are there already are counted for nobody."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def answers(model, before=lambda: None):
    options = ["--threads", "2", "--context", "256", "--max-running", "2"]
    with daemon.Daemon(*options, model=model, draft=None, before=before) as d:
        stub = pb_grpc.MogeStub(d.channel())
        return [collect(stub, request_of(seed, max_tokens=12))[0] for seed in range(3)]


class Memory(unittest.TestCase):
    def test_a_model_larger_than_memory(self):
        place, limit, peak = GROUP
        with tempfile.TemporaryDirectory(dir=daemon.BUILD) as directory:
            shape, model = os.path.join(directory, "shape.ini"), os.path.join(directory, "large.gguf")
            write(shape, SHAPE)
            subprocess.run([daemon.MOGE, "synth", "--shape", shape, "--type", "q4_0", "--layout", "panels",
                                   "--out", model], check=True, stderr=subprocess.DEVNULL)
            self.assertGreater(os.path.getsize(model), 1.5 * LIMIT_BYTES)
            expected = answers(model)
            drop(model)
            write(limit, LIMIT_BYTES)
            join = os.path.join(place, "cgroup.procs")
            self.assertEqual(answers(model, before=lambda: write(join, os.getpid())), expected)
            if os.path.exists(peak):
                self.assertLessEqual(int(read(peak)), LIMIT_BYTES)


if __name__ == "__main__":
    if os.environ.get("MOGE_LONG", "0") in ("", "0"):
        print("SKIP: MOGE_LONG=1 runs it")
        sys.exit(77)
    GROUP = memory_group()
    if GROUP is None:
        print("SKIP: no control group that limits memory can be made here")
        sys.exit(77)
    try:
        unittest.main(verbosity=2)
    finally:
        remove(GROUP[0])
