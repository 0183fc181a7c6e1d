# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a request is said in one sentence with the right status, and a stream that
runs beside all of it gives the same bytes every time."""
import threading
import unittest

import grpc

import daemon

pb, pb_grpc, _, _ = daemon.stubs()
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def raw(channel, method, data):
    """Sends bytes as they are and returns the stream."""
    return channel.unary_stream("/moge.v1.Moge/" + method, request_serializer=lambda b: b,
                                response_deserializer=lambda b: b)(data, timeout=30)


def field(number, data):
    """A length-delimited protobuf field of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = daemon.Daemon("--max-message-bytes", "64KiB", "--drafter", "model")
        cls.daemon.wait_ready()
        cls.channel = cls.daemon.channel()
        cls.stub = pb_grpc.MogeStub(cls.channel)
        cls.stop_neighbour = threading.Event()
        cls.neighbour_texts = []
        cls.neighbour = threading.Thread(target=cls.run_neighbour)
        cls.neighbour.start()

    @classmethod
    def run_neighbour(cls):
        stub = pb_grpc.MogeStub(cls.daemon.channel())
        while not cls.stop_neighbour.is_set() or len(cls.neighbour_texts) < 2:
            request = cls.good(text="The neighbour is not disturbed", max_tokens=60)
            cls.neighbour_texts.append(
                "".join(r.text for r in stub.Generate(request, timeout=60)))

    @classmethod
    def tearDownClass(cls):
        cls.stop_neighbour.set()
        cls.neighbour.join()
        cls.daemon.__exit__()
        assert len(set(cls.neighbour_texts)) == 1, "the neighbour's bytes changed"

    @staticmethod
    def good(max_tokens=4, **fields):
        request = pb.GenerateRequest(**(fields or {"text": "select"}))
        request.stopping.max_tokens = max_tokens
        request.sampling.temperature = 0
        return request

    def refused(self, call, code, *words):
        """Runs the call; its status and sentence must be these, and the daemon must live on."""
        with self.assertRaises(grpc.RpcError) as caught:
            for _ in call():
                pass
        sentence = caught.exception.details()
        self.assertEqual(caught.exception.code(), code, sentence)
        self.assertTrue(10 < len(sentence) <= 400 and "\n" not in sentence, sentence)
        for word in words:
            self.assertIn(word, sentence)
        list(self.stub.Generate(self.good(), timeout=30))

    def generate_refused(self, request, *words):
        self.refused(lambda: self.stub.Generate(request, timeout=30), INVALID, *words)

    def test_prompt(self):
        self.generate_refused(pb.GenerateRequest(), "prompt")
        self.generate_refused(self.good(text=""), "prompt")
        self.generate_refused(self.good(token_ids=pb.TokenIds()), "prompt")
        self.generate_refused(self.good(text="word " * 2000), "512")
        self.generate_refused(self.good(token_ids=pb.TokenIds(ids=[5] * 513)), "512")
        self.generate_refused(self.good(token_ids=pb.TokenIds(ids=[1, 512])), "512")
        self.generate_refused(self.good(token_ids=pb.TokenIds(ids=[2**32 - 1])), "4294967295")

    def test_ranges(self):
        nan, inf = float("nan"), float("inf")
        for name, values in (("temperature", (-1, nan, inf)), ("top_p", (0, 1.5, -1, nan)),
                             ("min_p", (-0.1, 1, nan)), ("top_k", (-1,)),
                             ("repetition_penalty", (0, -1, nan)),
                             ("presence_penalty", (2.5, -2.5, nan)),
                             ("frequency_penalty", (2.5, -2.5, nan))):
            for value in values:
                request = self.good()
                setattr(request.sampling, name, value)
                self.generate_refused(request, name)

    def test_stopping(self):
        for value in (0, -1, -2**31):
            self.generate_refused(self.good(max_tokens=value), "max_tokens")
        for values in (["x"] * 17, [""], ["y" * 257]):
            request = self.good()
            request.stopping.stop.extend(values)
            self.generate_refused(request, "stop")
        request = self.good()
        request.stopping.stop_token_ids.append(512)
        self.generate_refused(request, "512")
        request = self.good(max_tokens=4)
        request.stopping.min_tokens = 5
        self.generate_refused(request, "min_tokens")

    def test_speculation_and_logprobs(self):
        for length in (0, 17, -1):
            request = self.good()
            request.speculation.mode = pb.Speculation.MODE_FIXED
            request.speculation.length = length
            self.generate_refused(request, "length")
        request = self.good()
        request.speculation.mode = pb.Speculation.MODE_FIXED
        self.generate_refused(request, "length")
        request = self.good()
        request.speculation.mode = 77
        self.generate_refused(request, "mode")
        for drafter, words in ((9, "not a drafter"), (pb.Speculation.DRAFTER_NGRAM, "drafter is")):
            request = self.good()
            request.speculation.drafter = drafter
            self.generate_refused(request, words)
        request = self.good()
        request.speculation.mode = pb.Speculation.MODE_OFF
        request.speculation.drafter = pb.Speculation.DRAFTER_MODEL
        self.generate_refused(request, "MODE_OFF")
        for value in (-1, 21):
            request = self.good()
            request.logprobs = value
            self.generate_refused(request, "logprobs")

    def test_logit_bias(self):
        request = self.good()
        request.sampling.logit_bias.add(id=512, bias=1)
        self.generate_refused(request, "512")
        request = self.good()
        request.sampling.logit_bias.add(id=5, bias=float("nan"))
        self.generate_refused(request, "logit_bias")
        request = self.good()
        for _ in range(1025):
            request.sampling.logit_bias.add(id=5, bias=1)
        self.generate_refused(request, "logit_bias")

    def test_bytes_that_are_not_utf8(self):
        for text in (b"\xff", b"ab\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"):
            self.refused(lambda: raw(self.channel, "Generate", field(1, text)), INVALID, "UTF-8")
            self.refused(lambda: raw(self.channel, "Tokenize", field(1, text)), INVALID, "UTF-8")

    def test_nul_is_an_ordinary_character(self):
        ids = self.stub.Tokenize(pb.TokenizeRequest(text="a\0b")).token_ids
        self.assertGreater(len(ids), len(self.stub.Tokenize(pb.TokenizeRequest(text="a")).token_ids))
        self.assertEqual(self.stub.Detokenize(pb.DetokenizeRequest(token_ids=ids)).text, "a\0b")

    def test_messages_that_are_not_protobuf(self):
        for data in (b"\x0a\xff\xff\xff\xff\x0f", b"\x07", b"\x0a\x05ab", b"\xff" * 40):
            self.refused(lambda: raw(self.channel, "Generate", data), INVALID)

    def test_message_too_large(self):
        self.refused(lambda: self.stub.Generate(self.good(text="x" * 70000), timeout=30),
                     grpc.StatusCode.RESOURCE_EXHAUSTED)

    def test_unknown_method(self):
        self.refused(lambda: raw(self.channel, "Generally", b""), grpc.StatusCode.UNIMPLEMENTED)
        call = self.channel.unary_stream("/no.such.Service/Do", request_serializer=bytes,
                                         response_deserializer=bytes)
        self.refused(lambda: call(b"", timeout=30), grpc.StatusCode.UNIMPLEMENTED)

    def test_unknown_ids_in_detokenize(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub.Detokenize(pb.DetokenizeRequest(token_ids=[512]))
        self.assertEqual(caught.exception.code(), INVALID)
        self.assertIn("512", caught.exception.details())


if __name__ == "__main__":
    unittest.main(verbosity=2)
