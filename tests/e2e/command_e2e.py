# SPDX-License-Identifier: Apache-2.0
"""The moge command against a real moged: what goes to which stream, and with which exit status."""
import json
import os
import signal
import subprocess
import tempfile
import unittest

import daemon


class Command(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = daemon.Daemon("--draft-len-max", "16", "--drafter", "model")
        cls.daemon.wait_ready()

    @classmethod
    def tearDownClass(cls):
        cls.daemon.__exit__()

    def setUp(self):
        if daemon.UNDER_TSAN and self._testMethodName not in ("test_demo", "test_interrupt_cancels"):
            self.skipTest("this command has one thread, and the daemon has met such streams elsewhere")

    def moge(self, *arguments, status=0, stdin="", address=None):
        connect = ["--connect", address or self.daemon.address]
        done = subprocess.run([daemon.MOGE, arguments[0]] + connect + list(arguments[1:]),
                              input=stdin, capture_output=True, text=True, timeout=120,
                              preexec_fn=daemon.die_with_parent)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertNotIn("Sanitizer", done.stderr)
        if status != 0:
            self.assertEqual(done.stdout, "")
            self.assertEqual(done.stderr.count("\n"), 1, "not one sentence: " + done.stderr)
        return done.stdout if status == 0 else done.stderr

    def complete(self, *arguments, **keywords):
        return self.moge("complete", "--prompt", "select * from", "--max-tokens", "40", "--seed",
                         "7", *arguments, **keywords)

    def test_text_only_and_the_same_every_time(self):
        texts = {self.complete("--speculation", s) for s in ("off", "auto", "1", "4", "16")}
        self.assertEqual(len(texts), 1)
        self.assertGreater(len(texts.pop()), 10)

    def test_json(self):
        text, answer = self.complete(), json.loads(self.complete("--json", "--speculation", "3"))
        self.assertEqual(answer["text"], text)
        self.assertEqual(len(answer["token_ids"]), answer["usage"]["output_tokens"])
        self.assertEqual(answer["seed"], "7")
        self.assertIn(answer["finish_reason"], ("length", "stop"))
        self.assertGreaterEqual(answer["guesses"]["offered"], answer["guesses"]["accepted"])
        self.assertGreater(answer["guesses"]["offered"], 0)
        guesses = answer["guesses"]
        self.assertEqual(guesses["by_drafter"]["model"]["offered_by_position"],
                         guesses["offered_by_position"])
        self.assertEqual(sum(guesses["accepted_by_position"]), guesses["accepted"])

    def test_prompt_logprobs(self):
        plain = json.loads(self.complete("--json"))
        answer = json.loads(self.complete("--json", "--prompt-logprobs", "2"))
        self.assertEqual(answer["text"], plain["text"])
        self.assertNotIn("prompt_tokens", plain)
        tokens = answer["prompt_tokens"]
        self.assertEqual(len(tokens), answer["usage"]["prompt_tokens"] - 1)
        self.assertEqual("".join(t["piece"] for t in tokens).strip(), "select * from")
        for token in tokens:
            self.assertLessEqual(token["logprob"], token["top"][0]["logprob"])
            self.assertEqual(len(token["top"]), 2)
        self.assertIn("prompt_logprobs is 21",
                      self.complete("--json", "--prompt-logprobs", "21", status=1))

    def test_samples(self):
        one = json.loads(self.complete("--json"))
        several = json.loads(self.complete("--json", "-n", "3"))["samples"]
        self.assertEqual(len(several), 3)
        self.assertEqual(several[0]["text"], one["text"])
        self.assertEqual(len({s["seed"] for s in several}), 3)
        for sample in several:
            again = json.loads(self.complete("--json", "--seed", sample["seed"]))
            self.assertEqual(again["token_ids"], sample["token_ids"])
        self.assertIn("n is 60", self.complete("--json", "--samples", "60", status=1))

    def test_drafter(self):
        text = self.complete()
        self.assertEqual(text, self.complete("--drafter", "model"))
        self.assertEqual(text, self.complete("--speculation", "auto", "--max-guesses", "2",
                                             "--drafter", "model"))
        said = self.moge("complete", "--prompt", "x", "--drafter", "ngram", status=1)
        self.assertIn("speculation.drafter is DRAFTER_NGRAM, but this server's drafter is model",
                      said)

    def test_prompt_from_standard_input(self):
        by_option = self.moge("complete", "--prompt", "x = 1\n", "--temperature", "0",
                              "--max-tokens", "20")
        self.assertEqual(by_option, self.moge("complete", "--prompt", "-", "--temperature", "0",
                                              "--max-tokens", "20", stdin="x = 1\n"))

    def test_stop(self):
        whole = self.complete()
        stop = whole[6:9]
        self.assertEqual(self.complete("--stop", stop), whole[:whole.index(stop)])

    def test_wrong_options(self):
        for arguments in (["--nonsense"], ["--max-tokens"], ["--max-tokens", "many"],
                          ["--seed", "-1"], ["--speculation", "17"], ["--drafter", "oracle"],
                          ["--prompt-logprobs", "2"], ["-n", "2"], ["--json", "-n", "0"],
                          ["--max-guesses", "2"], ["--speculation", "auto", "--max-guesses", "17"],
                           ["--temperature", "hot"],
                          ["stray"], ["--timeout", "0"], ["--stop", "a"] * 17):
            self.complete(*arguments, status=2)
        self.assertIn("--prompt", self.moge("complete", status=2))
        self.moge("complete", "--prompt", "x", address="nowhere", status=2 - 1)

    def test_what_the_server_refuses(self):
        self.assertIn("top_p", self.complete("--top-p", "1.5", status=1))
        self.assertIn("max_tokens", self.complete("--max-tokens", "0", status=1))
        self.assertIn("prompt", self.moge("complete", "--prompt", "", status=1))

    def test_nobody_there(self):
        place = tempfile.mkdtemp()
        said = self.moge("complete", "--prompt", "x", address=f"unix:{place}/s", status=1)
        self.assertIn(f"nobody answers at unix:{place}/s", said)
        os.rmdir(place)

    def test_interrupt_cancels(self):
        """The reader of its output stalls it, so that it is certainly at work when interrupted."""
        process = subprocess.Popen(
            [daemon.MOGE, "complete", "--connect", self.daemon.address, "--prompt", "x",
             "--max-tokens", "480", "--temperature", "0"], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, preexec_fn=daemon.die_with_parent)
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=daemon.HOPELESS_S)
        self.assertIn(process.returncode, (0, 130), said)  # 0: it was done before the signal came
        if process.returncode == 130:
            self.assertIn(b"cancelled", said)

    def test_reader_that_goes_away(self):
        process = subprocess.Popen(
            [daemon.MOGE, "complete", "--connect", self.daemon.address, "--prompt", "x",
             "--max-tokens", "480"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            preexec_fn=daemon.die_with_parent)
        process.stdout.close()
        self.assertNotEqual(process.wait(timeout=daemon.HOPELESS_S), 0)

    def test_info(self):
        said = self.moge("info")
        for word in ("pangu-moe", "8 groups", "pangu-embedded"):
            self.assertIn(word, said)

    def test_demo(self):
        said = self.moge("demo", "--streams", "3", "--rounds", "2", "--max-tokens", "60")
        self.assertIn("the bytes are the same: ", said)
        # auto may well find that guessing does not pay on so small a model.
        self.assertRegex(said, "guesses accepted|no guesses were offered")
        self.assertNotIn("\033", said, "escapes though standard output is no terminal")
        self.moge("demo", "--streams", "17", status=2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
