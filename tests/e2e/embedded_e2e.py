# SPDX-License-Identifier: Apache-2.0
"""The pair that comes with moged, served without a word on the command line: it is found, guessing
works, and changes no byte."""
import glob
import os
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor

import daemon

pb, pb_grpc, _, _ = daemon.stubs()
PROMPTS = ("The query planner", "An index is", "static int ", "If the database", "CREATE TABLE t(")


def stream(stub, i, mode, length=None, drafter=pb.Speculation.DRAFTER_DEFAULT):
    request = pb.GenerateRequest(text=PROMPTS[i % len(PROMPTS)])
    request.sampling.temperature = (0, 1, 0.7)[i % 3]
    request.sampling.seed = i
    request.stopping.max_tokens = 64
    request.speculation.mode = mode
    if length:
        request.speculation.length = length
    request.speculation.drafter = drafter
    responses = list(stub.Generate(request, timeout=300))
    return "".join(r.text for r in responses), responses[-1].finish


class Embedded(unittest.TestCase):
    def test_served_by_default_and_the_same_whatever_is_guessed(self):
        with daemon.Daemon(model=None, draft=None) as d:
            self.assertIn("embedded", d.log())
            stub = pb_grpc.MogeStub(d.channel())
            info = stub.GetModelInfo(pb.GetModelInfoRequest())
            self.assertEqual(info.target.architecture, "pangu-moe")
            self.assertEqual(info.target.expert_groups, 8)
            self.assertTrue(info.HasField("draft"))
            kinds = [(pb.Speculation.MODE_OFF, None), (pb.Speculation.MODE_AUTO, None),
                     (pb.Speculation.MODE_FIXED, 1), (pb.Speculation.MODE_FIXED, 4)]
            jobs = [(i, mode, length) for i in range(10) for mode, length in kinds]
            with ThreadPoolExecutor(8) as pool:
                results = list(pool.map(lambda job: stream(stub, *job), jobs))
            offered = accepted = 0
            for n, (i, mode, length) in enumerate(jobs):
                text, finish = results[n]
                self.assertEqual(text, results[n - n % len(kinds)][0], f"{i} {mode} {length}")
                if mode == pb.Speculation.MODE_FIXED and length == 1:
                    offered += finish.guesses.offered
                    accepted += finish.guesses.accepted
            self.assertGreater(offered, 0)
            # A draft that was distilled from its target agrees far more often than chance.
            self.assertGreater(accepted / offered, 0.2)
            self.assertEqual(d.terminate(), 0, d.log())

    def test_drafters_of_a_request(self):
        """A daemon that has a draft model runs both: each request guesses with whom it asks for, all get the same bytes."""
        spec = pb.Speculation
        with daemon.Daemon(model=None, draft=None) as d:
            stub = pb_grpc.MogeStub(d.channel())
            self.assertEqual(stub.GetModelInfo(pb.GetModelInfoRequest()).server.drafter, "both")
            kinds = [(spec.MODE_OFF, None, spec.DRAFTER_DEFAULT)]
            kinds += [(spec.MODE_FIXED, 4, drafter) for drafter in range(4)]
            kinds += [(spec.MODE_AUTO, None, drafter) for drafter in range(4)]
            jobs = [(i,) + kind for i in range(10) for kind in kinds]
            with ThreadPoolExecutor(8) as pool:
                results = list(pool.map(lambda job: stream(stub, *job), jobs))
        seen = {}
        for n, (i, mode, length, drafter) in enumerate(jobs):
            text, finish = results[n]
            self.assertEqual(text, results[n - n % len(kinds)][0], f"{i} {mode} {length} {drafter}")
            guesses, by = finish.guesses, finish.guesses.by_drafter
            self.assertEqual(sum(b.offered for b in by), guesses.offered)
            self.assertEqual(sum(b.accepted for b in by), guesses.accepted)
            self.assertEqual(sum(sum(b.accepted_by_position) for b in by), guesses.accepted)
            for b in by:
                if drafter in (spec.DRAFTER_MODEL, spec.DRAFTER_NGRAM):
                    self.assertEqual(b.drafter, drafter)
                seen[drafter, b.drafter] = seen.get((drafter, b.drafter), 0) + b.accepted
        for pair in ((1, 1), (2, 2), (3, 1), (3, 2)):
            self.assertGreater(seen.get(pair, 0), 0, f"nothing accepted: {pair} of {seen}")


if __name__ == "__main__":
    if not glob.glob(os.path.join(daemon.ROOT, "models/*.gguf")):
        print("SKIP: models/*.gguf are not there; tools/train makes them")
        sys.exit(77)
    unittest.main(verbosity=2)
