# SPDX-License-Identifier: Apache-2.0
"""GetStats and `moge stats`: the numbers are those of the streams that were."""
import json
import re
import subprocess
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import daemon

pb, pb_grpc, _, _ = daemon.stubs()


def generate(stub, i, n_tokens=20):
    request = pb.GenerateRequest(text=f"select {i} from x where y = {i}")
    request.sampling.seed = i
    request.stopping.max_tokens = n_tokens
    request.stopping.ignore_eos = True
    return [token for response in stub.Generate(request, timeout=60) for token in response.token_ids]


class Stats(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = daemon.Daemon("--max-running", "8")
        cls.daemon.wait_ready()
        cls.stub = pb_grpc.MogeStub(cls.daemon.channel())
        cls.at_start = cls.settled()
        with ThreadPoolExecutor(8) as pool:
            cls.answers = list(pool.map(lambda i: generate(cls.stub, i), range(16)))
        cls.after_16 = cls.settled()

    @classmethod
    def tearDownClass(cls):
        cls.daemon.__exit__()

    @classmethod
    def settled(cls):
        """A step's tokens go out before its snapshot is published: waits for one without requests."""
        end = time.monotonic() + daemon.HOPELESS_S
        while True:
            stats = cls.stub.GetStats(pb.GetStatsRequest(with_prometheus=True), timeout=10)
            if (stats.running, stats.waiting) == (0, 0):
                return stats
            assert time.monotonic() < end, "requests that have ended still run"
            time.sleep(0.01)

    def command(self, *options):
        return subprocess.run([daemon.MOGE, "stats", *options], capture_output=True, text=True, timeout=60,
                              preexec_fn=daemon.die_with_parent)

    def test_the_numbers_add_up(self):
        stats = self.after_16
        self.assertEqual((stats.running, stats.waiting, stats.pages.used), (0, 0, 0))
        self.assertGreater(stats.pages.free + stats.pages.cached, 0)
        self.assertEqual(stats.engine.tokens, 16 * 20)
        counters = {c.name: c.value for c in stats.counters}
        self.assertEqual(counters["generation_tokens_total"], 16 * 20)
        self.assertEqual(counters["request_success_length_total"], 16)
        phases = {p.name: p.total_us for p in stats.engine.phases}
        self.assertEqual(set(phases), {"admit", "plan", "propose", "forward", "accept", "commit", "observe"})
        self.assertLessEqual(sum(phases.values()), stats.engine.step_us)
        self.assertGreater(phases["forward"], 0)
        spreads = {d.name: d for d in stats.distributions}
        self.assertEqual(spreads["time_to_first_token"].count, 16)
        self.assertGreater(spreads["inter_token_latency"].count, 0)
        self.assertEqual(len(set(stats.engine.group_rows)), 1, "MoGE's groups are equally busy")
        self.assertGreater(min(stats.engine.experts_touched), 0)
        self.assertEqual(sum(stats.engine.offered_by_position),
                         sum(k * n for k, n in enumerate(stats.engine.draft_length)))
        self.assertEqual(counters["spec_decode_num_draft_tokens_total"], sum(stats.engine.offered_by_position))
        self.assertEqual(counters["engine_steps_total"], stats.engine.steps)
        self.assertEqual(counters["engine_tokens_total"], 16 * 20)
        self.assertGreater(counters["prefix_cache_queries_total"], 16)
        self.assertLessEqual(counters["prefix_cache_hits_total"], counters["prefix_cache_queries_total"])
        self.assertEqual((counters["num_preemptions_total"], stats.prefilling), (0, 0))
        for looked_up, all_of_them in zip(stats.engine.ngram_offered_by_position,
                                          stats.engine.offered_by_position, strict=True):
            self.assertLessEqual(looked_up, all_of_them)
        line = re.compile(r'(# (HELP|TYPE) moge:\w+ .+|moge:\w+(\{\w+="[^"]*"\})? -?[0-9.e+-]+)$')
        for text in stats.prometheus.splitlines():
            self.assertRegex(text, line)
        self.assertIn("moge:generation_tokens_total 320", stats.prometheus)
        names = re.findall("# TYPE (\\S+)", stats.prometheus)
        self.assertEqual(len(names), len(set(names)), "a metric is there twice")

    def test_costs_are_known_before_the_first_request(self):
        stats = self.at_start
        step_us = list(stats.engine.expected_step_us)
        self.assertEqual(len(step_us), 8, "1, 2, 4 .. 128 rows")
        self.assertGreater(step_us[0], 0)
        self.assertEqual(step_us, sorted(step_us))
        self.assertAlmostEqual(stats.engine.guess_round_us + stats.engine.guess_row_us, stats.engine.guess_us)
        self.assertGreater(stats.engine.guess_us, 0)
        self.assertRegex(stats.prometheus, r'moge:engine_expected_step_microseconds\{rows="16"\} [1-9]')
        with open(self.daemon.log_path) as log:
            self.assertRegex(log.read(), r"steps of 1\.\.\d+ rows take [0-9.]+\.\.[0-9.]+ ms here")
        # And nothing else has happened.
        self.assertEqual((stats.engine.steps, stats.engine.rows, stats.engine.tokens), (0, 0, 0))
        self.assertEqual((stats.pages.used, stats.pages.cached, stats.pages.evicted), (0, 0, 0))
        self.assertGreater(stats.pages.free, 0)
        self.assertEqual((sum(stats.engine.offered_by_position), sum(stats.engine.draft_length)), (0, 0))
        self.assertEqual(sum(d.count for d in stats.distributions), 0)

    def test_without_calibration_the_same_is_said(self):
        with daemon.Daemon("--max-running", "8", "--calibrate=no") as other:
            other.wait_ready()
            stub = pb_grpc.MogeStub(other.channel())
            self.assertEqual([generate(stub, i) for i in range(4)], self.answers[:4])
            with open(other.log_path) as log:
                self.assertNotIn("ms here", log.read())

    def test_a_cancelled_stream_leaves_the_gauges(self):
        request = pb.GenerateRequest(text="x")
        request.stopping.ignore_eos = True
        call = self.stub.Generate(request)
        next(call)
        call.cancel()
        end = time.monotonic() + daemon.HOPELESS_S
        while True:
            stats = self.stub.GetStats(pb.GetStatsRequest(), timeout=10)
            if (stats.running, stats.pages.used) == (0, 0):
                return
            self.assertLess(time.monotonic(), end, "a cancelled stream still runs")
            time.sleep(0.01)

    def test_command(self):
        connect = ("--connect", self.daemon.address)
        shown = json.loads(self.command(*connect, "--json").stdout)
        self.assertGreaterEqual(shown["tokens"], 320)
        self.assertEqual(shown["pages_used"], 0)
        self.assertIn("moge:engine_phase_microseconds_total{phase=\"forward\"}",
                      self.command(*connect, "--prometheus").stdout)
        self.assertGreater(shown["expected_step_us"][0], 0)
        self.assertGreater(shown["guess_round_us"] + shown["guess_row_us"], 0)
        shown = self.command(*connect).stdout
        self.assertIn("running", shown)
        self.assertRegex(shown, r"\ncosts +[0-9.]+ / [0-9.]+ / .* ms for a step of 1 / 2 / ")
        watched = self.command(*connect, "--watch", "0.05", "--count", "3")
        self.assertEqual(watched.stdout.count("requests "), 3)
        for wrong in (("--watch", "never"), ("--nonsense",), ("--watch", "--json")):
            self.assertEqual(self.command(*connect, *wrong).returncode, 2, wrong)
        nobody = self.command("--connect", "unix:/nonexistent/moged.sock")
        self.assertEqual(nobody.returncode, 1)
        self.assertIn("nobody answers", nobody.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
