# SPDX-License-Identifier: Apache-2.0
"""moge bench engine and spec on a tiny model: every figure is there and agrees with the others."""
import csv
import json
import os
import subprocess
import tempfile
import unittest

import daemon

EMBEDDED = os.path.join(daemon.ROOT, "models/moge-embedded-target.gguf")
SHAPE = os.path.join(os.path.dirname(__file__), "../../bench/shapes/tiny.ini")
QUICK = ("--depth", "32", "--prefill", "48", "--rows", "1,3", "--repeats", "3", "--seconds", "0")
TEXTS = {"work", "isa", "weights", "kv", "bound"}
NUMBERS = {"rows", "ms_median", "ms_q1", "ms_q3", "ms_min", "ms_max", "repeats", "tok_s", "gb_s",
           "gmac_s", "experts", "weight_mb", "kv_mb", "depth", "threads", "load_ms", "limit_gb_s",
           "limit_i8_gmac_s", "limit_i4_gmac_s", "limit_f32_gmac_s", "limit_bytes_ms",
           "limit_macs_ms", "fraction"}


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = os.path.join(cls.folder.name, "tiny.gguf")
        subprocess.run([daemon.MOGE, "synth", "--shape", SHAPE, "--type", "q4_0", "--out",
                        cls.model], check=True, capture_output=True, timeout=60)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def bench(self, *arguments, status=0, stdin=""):
        done = subprocess.run([daemon.MOGE, "bench", *arguments], input=stdin, text=True,
                              capture_output=True, timeout=300, preexec_fn=daemon.die_with_parent)
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stdout if status == 0 else done.stderr

    def lines(self, *arguments, **keywords):
        text = self.bench("engine", "--model", self.model, "--json", *QUICK, *arguments,
                          **keywords)
        return [json.loads(line) for line in text.splitlines()]

    def check_line(self, line):
        self.assertEqual(set(line), TEXTS | NUMBERS)
        for key in NUMBERS - {"depth"}:
            self.assertGreater(line[key], 0, key)
        ordered = [line["ms_" + key] for key in ("min", "q1", "median", "q3", "max")]
        self.assertEqual(ordered, sorted(ordered))
        self.assertEqual(line["bound"], "bandwidth" if line["limit_bytes_ms"] >=
                         line["limit_macs_ms"] else "arithmetic")
        limit_ms = max(line["limit_bytes_ms"], line["limit_macs_ms"])
        self.assertAlmostEqual(line["fraction"], limit_ms / line["ms_median"], delta=0.01)
        self.assertLessEqual(line["fraction"], 1.5)
        self.assertAlmostEqual(line["tok_s"], line["rows"] / line["ms_median"] * 1e3,
                               delta=0.01 * line["tok_s"])
        self.assertAlmostEqual(line["gb_s"], (line["weight_mb"] + line["kv_mb"]) /
                               line["ms_median"], delta=0.02 * line["gb_s"] + 0.0006)
        # Bytes of keys and values: 2 layers, 2 heads of 16, each 2 bytes, and of both kinds.
        sequences = line["rows"] if line["work"] == "batch" else 1
        positions = line["depth"] + line["rows"] // sequences
        self.assertAlmostEqual(line["kv_mb"], sequences * positions * 2 * 2 * 16 * 2 * 2 / 1e6,
                               delta=0.001)

    def test_every_figure(self):
        for threads, isa in (("1", "scalar"), ("2", "vnni")):
            lines = self.lines("--threads", threads, "--isa", isa)
            self.assertEqual([(line["work"], line["rows"], line["depth"]) for line in lines],
                             [("prefill", 48, 0), ("decode", 1, 32), ("verify", 3, 32),
                              ("batch", 3, 32)])
            for line in lines:
                self.check_line(line)
                self.assertEqual(line["threads"], int(threads))
        self.assertEqual(lines[1]["experts"], 16)  # 8 of each of 2 layers
        self.assertGreater(lines[2]["gmac_s"] * lines[2]["ms_median"],
                           2.9 * lines[1]["gmac_s"] * lines[1]["ms_median"])

    def test_csv_is_appended_to(self):
        path = os.path.join(self.folder.name, "figures.csv")
        for commit in ("one", "two"):
            self.lines("--csv", path, "--machine", "here", "--commit", commit)
        with open(path) as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([row["commit"] for row in rows], ["one"] * 4 + ["two"] * 4)
        for row in rows:
            self.assertEqual((row["machine"], row["weights"]), ("here", "q4_0"))
            self.assertNotIn(None, list(row) + list(row.values()))
            self.assertGreater(float(row["fraction"]), 0)

    def test_a_longer_history_in_either_type(self):
        each = [self.lines("--kv", kv, "--sequences", "1") for kv in ("f16", "q8_0", "f32")]
        for kv, lines in zip(("f16", "q8_0", "f32"), each):
            self.assertEqual([(line["work"], line["kv"]) for line in lines],
                             [("prefill", kv), ("decode", kv), ("verify", kv)])
        f16, q8_0, f32 = (lines[1]["kv_mb"] for lines in each)
        self.assertAlmostEqual(q8_0 / f16, 17 / 16, delta=0.1)  # a head of 16 fills half a block
        self.assertAlmostEqual(f32 / f16, 2, delta=0.3)
        self.assertIn("--kv cannot be 'q4_0'",
                      self.bench("engine", "--model", self.model, "--kv", "q4_0", status=2))

    def test_standard_input_asks(self):
        lines = self.lines("--stdin", stdin="verify 2\nprefill 16\ngreedy 4 1 2 3\ndecode\n"
                                            "batch 3\ngreedy 4 1 2 3\n")
        self.assertEqual([line.get("work") for line in lines],
                         ["verify", "prefill", None, "decode", "batch", None])
        self.assertEqual(lines[2], lines[5])
        for token, gap in lines[2]["greedy"]:
            self.assertTrue(0 <= token < 512 and gap >= 0)
        for nonsense in ("verify 4", "verify", "verify 0", "greedy 4 512", "greedy 4", "sleep 1"):
            said = self.bench("engine", "--model", self.model, *QUICK, "--stdin", status=1,
                              stdin=nonsense + "\n")
            self.assertIn(nonsense if nonsense != "greedy 4" else "pass failed", said)
            self.assertEqual(said.count("\n"), 1)

    def test_load(self):
        """Rows of weights are packed into memory, panels are used where the file is mapped."""
        path = os.path.join(self.folder.name, "load.csv")
        for layout in ("rows", "panels"):
            model = os.path.join(self.folder.name, layout + ".gguf")
            subprocess.run([daemon.MOGE, "quantize", EMBEDDED, model, "--type", "q8_0", "--layout",
                            layout], check=True, capture_output=True, timeout=60)
            said = self.bench("load", "--model", model, "--repeats", "3", "--csv", path,
                              "--machine", "m", "--commit", "c")
            self.assertIn("q8_0", said)
        with open(path) as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([(r["model"], r["work"]) for r in rows],
                         [(layout + ".gguf", work) for layout in ("rows", "panels")
                          for work in ("read", "ready")])
        for row in rows:
            self.assertEqual((row["machine"], row["commit"], row["weights"], row["repeats"]),
                             ("m", "c", "q8_0", "3"))
            self.assertTrue(0 < float(row["min_s"]) <= float(row["median_s"]) <= float(row["max_s"]))
            self.assertGreater(float(row["peak_mb"]), float(row["file_mb"]))
        packed, mapped = rows[1], rows[3]
        self.assertGreater(float(packed["anonymous_mb"]), 0.9 * float(packed["file_mb"]))
        self.assertLess(float(mapped["anonymous_mb"]), 0.6 * float(mapped["file_mb"]))
        self.assertGreater(float(mapped["mapped_mb"]), 0.9 * float(mapped["file_mb"]))

    def test_wrong_options_of_load(self):
        for arguments in ((), ("--model", self.model, "--repeats", "0"), ("--nothing",),
                          ("--model", self.model, "--huge-pages", "perhaps")):
            self.assertIn("--help", self.bench("load", *arguments, status=2))
        self.assertIn("cannot be read", self.bench("load", "--model", self.folder.name, status=1))
        self.assertIn("cannot append", self.bench("load", "--model", self.model, "--csv",
                                                  self.folder.name + "/none/x.csv", status=1))

    def spec(self, *arguments):
        text = self.bench("spec", "--model", self.model, "--json", "--tokens", "12", "--rounds",
                          "2", *arguments)
        return [json.loads(line) for line in text.splitlines()]

    def test_speculation(self):
        lines = self.spec("--acceptance", "1", "--batch", "1,3", "--modes", "off,auto,2")
        self.assertEqual([(line["batch"], line["mode"]) for line in lines],
                         [(batch, mode) for batch in (1, 3) for mode in ("off", "auto", 2)])
        for line in lines:
            self.assertTrue(0 < line["tok_s_q1"] <= line["tok_s"] <= line["tok_s_q3"])
            self.assertLessEqual(line["ratio_q1"], line["ratio_q3"])
            self.assertTrue(line["ratio_low"] <= line["ratio"] <= line["ratio_high"])
            self.assertEqual(line["offered"], sum(i * n for i, n in enumerate(line["lengths"])))
            self.assertLessEqual(line["accepted"], line["offered"])
            self.assertEqual((line["drafter"], line["acceptance"]), ("oracle", [1, 1]))
        for line in lines:
            if line["mode"] == "off":
                self.assertEqual((line["acceptance_length"], line["offered"], line["ratio"]),
                                 (1, 0, 1))
            if line["mode"] == 2:  # a drafter that is always right: three tokens a step
                self.assertEqual(line["acceptance_length"], 3)
                self.assertEqual(line["offered"], line["accepted"])

    def test_an_oracle_that_changes(self):
        lines = self.spec("--acceptance", "1/0", "--batch", "2", "--modes", "1", "--tokens", "40",
                          "--draft-cost", "0.1")
        self.assertNotIn("ratio", lines[0])
        self.assertEqual(lines[0]["draft_cost"], 0.1)
        # Twice as fast through the first half of the tokens, which is a third of the steps.
        self.assertAlmostEqual(lines[0]["acceptance_length"], 4 / 3, delta=0.05)
        self.assertEqual(self.spec("--acceptance", "0", "--batch", "1", "--modes", "4")[0]
                         ["acceptance_length"], 1)

    def test_a_model_that_drafts_for_itself(self):
        lines = self.spec("--draft", self.model, "--batch", "2", "--modes", "off,3",
                          "--temperature", "1")
        self.assertEqual((lines[1]["drafter"], lines[1]["acceptance_length"]), ("model", 4))
        self.assertNotIn("acceptance", lines[1])
        self.assertEqual(self.spec("--acceptance", "real", "--batch", "1", "--modes", "3")[0]
                         ["drafter"], "ngram")

    def test_speculation_for_people(self):
        text = self.bench("spec", "--model", self.model, "--batch", "1", "--modes", "off,auto,4",
                          "--tokens", "8", "--rounds", "1")
        words = [line.split() for line in text.splitlines()]
        self.assertEqual([word[:2] for word in words[2:]],
                         [["batch", "mode"], ["1", "off"], ["1", "auto"], ["1", "4"]])

    def test_wrong_options_of_speculation(self):
        for arguments, said in (
                ((), "--model is missing"),
                (("--model", self.model, "--acceptance", "1.1"), "--acceptance cannot be '1.1'"),
                (("--model", self.model, "--acceptance", "0.5/"), "--acceptance cannot be '0.5/'"),
                (("--model", self.model, "--acceptance", "nan"), "--acceptance cannot be 'nan'"),
                (("--model", self.model, "--modes", "off,17"), "--modes cannot be 'off,17'"),
                (("--model", self.model, "--batch", "1,,2"), "--batch cannot be '1,,2'"),
                (("--model", self.model, "--batch", "0"), "--batch cannot be '0'"),
                (("--model", self.model, "--drafter", "model"), "this drafter needs --draft"),
                (("--model", self.model, "--drafter", "ngram", "--acceptance", "0.5"),
                 "--acceptance P is for the oracle"),
                (("--model", self.model, "--drafter", "oracle", "--acceptance", "real"),
                 "the oracle has no acceptance of its own"),
                (("--model", self.model, "extra"), "there is an argument too many"),
                (("--model",), "--model is no option, or lacks its value")):
            said_by_it = self.bench("spec", *arguments, status=2)
            self.assertIn(said, said_by_it)
            self.assertEqual(said_by_it.count("\n"), 1)
        for arguments, said in (
                (("--model", self.folder.name + "/none"), "none"),
                (("--model", self.model, "--tokens", "65536"), "was made for"),
                (("--model", self.model, "--text", self.folder.name + "/none"), "cannot be read")):
            self.assertIn(said, self.bench("spec", *arguments, status=1))

    def test_wrong_options(self):
        for arguments, said in (
                (("nothing",), "there is no bench 'nothing'"),
                (("engine",), "--model is missing"),
                (("engine", "--model", self.model, "--threads", "0"), "--threads cannot be '0'"),
                (("engine", "--model", self.model, "--machine", "a,b"), "--machine cannot be")):
            self.assertIn(said, self.bench(*arguments, status=2))
        self.assertIn("cannot write", self.bench("engine", "--model", self.model, "--csv",
                                                 self.folder.name + "/none/x.csv", status=1))
        self.assertIn("engine", self.bench("--help"))


if __name__ == "__main__":
    unittest.main()
