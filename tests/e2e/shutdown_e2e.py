# SPDX-License-Identifier: Apache-2.0
"""What becomes of streams that do not end by themselves, and what systemd is told meanwhile."""
import os
import signal
import socket
import tempfile
import threading
import time
import unittest

import grpc

import daemon

pb, pb_grpc, health_pb, health_pb_grpc = daemon.stubs()
N_STREAMS = 24  # one at a time: seconds of work


def request_of(seed):
    request = pb.GenerateRequest(text="select")
    request.sampling.seed = seed
    request.stopping.ignore_eos = True
    return request


class Notify:
    """The other end of sd_notify."""

    def __enter__(self):
        self.place = tempfile.mkdtemp(prefix="moged-notify-")
        self.path = os.path.join(self.place, "s")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(60)
        self.lines = []
        return self

    def __exit__(self, *_):
        self.socket.close()
        os.unlink(self.path)
        os.rmdir(self.place)

    def daemon(self, **how):
        """A moged that speaks to us."""
        os.environ["NOTIFY_SOCKET"] = self.path
        os.environ["WATCHDOG_USEC"] = "3000000"
        try:
            return daemon.Daemon(**how)
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"]

    def wait(self, wanted):
        while not any(line.startswith(wanted) for line in self.lines):
            self.lines += self.socket.recv(4096).decode().split("\n")
        self.lines = [line for line in self.lines if not line.startswith(wanted)]


class Crowd:
    """N_STREAMS streams on a daemon that runs one at a time, all there, and how each ended."""

    def __init__(self, d):
        self.results = []
        stub = pb_grpc.MogeStub(d.channel())
        self.threads = [threading.Thread(target=self.read, args=(stub, i)) for i in range(N_STREAMS)]
        for thread in self.threads:
            thread.start()
        end = time.monotonic() + daemon.HOPELESS_S
        while self.n_seen(stub) < N_STREAMS:
            assert time.monotonic() < end, "the streams did not all reach the daemon"

    def n_seen(self, stub):
        n_ended = len(self.results)  # first: one that ends between the two must not count twice
        return n_ended + stub.GetStats(pb.GetStatsRequest(), timeout=60).calls - 1

    def read(self, stub, seed):
        last, code, details = None, grpc.StatusCode.OK, ""
        try:
            for last in stub.Generate(request_of(seed), timeout=100):
                pass
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
        self.results.append((code, details, last))

    def join(self):
        for thread in self.threads:
            thread.join()
        return self.results


class Shutdown(unittest.TestCase):
    def check(self, results):
        """Some were done, some were not, and each was told which."""
        n_ok = sum(code == grpc.StatusCode.OK for code, _, _ in results)
        self.assertLess(n_ok, N_STREAMS, "all were done: this test tested nothing")
        for code, details, last in results:
            if code == grpc.StatusCode.OK:
                self.assertIn(last.finish.reason, (pb.Finish.REASON_LENGTH, pb.Finish.REASON_STOP))
                continue
            self.assertEqual(code, grpc.StatusCode.UNAVAILABLE, details)
            self.assertIn("shutting down", details)
            if last is not None:
                self.assertEqual(last.finish.reason, pb.Finish.REASON_ABORTED)
                self.assertGreater(last.finish.usage.prompt_tokens, 0)

    def test_the_drain_timer_runs_out(self):
        with daemon.Daemon("--max-running", "1", "--drain-timeout", "0.3") as d:
            crowd = Crowd(d)
            self.assertEqual(d.terminate(), 0, d.log())
            self.check(crowd.join())

    def test_a_second_signal_ends_what_runs(self):
        with daemon.Daemon("--max-running", "1", "--drain-timeout", "600") as d:
            crowd = Crowd(d)
            d.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + daemon.HOPELESS_S
            while "draining" not in d.log() and time.monotonic() < end:
                time.sleep(0.02)
            d.process.send_signal(signal.SIGINT)
            self.assertEqual(d.process.wait(timeout=daemon.HOPELESS_S), 0, d.log())
            self.check(crowd.join())

    def test_a_watch_does_not_hold_the_drain_up(self):
        with daemon.Daemon("--drain-timeout", "600") as d:
            health = health_pb_grpc.HealthStub(d.channel())
            watch = health.Watch(health_pb.HealthCheckRequest(service="no.such"), timeout=100)
            self.assertEqual(next(watch).status, health_pb.HealthCheckResponse.SERVICE_UNKNOWN)
            self.assertEqual(d.terminate(), 0, d.log())
            with self.assertRaises(grpc.RpcError) as caught:
                next(watch)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)

    def test_a_signal_while_it_loads(self):
        """It is pending when the program begins: however short the load is, it comes in time."""
        with Notify() as notify:
            d = notify.daemon(before=lambda: (signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]),
                                              os.kill(os.getpid(), signal.SIGTERM)))
            self.assertEqual(d.process.wait(timeout=60), 0, d.log())
            notify.wait("STATUS=loading tiny-target.gguf: ")
            notify.wait("EXTEND_TIMEOUT_USEC=")
            notify.wait("STOPPING=1")
            self.assertIn("stopped by a signal before it served", d.log())
            self.assertNotIn("READY=1", notify.lines)
            d.__exit__()

    def test_systemd_is_told(self):
        with Notify() as notify:
            d = notify.daemon()
            with d:
                notify.wait("READY=1")
                notify.wait("WATCHDOG=1")
                notify.wait("WATCHDOG=1")
                notify.wait("STATUS=0 running")
                self.assertEqual(d.terminate(), 0, d.log())
                notify.wait("STOPPING=1")
                notify.wait("EXTEND_TIMEOUT_USEC=")


if __name__ == "__main__":
    unittest.main(verbosity=2)
