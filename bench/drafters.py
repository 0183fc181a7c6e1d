#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of one stream over gRPC by who guesses: nobody, the draft model, n-gram lookup, both.

One moged with the embedded pair and drafter = both is started; requests choose, with speculation auto. All kinds take
turns within each round, so that whatever else the machine does meets them alike; the figures are medians over rounds
with their quartiles, and the ratio is taken round by round against off.

    bench/drafters.py BUILD MACHINE [rounds [isa]]         writes bench/results/MACHINE/COMMIT-drafters-ISA.csv
"""
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

KINDS = ["off", "model", "ngram", "both"]
LIST = "".join(f"INSERT INTO t1(a,b,c) VALUES({i},{i * i},'row {i}');\n" for i in range(1, 9))
PASSAGE = ("The sqlite3_step() interface returns SQLITE_ROW when a new row of data is ready for processing, and "
           "SQLITE_DONE when the statement has finished executing successfully.\n\n")
TEXTS = {
    "repetitive": [LIST, PASSAGE * 3 + "The sqlite3_step()"],
    "prose": ["The query planner", "If the database file is", "This pragma returns the"],
    "code": ["static int sqlite3", "/*\n** Allocate a new", "int main(int argc, char **argv){\n"],
}
N_TOKENS = 200
FIELDS = ["machine", "commit", "isa", "threads", "temperature", "text", "drafter", "tok_s", "tok_s_q1", "tok_s_q3", "ratio",
          "ratio_q1", "ratio_q3", "tokens_a_step", "offered_model", "accepted_model", "offered_ngram", "accepted_ngram", "rounds"]


def complete(build, address, prompt, temperature, kind):
    choice = ["off"] if kind == "off" else ["auto", "--drafter", kind]
    run = subprocess.run([f"{build}/moge", "complete", "--connect", address, "--prompt", prompt, "--json",
                          "--max-tokens", str(N_TOKENS), "--temperature", str(temperature), "--seed", "7",
                          "--speculation", *choice], capture_output=True, check=True, timeout=300)
    return json.loads(run.stdout)


class Total:
    def __init__(self):
        self.tokens, self.seconds = 0, 0.0
        self.guesses = {d: [0, 0] for d in ("model", "ngram")}

    def add(self, answer):
        self.tokens += answer["usage"]["output_tokens"]
        self.seconds += answer["timings"]["decode_us"] / 1e6
        for drafter, guesses in answer["guesses"]["by_drafter"].items():
            self.guesses[drafter][0] += guesses["offered"]
            self.guesses[drafter][1] += guesses["accepted"]

    def tokens_a_step(self):
        return self.tokens / (self.tokens - sum(accepted for _, accepted in self.guesses.values()))


def one_round(build, address, text, temperature):
    totals = {kind: Total() for kind in KINDS}
    for prompt in TEXTS[text]:
        first = None
        for kind in KINDS:
            answer = complete(build, address, prompt, temperature, kind)
            first = first or answer["token_ids"]
            assert first == answer["token_ids"], "not the same tokens"
            totals[kind].add(answer)
    return totals


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0], values[0]
    q1, q2, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, q2, q3


def rows_of(results, fixed):
    for kind in KINDS:
        q1, speed, q3 = quartiles([r[kind].tokens / r[kind].seconds for r in results])
        r1, ratio, r3 = quartiles([r["off"].seconds / r[kind].seconds for r in results])
        guesses = {d: [sum(r[kind].guesses[d][i] for r in results) for i in (0, 1)] for d in ("model", "ngram")}
        length = statistics.median(r[kind].tokens_a_step() for r in results)
        print(f"T={fixed['temperature']} {fixed['text']:>10} {kind:>5}: {speed:6.0f} tok/s ({q1:.0f}..{q3:.0f})  {ratio:.2f}x "
              f"({r1:.2f}..{r3:.2f})  {length:.2f} tokens a step  {guesses}", flush=True)
        yield dict(fixed, drafter=kind, tok_s=f"{speed:.0f}", tok_s_q1=f"{q1:.0f}", tok_s_q3=f"{q3:.0f}",
                   ratio=f"{ratio:.3f}", ratio_q1=f"{r1:.3f}", ratio_q3=f"{r3:.3f}", tokens_a_step=f"{length:.2f}",
                   offered_model=guesses["model"][0], accepted_model=guesses["model"][1],
                   offered_ngram=guesses["ngram"][0], accepted_ngram=guesses["ngram"][1], rounds=len(results))


def measure(build, rounds, isa, fixed):
    address = f"unix:{tempfile.mkdtemp()}/moged.sock"
    with open(os.devnull, "w") as null:
        moged = subprocess.Popen([f"{build}/moged", "--threads", str(fixed["threads"]), "--isa", isa, "--drafter", "both",
                                  "--listen", address], stderr=null)
    try:
        for _ in range(100):
            if subprocess.run([f"{build}/moge", "info", "--connect", address], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        results = {(t, text): [] for t in (0, 1) for text in TEXTS}
        for _ in range(rounds):
            for (temperature, text), into in results.items():
                into.append(one_round(build, address, text, temperature))
        return [row for (temperature, text), got in results.items()
                for row in rows_of(got, dict(fixed, temperature=temperature, text=text))]
    finally:
        moged.terminate()
        moged.wait(60)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    build, machine = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    isa = sys.argv[4] if len(sys.argv) > 4 else "auto"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = measure(build, rounds, isa, {"machine": machine, "commit": commit, "isa": isa, "threads": 2})
    path = f"bench/results/{machine}/{commit}-drafters-{isa}.csv"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print(path)


if __name__ == "__main__":
    main()
