# SPDX-License-Identifier: Apache-2.0
"""Real streams from Python's grpcio: many at once, cancelled, late, the same bytes every time."""
import random
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import grpc

import daemon

pb, pb_grpc, _, _ = daemon.stubs()
WORDS = ("select", " from", " the", " index", "\n", " where", " x", " = ", "7", " é", " 語", ", ")


def prompt_of(seed):
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 60)))


def request_of(seed, mode=pb.Speculation.MODE_DEFAULT, length=None, max_tokens=48, stop=True):
    """Greedy or sampled in various ways; the same seed is the same request."""
    rng = random.Random(seed + 1000)
    request = pb.GenerateRequest(text=prompt_of(seed))
    request.sampling.temperature = rng.choice([0, 0.7, 1.0])
    request.sampling.seed = seed
    if seed % 4 == 1:
        request.sampling.top_p = 0.9
        request.sampling.repetition_penalty = 1.2
    if seed % 5 == 2 and stop:
        request.stopping.stop.append(" t")
    request.stopping.max_tokens = max_tokens
    request.stopping.ignore_eos = True
    request.speculation.mode = mode
    if length is not None:
        request.speculation.length = length
    return request


def collect(stub, request, timeout=120):
    """(text, ids, finish) of one stream, with what every stream must satisfy checked."""
    text, ids, finish = "", [], None
    for response in stub.Generate(request, timeout=timeout):
        assert finish is None, "a message after the last one"
        text += response.text
        ids += response.token_ids
        if response.HasField("finish"):
            finish = response.finish
    assert finish is not None, "no last message"
    return text, ids, finish


class Streams(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = daemon.Daemon("--max-running", "16", "--draft-len-max", "16")
        cls.daemon.wait_ready()
        cls.stub = pb_grpc.MogeStub(cls.daemon.channel())

    @classmethod
    def tearDownClass(cls):
        cls.daemon.__exit__()

    def test_one_stream_is_whole(self):
        text, ids, finish = collect(self.stub, request_of(3, max_tokens=40, stop=False))
        self.assertEqual(finish.usage.output_tokens, len(ids))
        self.assertEqual(len(ids), 40)
        self.assertEqual(finish.reason, pb.Finish.REASON_LENGTH)
        self.assertEqual(finish.seed, 3)
        self.assertGreater(finish.usage.prompt_tokens, 0)
        self.assertGreater(finish.timings.decode_us, 0)
        shown = self.stub.Detokenize(pb.DetokenizeRequest(token_ids=ids, continues=True)).text
        self.assertEqual(text, shown)

    def test_64_concurrent_streams(self):
        channels = [self.daemon.channel() for _ in range(8)]
        stubs = [pb_grpc.MogeStub(c) for c in channels]
        with ThreadPoolExecutor(64) as pool:
            work = [pool.submit(collect, stubs[i % 8], request_of(i)) for i in range(64)]
            at_once = [w.result() for w in work]
        for i in range(0, 64, 9):
            alone = collect(self.stub, request_of(i))
            self.assertEqual(at_once[i][:2], alone[:2], f"stream {i} differs from itself alone")

    def test_same_bytes_whatever_is_guessed(self):
        """Speculation off, auto and fixed, 16 streams at once in random order."""
        modes = [(pb.Speculation.MODE_OFF, None), (pb.Speculation.MODE_AUTO, None)]
        modes += [(pb.Speculation.MODE_FIXED, k) for k in (1, 2, 4, 8, 16)]
        jobs = [(seed, mode, length) for seed in range(16) for mode, length in modes]
        random.Random(7).shuffle(jobs)
        offered = 0
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(
                lambda j: (j, collect(self.stub, request_of(j[0], j[1], j[2]))), jobs))
        first = {}
        for (seed, mode, length), (text, ids, finish) in results:
            if mode == pb.Speculation.MODE_OFF:
                self.assertEqual(finish.guesses.offered, 0, "guesses though speculation is off")
            if mode == pb.Speculation.MODE_FIXED:
                offered += finish.guesses.offered
            self.assertLessEqual(finish.guesses.accepted, finish.guesses.offered)
            self.assertEqual((text, ids), first.setdefault(seed, (text, ids)),
                             f"seed {seed}, mode {mode}, length {length}")
        self.assertGreater(offered, 0, "fixed lengths guessed nothing: this test tested nothing")

    def test_stop_string_ends_the_text_before_it(self):
        whole, _, _ = collect(self.stub, request_of(4, max_tokens=60))
        self.assertGreater(len(whole), 12)
        stop = whole[8:11]
        request = request_of(4, max_tokens=60)
        request.stopping.stop.append(stop)
        text, _, finish = collect(self.stub, request)
        self.assertEqual(text, whole[:whole.index(stop)])
        self.assertEqual(finish.reason, pb.Finish.REASON_STOP)
        self.assertEqual(finish.matched_stop, stop)

    def test_logprobs_come_with_every_token(self):
        request = request_of(5)
        request.logprobs = 3
        ids, logprobs = [], []
        for response in self.stub.Generate(request, timeout=60):
            ids += response.token_ids
            logprobs += response.logprobs
        self.assertEqual(len(ids), len(logprobs))
        for entry in logprobs:
            self.assertEqual(len(entry.top), 3)
            self.assertLessEqual(entry.logprob, 0)
            self.assertGreaterEqual(entry.top[0].logprob, entry.top[2].logprob)

    def test_prompt_logprobs_come_first_and_are_the_same_in_company(self):
        def scores(seed, n_words):
            rng = random.Random(seed)
            request = request_of(seed, max_tokens=8)
            request.text = "".join(rng.choice(WORDS) for _ in range(n_words))
            request.prompt_logprobs = 2
            got, ids, finish = [], [], None
            for response in self.stub.Generate(request, timeout=120):
                if response.prompt_tokens:
                    self.assertEqual(ids, [])
                got += [(t.id, t.piece, t.logprobs.logprob, t.logprobs.rank,
                         [(a.id, a.logprob) for a in t.logprobs.top])
                        for t in response.prompt_tokens]
                ids += response.token_ids
                finish = response.finish
            prompt = self.stub.Tokenize(pb.TokenizeRequest(text=request.text)).token_ids
            self.assertEqual([s[0] for s in got], list(prompt[1:]))
            self.assertEqual(finish.usage.prompt_tokens, len(prompt))
            self.assertEqual(finish.usage.cached_tokens, 0)
            for _, _, logprob, rank, top in got:
                self.assertLessEqual(logprob, 0)
                self.assertEqual(len(top), 2)
                self.assertEqual(rank == 1, logprob == top[0][1])
            return got, ids
        jobs = [(seed, 20 + 18 * seed) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda j: scores(*j), jobs))
        self.assertGreater(len(together[7][0]), 150)  # several rings full
        for job, got in zip(jobs, together):
            self.assertEqual(scores(*job), got)

    def samples(self, request):
        """[(text, ids, finish)] of each sample."""
        n = max(request.n, 1)
        texts, ids, finishes = [""] * n, [[] for _ in range(n)], [None] * n
        for response in self.stub.Generate(request, timeout=120):
            self.assertIsNone(finishes[response.index], "a message after a sample's last one")
            texts[response.index] += response.text
            ids[response.index] += response.token_ids
            if response.HasField("finish"):
                finishes[response.index] = response.finish
        self.assertNotIn(None, finishes)
        return list(zip(texts, ids, finishes))

    def test_samples_are_requests_of_their_own(self):
        def check(seed):
            request = request_of(seed)
            request.sampling.temperature = 1
            request.n = 1 + seed % 4
            got = self.samples(request)
            self.assertEqual(got[0][2].seed, request.sampling.seed)
            self.assertEqual(len({finish.seed for _, _, finish in got}), request.n)
            for i, (text, ids, finish) in enumerate(got):
                alone = request_of(seed)
                alone.sampling.temperature = 1
                alone.sampling.seed = finish.seed
                alone_text, alone_ids, alone_finish = collect(self.stub, alone)
                self.assertEqual((text, ids), (alone_text, alone_ids), f"sample {i}")
                self.assertEqual(finish.reason, alone_finish.reason)
                self.assertEqual(finish.usage.output_tokens, alone_finish.usage.output_tokens)
                self.assertEqual(finish.usage.prompt_tokens,
                                 0 if i else alone_finish.usage.prompt_tokens)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(check, range(24)))
        for n in (-1, 9):
            request = request_of(1)
            request.n = n
            with self.assertRaises(grpc.RpcError) as caught:
                self.samples(request)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn(f"n is {n}; this server allows 1..8", caught.exception.details())

    def test_cancel_ends_all_samples(self):
        request = request_of(6, max_tokens=400, stop=False)
        request.n = 4
        call = self.stub.Generate(request, timeout=60)
        next(call)
        call.cancel()
        end = time.monotonic() + daemon.HOPELESS_S
        while time.monotonic() < end:
            stats = self.stub.GetStats(pb.GetStatsRequest())
            if stats.running == 0 and stats.waiting == 0:
                break
            time.sleep(0.02)
        self.assertEqual((stats.running, stats.waiting), (0, 0))

    def test_deadline(self):
        """64 long streams at once cannot all be done in a moment: the late ones say so."""
        codes, done = [], threading.Lock()

        def late(i):
            try:
                collect(self.stub, request_of(i, max_tokens=400), timeout=0.05)
            except grpc.RpcError as error:
                with done:
                    codes.append(error.code())
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(late, range(64)))
        self.assertGreater(len(codes), 0)
        self.assertEqual(set(codes), {grpc.StatusCode.DEADLINE_EXCEEDED})
        collect(self.stub, request_of(1))

    def test_unseeded_requests_differ_and_say_their_seed(self):
        request = request_of(2, max_tokens=40)
        request.sampling.temperature = 1
        request.sampling.ClearField("seed")
        text_a, _, finish_a = collect(self.stub, request)
        text_b, _, finish_b = collect(self.stub, request)
        self.assertNotEqual(finish_a.seed, finish_b.seed)
        self.assertNotEqual(text_a, text_b)
        request.sampling.seed = finish_a.seed
        self.assertEqual(collect(self.stub, request)[0], text_a)


class Room(unittest.TestCase):
    """A daemon with room for two requests: what a cancelled one held must come back."""

    def test_cancelled_streams_give_back_what_they_held(self):
        with daemon.Daemon("--max-running", "2", "--kv-memory", "auto") as d:
            stub = pb_grpc.MogeStub(d.channel())
            for i in range(40):
                call = stub.Generate(request_of(i, max_tokens=400, stop=False))
                next(call)
                call.cancel()
                with self.assertRaises(grpc.RpcError) as caught:
                    for _ in call:
                        pass
                self.assertEqual(caught.exception.code(), grpc.StatusCode.CANCELLED)
            with ThreadPoolExecutor(4) as pool:
                work = [pool.submit(collect, stub, request_of(i, max_tokens=200, stop=False))
                        for i in range(4)]
                self.assertEqual([w.result()[2].usage.output_tokens for w in work], [200] * 4)

    def test_queue_full(self):
        with daemon.Daemon("--max-running", "1", "--max-queued", "2") as d:
            stub = pb_grpc.MogeStub(d.channel())
            codes, sentences, lock = [], [], threading.Lock()

            def ask(i):
                try:
                    collect(stub, request_of(i, max_tokens=300))
                    result = (grpc.StatusCode.OK, "")
                except grpc.RpcError as error:
                    result = (error.code(), error.details())
                with lock:
                    codes.append(result[0])
                    sentences.append(result[1])
            with ThreadPoolExecutor(32) as pool:
                list(pool.map(ask, range(32)))
            self.assertIn(grpc.StatusCode.RESOURCE_EXHAUSTED, codes)
            self.assertIn(grpc.StatusCode.OK, codes)
            self.assertEqual(set(codes), {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED})
            self.assertTrue(any("queue" in s for s in sentences), sentences)
            collect(stub, request_of(1))


if __name__ == "__main__":
    unittest.main(verbosity=2)
