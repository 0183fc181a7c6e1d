# SPDX-License-Identifier: Apache-2.0
"""Two builds on one model, asked in turn: what a change of the engine is worth.

    bench/before_after.py BEFORE AFTER MODEL [--work decode,verify:4,batch:32,prefill:512] [--seconds S]
                          [--threads N] [--isa LEVEL] [--csv FILE --machine NAME --names BEFORE,AFTER]

BEFORE and AFTER are `moge` executables.  Both engines stay loaded; each kind of work is asked of one
and then of the other, the first alternating, for S seconds a kind (20).  A ratio is taken in each turn;
medians with quartiles are printed, and appended to the CSV file.
"""
import argparse
import csv
import json
import os
import subprocess
import time

import record

FIELDS = ["machine", "before", "after", "model", "weights", "isa", "threads", "work", "rows", "turns",
          "ms_before", "ms_before_q1", "ms_before_q3", "ms_after", "ms_after_q1", "ms_after_q3",
          "ratio", "ratio_q1", "ratio_q3"]


class Engine:
    def __init__(self, moge, options, most_rows, prefill):
        self.process = subprocess.Popen(
            [moge, "bench", "engine", "--model", options.model, "--threads", str(options.threads), "--rows",
             str(most_rows), "--prefill", str(prefill), "--repeats", "1",
             "--seconds", "0.2", "--json", "--stdin"]
            + (["--isa", options.isa] if options.isa else []),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, work, rows):
        self.process.stdin.write(work if work == "decode" else f"{work} {rows}")
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def compare(engines, work, rows, seconds):
    """Milliseconds of each engine, turn by turn."""
    ms = [[], []]
    end = time.monotonic() + seconds
    while len(ms[0]) < 3 or time.monotonic() < end:
        order = (0, 1) if len(ms[0]) % 2 == 0 else (1, 0)
        for i in order:
            ms[i].append(engines[i].ask(work, rows)["ms_median"])
    return ms


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("model")
    parser.add_argument("--work", default="decode,verify:4,verify:8,verify:32,batch:32,prefill:512")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa")
    parser.add_argument("--csv")
    parser.add_argument("--machine", default="this")
    parser.add_argument("--names", default="before,after")
    options = parser.parse_args()

    kinds = [(w.split(":")[0], int(w.split(":")[1]) if ":" in w else 1) for w in options.work.split(",")]
    most = max(n for w, n in kinds if w != "prefill") if any(w != "prefill" for w, _ in kinds) else 1
    prefill = max([n for w, n in kinds if w == "prefill"], default=0)
    engines = [Engine(moge, options, most, prefill) for moge in (options.before, options.after)]
    for engine in engines:
        engine.ask(*kinds[0])  # loads
    rows = []
    for work, n in kinds:
        ms = compare(engines, work, n, options.seconds)
        line = engines[1].ask(work, n)
        ratios = [a / b for a, b in zip(*ms)]
        row = [options.machine, *options.names.split(","), os.path.basename(options.model), line["weights"], line["isa"],
               options.threads, work, n, len(ratios)]
        for values in ms:
            q1, q2, q3 = record.quartiles(values)
            row += [round(q2, 2), round(q1, 2), round(q3, 2)]
        q1, q2, q3 = record.quartiles(ratios)
        row += [round(q2, 3), round(q1, 3), round(q3, 3)]
        rows.append(dict(zip(FIELDS, row)))
        print(f"{work:8} {n:4}  {row[10]:9.2f} -> {row[13]:9.2f} ms   {q2:.3f}x ({q1:.3f}..{q3:.3f}), {len(ratios)} turns",
              flush=True)
    for engine in engines:
        engine.process.stdin.close()
        engine.process.wait()
    if options.csv:
        new = not os.path.exists(options.csv)
        with open(options.csv, "a", newline="") as out:
            writer = csv.DictWriter(out, FIELDS)
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
