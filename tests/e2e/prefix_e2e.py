# SPDX-License-Identifier: Apache-2.0
"""Requests that begin alike: what was computed is not computed again, and no byte depends on it."""
import unittest

import daemon

pb, pb_grpc, _, _ = daemon.stubs()

BEGINNING = "You are a patient assistant who answers in one short sentence. " * 6


def generate(stub, text, salt=b"", speculation=pb.Speculation.MODE_AUTO):
    """The output, and how many tokens of the prompt were there, and in all."""
    request = pb.GenerateRequest(text=text, cache_salt=salt)
    request.sampling.seed = 11
    request.stopping.max_tokens = 24
    request.speculation.mode = speculation
    responses = list(stub.Generate(request, timeout=60))
    usage = responses[-1].finish.usage
    return [t for r in responses for t in r.token_ids], usage.cached_tokens, usage.prompt_tokens


class Prefix(unittest.TestCase):
    def test_a_second_question_finds_the_beginning(self):
        with daemon.Daemon() as server:
            stub = pb_grpc.MogeStub(server.channel())
            cold, n_cached, n_prompt = generate(stub, BEGINNING + "One?")
            self.assertEqual(n_cached, 0)
            for mode in pb.Speculation.MODE_OFF, pb.Speculation.MODE_AUTO:
                again, n_cached, _ = generate(stub, BEGINNING + "One?", speculation=mode)
                self.assertEqual(again, cold)
                self.assertEqual(n_cached, (n_prompt - 1) // 16 * 16)
            _, n_cached, _ = generate(stub, BEGINNING + "Two, and something else?")
            self.assertGreater(n_cached, 48)

    def test_a_salt_keeps_to_itself(self):
        with daemon.Daemon() as server:
            stub = pb_grpc.MogeStub(server.channel())
            cold, _, _ = generate(stub, BEGINNING)
            salted, n_cached, _ = generate(stub, BEGINNING, salt=b"tenant\0one")
            self.assertEqual((salted, n_cached), (cold, 0))
            self.assertEqual(generate(stub, BEGINNING, salt=b"tenant\0two")[1], 0)
            self.assertGreater(generate(stub, BEGINNING, salt=b"tenant\0one")[1], 0)

    def test_it_can_be_turned_off(self):
        with daemon.Daemon("--prefix-cache=no") as server:
            stub = pb_grpc.MogeStub(server.channel())
            cold, _, _ = generate(stub, BEGINNING)
            self.assertEqual(generate(stub, BEGINNING)[:2], (cold, 0))


if __name__ == "__main__":
    unittest.main(verbosity=2)
