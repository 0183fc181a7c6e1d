# SPDX-License-Identifier: Apache-2.0
"""moge bench serve against a daemon with the embedded pair: its counts are those of the daemon, its
times fit together, and what fails is counted and named."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import daemon

pb, pb_grpc, _, _ = daemon.stubs()
METRICS = ("ttft", "tpot", "itl", "e2el")
# What vLLM's serving bench writes about a run.
KEYS = {"duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "request_goodput", "output_throughput", "total_token_throughput", "max_concurrent_requests", "num_prompts",
        "request_rate", "max_concurrency", "backend"}
KEYS |= {f"{kind}_{metric}_ms" for metric in METRICS for kind in ("mean", "median", "std", "p50", "p90", "p99")}


def bench(address, *options, status=0):
    done = subprocess.run([daemon.MOGE, "bench", "serve", "--connect", address, *options], text=True,
                          capture_output=True, timeout=300, preexec_fn=daemon.die_with_parent)
    assert done.returncode == status, (done.returncode, done.stderr)
    return done


def result(address, *options):
    return json.loads(bench(address, *options, "--json").stdout)


class BenchServe(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = daemon.Daemon(model=None, draft=None)
        cls.daemon.wait_ready()
        cls.address = cls.daemon.address
        cls.stub = pb_grpc.MogeStub(cls.daemon.channel())

    @classmethod
    def tearDownClass(cls):
        cls.daemon.__exit__()

    def n_generated(self):
        counters = self.stub.GetStats(pb.GetStatsRequest(), timeout=10).counters
        return {c.name: c.value for c in counters}["generation_tokens_total"]

    def check(self, run, n_requests, n_in, n_out):
        self.assertLessEqual(KEYS, set(run))
        self.assertEqual((run["completed"], run["failed"], run["failed_by_status"]), (n_requests, 0, {}))
        self.assertEqual((run["total_input_tokens"], run["total_output_tokens"]), (n_in, n_out))
        for key, value in (("request_throughput", n_requests), ("output_throughput", n_out),
                           ("total_token_throughput", n_in + n_out)):
            self.assertAlmostEqual(run[key] * run["duration"], value, delta=1e-4 * value)
        for metric in METRICS:
            ordered = [run[f"{kind}_{metric}_ms"] for kind in ("p50", "p90", "p99")]
            self.assertEqual(ordered, sorted(ordered))
            self.assertEqual(run[f"median_{metric}_ms"], run[f"p50_{metric}_ms"])
            self.assertGreater(ordered[-1], 0, metric)
        self.assertLess(run["mean_ttft_ms"], run["mean_e2el_ms"])
        self.assertLessEqual(run["p99_e2el_ms"], 1000 * run["duration"])

    def test_a_closed_loop(self):
        before = self.n_generated()
        run = result(self.address, "--concurrency", "8", "--requests", "24", "--warmup", "2", "--input-len", "24",
                     "--output-len", "9")
        self.check(run, 24, 24 * 24, 24 * 9)
        self.assertEqual(run["max_concurrent_requests"], 8)
        self.assertEqual((run["request_rate"], run["max_concurrency"], run["request_goodput"]), (None, 8, None))
        self.assertEqual(self.n_generated() - before, 26 * 9)

    def test_arrivals_at_a_rate(self):
        run = result(self.address, "--rate", "60", "--requests", "30", "--input-len", "8", "--output-len", "4",
                     "--goodput", "ttft:1e9,tpot:1e9,e2el:1e9", "--seed", "5")
        self.check(run, 30, 30 * 8, 30 * 4)
        self.assertEqual((run["request_rate"], run["max_concurrency"]), (60, None))
        self.assertAlmostEqual(run["request_goodput"], run["request_throughput"])
        strict = result(self.address, "--rate", "inf", "--requests", "10", "--input-len", "8", "--output-len", "4",
                        "--goodput", "ttft:0.001")
        self.assertEqual((strict["request_rate"], strict["request_goodput"]), ("inf", 0))

    def test_hundreds_of_streams_at_once(self):
        run = result(self.address, "--rate", "inf", "--requests", "250", "--input-len", "4", "--output-len", "2")
        self.check(run, 250, 250 * 4, 250 * 2)
        self.assertGreater(run["max_concurrent_requests"], 100)

    def test_a_file_of_prompts(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            for i in range(5):
                file.write(json.dumps({"prompt": f"select {i} from x", "output_len": 3 + i}) + "\n")
            file.flush()
            run = result(self.address, "--concurrency", "3", "--requests", "10", "--dataset", file.name,
                         "--speculation", "2", "--temperature", "1")
            self.assertEqual(run["total_output_tokens"], 2 * (3 + 4 + 5 + 6 + 7))
            self.assertGreater(run["offered_guesses"], 0)
            self.assertGreaterEqual(run["tokens_per_message"], 1)
            text = bench(self.address, "--concurrency", "2", "--requests", "4", "--dataset", file.name).stdout
            self.assertIn("4 of 4 requests completed", text)
            file.write("{\"prompt\": 1}\n")
            file.flush()
            said = bench(self.address, "--rate", "5", "--dataset", file.name, status=1).stderr
            self.assertIn("line 6", said)

    def test_failures_are_counted_by_status(self):
        with daemon.Daemon("--max-running", "1", "--max-queued", "2", model=None, draft=None) as d:
            d.wait_ready()
            run = result(d.address, "--rate", "inf", "--requests", "40", "--output-len", "40")
            self.assertEqual(run["completed"] + run["failed"], 40)
            self.assertGreater(run["completed"], 0)
            self.assertEqual(run["failed_by_status"], {"RESOURCE_EXHAUSTED": run["failed"]})
            self.assertEqual(run["total_output_tokens"], 40 * run["completed"])
            said = bench(d.address, "--rate", "inf", "--requests", "3", "--output-len", "1000", "--timeout", "0.01",
                         status=1).stderr
            self.assertIn("none of 3 requests completed; the first: ", said)
            too_long = bench(d.address, "--concurrency", "1", "--requests", "1", "--input-len", "100000", status=1)
            self.assertIn("the prompt has more than", too_long.stderr)
            self.assertEqual(result(d.address, "--concurrency", "1", "--requests", "2")["completed"], 2)

    def test_an_interrupted_run_leaves_nothing(self):
        run = subprocess.Popen([daemon.MOGE, "bench", "serve", "--connect", self.address, "--rate", "inf",
                                "--requests", "60", "--output-len", "500"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, preexec_fn=daemon.die_with_parent)
        while self.stub.GetStats(pb.GetStatsRequest(), timeout=10).running == 0 and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=daemon.HOPELESS_S)
        self.assertEqual((run.returncode, out), (130, b""), err)
        end = time.monotonic() + daemon.HOPELESS_S
        while True:
            stats = self.stub.GetStats(pb.GetStatsRequest(), timeout=10)
            if (stats.running, stats.waiting, stats.pages.used) == (0, 0, 0):
                break
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)

    def test_wrong_options(self):
        for options in ((), ("--rate", "1", "--concurrency", "1"), ("--rate", "0"), ("--rate", "nan"),
                        ("--concurrency", "0"), ("--rate", "1", "--requests", "0"), ("--rate", "1", "x"),
                        ("--rate", "1", "--goodput", "ttft"), ("--rate", "1", "--goodput", "ttft:-1"),
                        ("--rate", "1", "--speculation", "17"), ("--rate", "1", "--seed", "-1"), ("--nonsense",)):
            said = bench(self.address, *options, status=2).stderr
            self.assertEqual(said.count("\n"), 1, options)
        nobody = bench("unix:/nonexistent/moged.sock", "--rate", "1", status=1)
        self.assertIn("nobody answers", nobody.stderr)
        no_file = bench(self.address, "--rate", "1", "--dataset", "/nonexistent/file", status=1)
        self.assertIn("/nonexistent/file cannot be read", no_file.stderr)

    def test_the_plot(self):
        plot = os.path.join(daemon.ROOT, "bench/serve_plot.py")
        with tempfile.TemporaryDirectory() as folder:
            runs, out = os.path.join(folder, "runs.jsonl"), os.path.join(folder, "out.svg")
            with open(runs, "w") as file:
                for n in (1, 4):
                    file.write(bench(self.address, "--concurrency", str(n), "--requests", "4", "--input-len", "4",
                                     "--output-len", "3", "--json").stdout)
            subprocess.run([sys.executable, plot, out, runs], check=True, timeout=60)
            with open(out) as file:
                drawn = file.read()
            self.assertIn("</svg>", drawn)
            self.assertEqual(drawn.count("<polyline"), 3 + 3 + 1)
            wrong = subprocess.run([sys.executable, plot, out, "/dev/null"], capture_output=True, text=True)
            self.assertNotEqual(wrong.returncode, 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
