# SPDX-License-Identifier: Apache-2.0
"""200 streams at once on the embedded pair, in three rounds, with everything that real clients do to
a daemon: some cancel, some run into their deadline, some vanish without a word.  After each round
nothing of them is left: no page, no stream, no connection, no descriptor; and the last round took no
more memory than the one before.  10 seconds; a minute with MOGE_LONG=1; MOGE_SEED chooses another."""
import os
import random
import subprocess
import threading
import time
import unittest

import grpc

import daemon

pb, pb_grpc, _, _ = daemon.stubs()
SECONDS = 60 if os.environ.get("MOGE_LONG", "0") not in ("", "0") else 10
SEED = int(os.environ.get("MOGE_SEED", "1"))
ROUNDS = 3
N_PYTHON, N_CANCELLED, N_KILLED = 60, 70, 70  # streams of each kind at once
EXPECTED = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
WORDS = ("select", " from", " the", " index", "\n", " where", " x", " = ", "7", " é", " 語", ", ")


def request_of(seed):
    """One of many kinds; the same seed is the same request."""
    rng = random.Random(seed)
    text = "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 120)))
    request = pb.GenerateRequest(text=text)
    request.sampling.temperature = rng.choice([0, 0.7, 1.0])
    request.sampling.seed = seed
    request.stopping.max_tokens = rng.randrange(1, 80)
    request.stopping.ignore_eos = True
    request.priority = rng.randrange(-2, 3)
    request.speculation.mode = rng.choice([pb.Speculation.MODE_DEFAULT, pb.Speculation.MODE_AUTO,
                                           pb.Speculation.MODE_FIXED])
    if request.speculation.mode == pb.Speculation.MODE_FIXED:
        request.speculation.length = rng.randrange(1, 9)
    if rng.random() < 0.2:
        request.logprobs = 2
    if rng.random() < 0.3:
        request.stopping.stop.append(" t")
    return request


class Client(threading.Thread):
    """Streams one after the other: heard out, cancelled somewhere, or given too little time."""

    def __init__(self, stub, seed, end, seen, codes):
        super().__init__()
        self.stub, self.rng, self.end, self.seen, self.codes = stub, random.Random(seed), end, seen, codes
        self.n_whole = self.n_broken = 0
        self.failure = None

    def run(self):
        try:
            while time.monotonic() < self.end:
                self.one_stream(self.rng.randrange(40))
        except Exception as error:  # shown by the test, which fails
            self.failure = error

    def one_stream(self, seed):
        kind = self.rng.random()
        timeout = self.rng.uniform(0.005, 0.5) if kind < 0.2 else 120
        n_heard = self.rng.randrange(0, 8) if 0.2 <= kind < 0.5 else None
        call, ids, finished = self.stub.Generate(request_of(seed), timeout=timeout), [], False
        try:
            if n_heard == 0:
                call.cancel()
            for i, response in enumerate(call, 1):
                ids += response.token_ids
                finished = response.HasField("finish")
                if i == n_heard:
                    call.cancel()
            assert finished, "a stream without a last message"
            self.n_whole += 1
            assert self.seen.setdefault(seed, ids) == ids, f"request {seed} got other tokens than before"
        except grpc.RpcError as error:
            assert error.code() in EXPECTED, f"{error.code()}: {error.details()}"
            self.codes.add(error.code())
            self.n_broken += 1


class Crowd(threading.Thread):
    """A process with many streams that is ended again and again: told to cancel them, or killed."""

    def __init__(self, address, n_streams, how, seed, end):
        super().__init__()
        self.command = [daemon.MOGE, "bench", "serve", "--connect", address, "--concurrency", str(n_streams),
                        "--requests", "1000000", "--output-len", "60", "--input-len", "40", "--temperature", "1"]
        self.how, self.rng, self.end = how, random.Random(seed), end
        self.n_ended, self.failure = 0, None

    def run(self):
        while time.monotonic() < self.end:
            options = ["--speculation", self.rng.choice(["auto", "3"]), "--seed", str(self.rng.randrange(1 << 30))]
            if self.rng.random() < 0.3:
                options += ["--timeout", f"{self.rng.uniform(1, 3):.3f}"]
            process = subprocess.Popen(self.command + options, stderr=subprocess.DEVNULL,
                                       preexec_fn=daemon.die_with_parent)
            time.sleep(max(0.1, min(self.rng.uniform(0.5, 2.5), self.end - time.monotonic())))
            if process.poll() is not None:
                self.failure = f"a crowd ended by itself with {process.returncode}"
                return
            getattr(process, self.how)()
            process.wait(timeout=60)
            self.n_ended += 1


class Soak(unittest.TestCase):
    def stats(self):
        return self.stub.GetStats(pb.GetStatsRequest(), timeout=30)

    @staticmethod
    def held(d, stats):
        return {"running": stats.running, "waiting": stats.waiting, "calls": stats.calls,
                "connections": stats.connections, "pages": stats.pages.used,
                "all pages": stats.pages.used + stats.pages.free + stats.pages.cached,
                "descriptors": d.n_descriptors()}

    def one_round(self, d, number):
        channels = [d.channel() for _ in range(6)]
        stubs = [pb_grpc.MogeStub(channel) for channel in channels]
        end, seed = time.monotonic() + SECONDS / ROUNDS, 1000 * (SEED * ROUNDS + number)
        clients = [Client(stubs[i % 6], seed + i, end, self.seen, self.codes) for i in range(N_PYTHON)]
        crowds = [Crowd(d.address, N_CANCELLED, "terminate", seed + 98, end),
                  Crowd(d.address, N_KILLED, "kill", seed + 99, end)]
        for thread in clients + crowds:
            thread.start()
        n_most = 0
        while time.monotonic() < end:
            n_most = max(n_most, self.stats().calls)
            time.sleep(0.05)
        for thread in clients + crowds:
            thread.join(timeout=180)
            self.assertFalse(thread.is_alive(), "a client does not come back")
            self.assertIsNone(thread.failure)
        for channel in channels:
            channel.close()
        self.assertGreater(sum(c.n_whole for c in clients), 0)
        self.assertGreater(sum(c.n_broken for c in clients), 0)
        self.assertGreater(min(c.n_ended for c in crowds), 0)
        return n_most

    def wait_until_nothing_is_left(self, d, right):
        end = time.monotonic() + 60
        while True:
            stats = self.stats()
            left = self.held(d, stats)
            if left == right:
                return stats
            self.assertLess(time.monotonic(), end, f"{left} is left, where {right} were before")
            time.sleep(0.05)

    def test_nothing_is_left_of_200_streams(self):
        self.seen, self.codes, heaps, most = {}, set(), [], []
        with daemon.Daemon("--max-running", "48", "--kv-memory", "24MiB", model=None, draft=None) as d:
            self.stub = pb_grpc.MogeStub(d.channel())
            before = self.held(d, self.stats())
            self.assertEqual((before["running"], before["pages"], before["calls"]), (0, 0, 1))
            for number in range(ROUNDS):
                most.append(self.one_round(d, number))
                after = self.wait_until_nothing_is_left(d, before)
                heaps.append(after.heap_bytes)
            counters = {c.name: c.value for c in after.counters}
        print(f"at most {most} calls at once; heap {heaps}; {after.engine.steps} steps, {after.engine.tokens} tokens;",
              {name: value for name, value in counters.items() if value and name.startswith(("request", "num"))})
        # The thread sanitizer makes a daemon so slow that streams end at their deadlines.
        self.assertGreater(max(most), 40 if daemon.UNDER_TSAN else 180)
        self.assertEqual(counters["request_error_total"] + counters["request_stalled_total"], 0)
        for kind in ("cancelled", "success_length", "success_stop"):
            self.assertGreater(counters[f"request_{kind}_total"], 0, kind)
        self.assertEqual(set(self.codes), EXPECTED)
        self.assertGreater(sum(after.engine.accepted_by_position), 0)
        # The first round sizes buffers and pools; a leak goes on in the last.
        self.assertLess(heaps[-1] - heaps[-2], max(0.02 * heaps[0], 1 << 20))


if __name__ == "__main__":
    unittest.main(verbosity=2)
