# SPDX-License-Identifier: Apache-2.0
"""How moged starts, refuses to start, says that it is well, drains, and keeps nothing."""
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
import unittest

import grpc

import daemon

pb, pb_grpc, health_pb, health_pb_grpc = daemon.stubs()
SERVING = health_pb.HealthCheckResponse.SERVING
NOT_SERVING = health_pb.HealthCheckResponse.NOT_SERVING


def request_of(seed, max_tokens=64):
    request = pb.GenerateRequest(text=f"create table t{seed} (")
    request.sampling.seed = seed
    request.stopping.max_tokens = max_tokens
    request.stopping.ignore_eos = True
    return request


@unittest.skipIf(daemon.UNDER_TSAN, "who is refused starts no second thread")
class Start(unittest.TestCase):
    """What is wrong is said on standard error, in one line that names it, with a failing exit."""

    def setUp(self):
        self.place = tempfile.mkdtemp(prefix="moged-start-")

    def tearDown(self):
        shutil.rmtree(self.place)

    def refuses(self, options, *words, seconds=60):
        command = [daemon.MOGED, "--listen", f"unix:{self.place}/s"] + options
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds,
                              preexec_fn=daemon.die_with_parent)
        self.assertGreater(done.returncode, 0, f"exit {done.returncode}: {done.stderr}")
        self.assertNotIn("Sanitizer", done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        return done.stderr

    def write(self, name, data):
        path = os.path.join(self.place, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def test_option_that_does_not_exist(self):
        self.refuses(["--kv-memroy", "1GiB"], "kv-memroy", "kv-memory")

    def test_configuration_key_that_does_not_exist(self):
        path = self.write("moged.conf", b"threads = 1\nkv-memroy = 1GiB\n")
        self.refuses(["--config", path], "kv-memroy", "kv-memory", "2", path)

    def test_configuration_value_out_of_range(self):
        self.refuses(["--config", self.write("moged.conf", b"max-running = 0\n")], "max-running")
        self.refuses(["--threads", "nine"], "threads", "nine")
        self.refuses(["--kv-memory", "-1GiB"], "kv-memory")
        self.refuses(["--config", self.place + "/absent.conf"], "absent.conf")

    def test_model_that_is_not_there(self):
        self.refuses(["--model", self.place + "/absent.gguf"], "absent.gguf")
        self.refuses(["--model", self.place], self.place)

    def test_model_that_is_no_gguf(self):
        self.refuses(["--model", self.write("text.gguf", b"This is a letter to a friend.\n" * 9)],
                     "text.gguf")
        self.refuses(["--model", self.write("empty.gguf", b"")], "empty.gguf")

    def test_truncated_model(self):
        with open(daemon.TINY_TARGET, "rb") as file:
            whole = file.read()
        for n in (3, 11, 24, 100, 5000, len(whole) // 2, len(whole) - 1):
            self.refuses(["--model", self.write("cut.gguf", whole[:n]), "--draft", "none"],
                         "cut.gguf")

    def test_lying_model(self):
        """Counts that promise more than the file holds, each beyond what memory could hold."""
        with open(daemon.TINY_TARGET, "rb") as file:
            whole = bytearray(file.read())
        for offset in (8, 16):  # the number of tensors, the number of metadata entries
            for count in (2**63, 2**40, 2**32, 0xffffffffffffffff):
                lie = bytearray(whole)
                struct.pack_into("<Q", lie, offset, count)
                self.refuses(["--model", self.write("lie.gguf", bytes(lie)), "--draft", "none"],
                             "lie.gguf", seconds=20)

    def test_draft_with_another_vocabulary(self):
        """One piece of the draft's vocabulary is respelled; the sentence names it."""
        with open(daemon.TINY_DRAFT, "rb") as file:
            whole = file.read()
        piece = "\u2581the".encode()
        entry = struct.pack("<Q", len(piece)) + piece
        self.assertEqual(whole.count(entry), 1, "the test needs a piece that is there once")
        other = whole.replace(entry, struct.pack("<Q", len(piece)) + "\u2581thx".encode())
        said = self.refuses(["--model", daemon.TINY_TARGET,
                             "--draft", self.write("other.gguf", other)], "the", "thx")
        self.assertIn("vocabular", said.lower())

    def test_address_that_cannot_be(self):
        command = [daemon.MOGED, "--model", daemon.TINY_TARGET, "--listen", "unix:/no/such/place/s"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60,
                              preexec_fn=daemon.die_with_parent)
        self.assertGreater(done.returncode, 0)
        self.assertIn("/no/such/place", done.stderr)

    def test_help_and_version(self):
        for option, word in (("--help", "--kv-memory"), ("--version", "moged")):
            done = subprocess.run([daemon.MOGED, option], capture_output=True, text=True, timeout=20)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn(word, done.stdout)


class Health(unittest.TestCase):
    def test_check_and_watch_and_drain(self):
        """SIGTERM: health says NOT_SERVING, what runs is finished, the exit is 0."""
        with daemon.Daemon() as d:
            health = health_pb_grpc.HealthStub(d.channel())
            for service in ("", "moge.v1.Moge"):
                answer = health.Check(health_pb.HealthCheckRequest(service=service), timeout=10)
                self.assertEqual(answer.status, SERVING)
            with self.assertRaises(grpc.RpcError) as caught:
                health.Check(health_pb.HealthCheckRequest(service="nobody"), timeout=10)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

            watch = health.Watch(health_pb.HealthCheckRequest(service=""), timeout=60)
            self.assertEqual(next(watch).status, SERVING)
            stub = pb_grpc.MogeStub(d.channel())
            alone = "".join(r.text for r in stub.Generate(request_of(5, 400), timeout=60))
            streams = [stub.Generate(request_of(5, 400), timeout=60) for _ in range(8)]
            beginnings = [next(s) for s in streams]
            d.process.send_signal(signal.SIGTERM)
            self.assertEqual(next(watch).status, NOT_SERVING)
            for begin, stream in zip(beginnings, streams):
                responses = [begin] + list(stream)
                self.assertTrue(responses[-1].HasField("finish"))
                self.assertEqual("".join(r.text for r in responses), alone)
            watch.cancel()
            self.assertEqual(d.process.wait(timeout=daemon.HOPELESS_S), 0, d.log())
            self.assertFalse(os.path.exists(d.address[5:]), "the socket is left behind")

    def test_a_second_daemon_does_not_steal_the_socket(self):
        with daemon.Daemon() as d:
            done = subprocess.run([daemon.MOGED, "--model", daemon.TINY_TARGET, "--listen",
                                   d.address], capture_output=True, text=True, timeout=60,
                                  preexec_fn=daemon.die_with_parent)
            self.assertGreater(done.returncode, 0)
            stub = pb_grpc.MogeStub(d.channel())
            list(stub.Generate(request_of(1), timeout=30))

    def test_tcp_on_loopback_only(self):
        with daemon.Daemon(listen=f"127.0.0.1:{daemon.free_port()}") as d:
            stub = pb_grpc.MogeStub(d.channel())
            list(stub.Generate(request_of(1), timeout=30))
        done = subprocess.run([daemon.MOGED, "--model", daemon.TINY_TARGET, "--listen",
                               f"0.0.0.0:{daemon.free_port()}"], capture_output=True, text=True, timeout=60,
                              preexec_fn=daemon.die_with_parent)
        self.assertGreater(done.returncode, 0)
        self.assertIn("allow-insecure-tcp", done.stderr)


class Leaks(unittest.TestCase):
    def test_200_streams_with_random_cancels_leave_nothing(self):
        with daemon.Daemon("--max-running", "16", "--max-queued", "256") as d:
            list(pb_grpc.MogeStub(d.channel()).Generate(request_of(0), timeout=30))
            before, n_done, lock = d.n_descriptors(), [0, 0], threading.Lock()

            def client(i):
                rng = random.Random(i)
                channel = grpc.insecure_channel(d.address, options=[
                    ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)])
                stub = pb_grpc.MogeStub(channel)
                for k in range(20):
                    call = stub.Generate(request_of(i * 20 + k, 120), timeout=60)
                    keep = rng.random() < 0.5
                    n_read = rng.randrange(1, 10)
                    try:
                        for n, _ in enumerate(call, 1):
                            if not keep and n == n_read:
                                call.cancel()
                    except grpc.RpcError as error:
                        assert error.code() == grpc.StatusCode.CANCELLED, error
                    with lock:
                        n_done[keep] += 1
                channel.close()
            threads = [threading.Thread(target=client, args=(i,)) for i in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(sum(n_done), 200, "a client failed")
            end = time.monotonic() + daemon.HOPELESS_S
            while d.n_descriptors() > before and time.monotonic() < end:
                time.sleep(0.1)
            self.assertLessEqual(d.n_descriptors(), before)
            list(pb_grpc.MogeStub(d.channel()).Generate(request_of(0, 400), timeout=30))
            self.assertEqual(d.terminate(), 0, d.log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
