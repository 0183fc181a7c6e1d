# SPDX-License-Identifier: Apache-2.0
"""Starts and ends a real moged for the end-to-end tests, and speaks to it with grpcio.

The stubs are generated when a test starts, by protoc, so that what is tested is the .proto file that
users get.  A daemon dies with the test that started it, however that ends.
"""
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import grpc

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("MOGE_BUILD", os.path.join(ROOT, "build", "release"))
MOGED = os.path.join(BUILD, "moged")
MOGE = os.path.join(BUILD, "moge")
TINY_TARGET = os.path.join(ROOT, "tests/golden/tiny-target.gguf")
TINY_DRAFT = os.path.join(ROOT, "tests/golden/tiny-draft.gguf")
START_S_MAX = 60  # a sanitizer's build on a busy machine included
HOPELESS_S = 100  # ends a wait for what should come at once: no test judges how fast a machine is
UNDER_TSAN = "TSAN_OPTIONS" in os.environ
LIBC = ctypes.CDLL(None)


def die_with_parent():
    PR_SET_PDEATHSIG = 1
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def stubs():
    """(moge_pb2, moge_pb2_grpc, health_pb2, health_pb2_grpc)"""
    out = tempfile.mkdtemp(prefix="moged-stubs-")
    try:
        root = os.path.join(ROOT, "proto")
        for name in ("moge/v1/moge.proto", "grpc/health/v1/health.proto"):
            subprocess.run(["protoc", "-I" + root, "--python_out=" + out,
                            "--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin",
                            "--grpc_python_out=" + out, os.path.join(root, name)], check=True)
        # The generated packages are called moge and grpc; the latter must not hide grpcio.
        os.rename(os.path.join(out, "grpc"), os.path.join(out, "health_stubs"))
        sys.path.insert(0, out)
        rewrite_health(os.path.join(out, "health_stubs/health/v1"))
        from moge.v1 import moge_pb2, moge_pb2_grpc
        import health_pb2
        import health_pb2_grpc
        return moge_pb2, moge_pb2_grpc, health_pb2, health_pb2_grpc
    finally:
        subprocess.run(["rm", "-rf", out], check=True)


def rewrite_health(directory):
    sys.path.insert(0, directory)
    path = os.path.join(directory, "health_pb2_grpc.py")
    with open(path) as file:
        text = file.read().replace("from grpc.health.v1 import", "import")
    with open(path, "w") as file:
        file.write(text)


class Daemon:
    """with Daemon(...) as d: d.stub.Generate(...)"""

    def __init__(self, *options, model=TINY_TARGET, draft=TINY_DRAFT, listen=None,
                 before=lambda: None):
        self.place = tempfile.mkdtemp(prefix="moged-e2e-")
        self.address = listen or "unix:" + os.path.join(self.place, "moged.sock")
        self.log_path = os.path.join(self.place, "log")
        command = [MOGED, "--listen", self.address]
        command += ["--model", model] if model else []
        command += ["--draft", draft] if draft else []
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(command + list(options), stdout=log,
                                            stderr=subprocess.STDOUT,
                                            preexec_fn=lambda: (die_with_parent(), before()))
        self.channels = []

    def log(self):
        with open(self.log_path, errors="replace") as log:
            return log.read()

    def channel(self):
        """A connection of its own: gRPC otherwise shares one between channels to one address."""
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        self.channels.append(grpc.insecure_channel(self.address, options=options))
        return self.channels[-1]

    def wait_ready(self):
        """Asks until somebody answers; raises with the daemon's own words when it ended instead."""
        channel, end = self.channel(), time.monotonic() + START_S_MAX
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"moged ended with {self.process.returncode}: {self.log()}")
            try:
                grpc.channel_ready_future(channel).result(timeout=0.5)
                return self
            except grpc.FutureTimeoutError:
                continue
        raise RuntimeError("moged did not answer: " + self.log())

    def terminate(self, seconds=HOPELESS_S):
        """SIGTERM, and what moged then exits with."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)

    def n_descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def __enter__(self):
        return self.wait_ready()

    def __exit__(self, *_):
        for channel in self.channels:
            channel.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=HOPELESS_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        said, status = self.log(), self.process.returncode
        subprocess.run(["rm", "-rf", self.place], check=True)
        # A sanitizer's report is in the daemon's log and in how it ends.
        assert status == 0 and "Sanitizer" not in said, f"moged ended with {status}: {said}"
