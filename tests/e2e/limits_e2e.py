# SPDX-License-Identifier: Apache-2.0
"""Limits on waiting and on pages, as a client meets them: what is refused, with which status and
sentence, and that running out of pages changes nothing that a client sees."""
import re
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import grpc

import daemon

pb, pb_grpc, _, _ = daemon.stubs()


def request_of(seed, n_prompt=8, max_tokens=64):
    request = pb.GenerateRequest()
    request.token_ids.ids.extend(3 + (seed * 31 + i * 7) % 90 for i in range(n_prompt))
    request.sampling.seed = seed
    request.stopping.max_tokens = max_tokens
    request.stopping.ignore_eos = True
    return request


def collect(stub, request, timeout=120):
    """Token ids and the last message's finish."""
    ids, finish = [], None
    for response in stub.Generate(request, timeout=timeout):
        ids += response.token_ids
        if response.HasField("finish"):
            finish = response.finish
    return ids, finish


def refusals(stub, requests):
    """Sends all at once: [(code, sentence)] of those that failed, and how many did not."""
    def ask(request):
        try:
            collect(stub, request)
            return None
        except grpc.RpcError as error:
            return error.code(), error.details()
    with ThreadPoolExecutor(len(requests)) as pool:
        results = list(pool.map(ask, requests))
    return [r for r in results if r], results.count(None)


def counters(stub):
    return {c.name: c.value for c in stub.GetStats(pb.GetStatsRequest(), timeout=10).counters}


class Limits(unittest.TestCase):
    def check_refused(self, stub, requests, sentence):
        refused, n_served = refusals(stub, requests)
        self.assertGreater(len(refused), 0)
        self.assertGreater(n_served, 0)
        self.assertEqual({code for code, _ in refused}, {grpc.StatusCode.RESOURCE_EXHAUSTED})
        for _, details in refused:
            self.assertRegex(details, sentence)
        self.assertEqual(counters(stub)["request_refused_total"], len(refused))
        collect(stub, request_of(1))  # and afterwards there is room again
        return len(refused)

    def test_a_full_queue_refuses(self):
        with daemon.Daemon("--max-running", "1", "--max-queued", "3") as d:
            self.check_refused(pb_grpc.MogeStub(d.channel()), [request_of(i, max_tokens=300) for i in range(24)],
                               r"the queue is full: 3 requests are waiting")

    def test_waiting_tokens_have_a_limit_of_their_own(self):
        with daemon.Daemon("--max-running", "1", "--max-queued-tokens", "1000") as d:
            requests = [request_of(i, n_prompt=400, max_tokens=100) for i in range(24)]
            self.check_refused(pb_grpc.MogeStub(d.channel()), requests,
                               r"the queue is full: (400|800) prompt tokens are waiting and this request has 400 more")

    def test_who_waits_too_long_is_refused(self):
        # One of them takes longer than the limit, an idle daemon's wake-up never does.
        with daemon.Daemon("--max-running", "1", "--queue-age-max", "0.2", model=None, draft=None) as d:
            stub = pb_grpc.MogeStub(d.channel())
            n_refused = self.check_refused(stub, [request_of(i, max_tokens=200) for i in range(32)],
                                           r"has waited .* s for its turn; the server's limit is [0-9.]+ s")
            self.assertEqual(counters(stub)["request_refused_age_total"], n_refused)

    def test_a_hopeless_deadline_is_refused_at_once(self):
        with daemon.Daemon("--max-running", "16", model=None, draft=None) as d:
            stub = pb_grpc.MogeStub(d.channel())
            begin = time.monotonic()
            collect(stub, request_of(0, n_prompt=400, max_tokens=1))  # what a prompt token takes
            one_prompt_s = time.monotonic() - begin
            # Many prompts ahead; each further request has less time than they need.
            ahead = [stub.Generate(request_of(i, n_prompt=400, max_tokens=100)) for i in range(1, 80)]
            end = time.monotonic() + daemon.HOPELESS_S
            while time.monotonic() < end:
                stats = stub.GetStats(pb.GetStatsRequest(), timeout=10)
                if stats.running + stats.waiting > 40:
                    break
                time.sleep(0.005)
            timeout, sentences = max(0.5, 10 * one_prompt_s), []
            while timeout > 0.02 and not sentences:
                try:
                    collect(stub, request_of(500, n_prompt=400, max_tokens=1), timeout=timeout)
                except grpc.RpcError as error:
                    self.assertEqual(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
                    if "is expected after" in error.details():
                        sentences.append(error.details())
                timeout /= 1.5
            for call in ahead:
                call.cancel()
            self.assertTrue(sentences)
            left, expected = map(float, re.findall(r"([0-9.]+) s\b", sentences[0])[:2])
            self.assertLess(left, expected)
            collect(stub, request_of(1))
            self.assertGreater(counters(stub)["request_refused_deadline_total"], 0)

    def test_running_out_of_pages_changes_nothing(self):
        famine = ("--kv-memory", "256KiB")  # pages for 800 tokens; eight requests grow to 420 each
        outputs, preemptions = {}, {}
        for name, options in {"plenty": (), "optimistic": famine,
                              "reserve": (*famine, "--admission", "reserve")}.items():
            with daemon.Daemon("--max-running", "8", *options) as d:
                stub = pb_grpc.MogeStub(d.channel())
                with ThreadPoolExecutor(16) as pool:
                    results = list(pool.map(
                        lambda i: collect(stub, request_of(i, n_prompt=20 + i, max_tokens=400)), range(16)))
                outputs[name] = [ids for ids, _ in results]
                preemptions[name] = sum(finish.usage.preemptions for _, finish in results)
                self.assertEqual(counters(stub)["num_preemptions_total"], preemptions[name])
        self.assertEqual(outputs["optimistic"], outputs["plenty"])
        self.assertEqual(outputs["reserve"], outputs["plenty"])
        self.assertGreater(preemptions["optimistic"], 0)
        self.assertEqual((preemptions["reserve"], preemptions["plenty"]), (0, 0))


if __name__ == "__main__":
    unittest.main(verbosity=2)
