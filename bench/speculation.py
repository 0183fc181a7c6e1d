#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of one stream over gRPC with speculation off, auto and fixed lengths.

All kinds take turns within each round, so that whatever else the machine does meets them alike; the
figures are medians over rounds with their quartiles, and the ratio is taken round by round against off.
One moged with the embedded pair is started for each number of threads.

    bench/speculation.py BUILD MACHINE [rounds [isa]]      writes bench/results/MACHINE/COMMIT-speculation.csv
"""
import json
import os
import statistics
import subprocess
import tempfile
import time

import record

KINDS = ["off", "auto", "1", "2", "3", "4"]
PROMPTS = ["The query planner", "static int sqlite3", "This pragma returns the", "If the database file is"]
N_TOKENS = 300
FIELDS = ["machine", "commit", "isa", "threads", "temperature", "speculation", "tok_s", "tok_s_q1", "tok_s_q3",
          "ratio", "ratio_q1", "ratio_q3", "acceptance_length", "rounds"]


def complete(build, address, prompt, temperature, kind):
    run = subprocess.run([f"{build}/moge", "complete", "--connect", address, "--prompt", prompt, "--json",
                          "--max-tokens", str(N_TOKENS), "--temperature", str(temperature), "--seed", "7",
                          "--speculation", kind], capture_output=True, check=True, timeout=300)
    return json.loads(run.stdout)


def one_round(build, address, temperature):
    """Tokens per second and acceptance length of each kind, over all prompts."""
    totals = {kind: [0, 0.0, 0] for kind in KINDS}
    texts = {}
    for prompt in PROMPTS:
        for kind in KINDS:
            answer = complete(build, address, prompt, temperature, kind)
            assert texts.setdefault(prompt, answer["token_ids"]) == answer["token_ids"], "not the same tokens"
            totals[kind][0] += answer["usage"]["output_tokens"]
            totals[kind][1] += answer["timings"]["decode_us"] / 1e6
            totals[kind][2] += answer["guesses"]["accepted"]
    return {kind: (n / s, n / (n - accepted)) for kind, (n, s, accepted) in totals.items()}


def measure(build, threads, rounds, isa, fixed):
    address = f"unix:{tempfile.mkdtemp()}/moged.sock"
    with open(os.devnull, "w") as null:
        moged = subprocess.Popen([f"{build}/moged", "--threads", str(threads), "--isa", isa, "--listen", address], stderr=null)
    rows = []
    try:
        for _ in range(100):
            if subprocess.run([f"{build}/moge", "info", "--connect", address], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        for temperature in (0, 1):
            measured = [one_round(build, address, temperature) for _ in range(rounds)]
            for kind in KINDS:
                q1, speed, q3 = record.quartiles([r[kind][0] for r in measured])
                r1, ratio, r3 = record.quartiles([r[kind][0] / r["off"][0] for r in measured])
                length = statistics.median(r[kind][1] for r in measured)
                rows.append(dict(fixed, threads=threads, temperature=temperature, speculation=kind,
                                 tok_s=f"{speed:.0f}", tok_s_q1=f"{q1:.0f}", tok_s_q3=f"{q3:.0f}",
                                 ratio=f"{ratio:.3f}", ratio_q1=f"{r1:.3f}", ratio_q3=f"{r3:.3f}",
                                 acceptance_length=f"{length:.2f}", rounds=rounds))
                print(f"{threads} threads, T={temperature}, {kind:>4}: {speed:6.0f} tok/s ({q1:.0f}..{q3:.0f})  "
                      f"{ratio:.2f}x ({r1:.2f}..{r3:.2f})  {length:.2f} tokens a step", flush=True)
    finally:
        moged.terminate()
        moged.wait(60)
    return rows


def main():
    build, machine, rounds, isa = record.arguments(__doc__, 7)
    commit = record.commit()
    command = [f"{build}/moge", "bench", "engine", "--model", "models/moge-embedded-draft.gguf",
               "--rows", "1", "--prefill", "0", "--json", *record.isa_options(isa)]
    bench = subprocess.run(command, capture_output=True, text=True, check=True)
    fixed = {"machine": machine, "commit": commit, "isa": json.loads(bench.stdout.splitlines()[0])["isa"]}
    rows = [row for threads in (1, 2) for row in measure(build, threads, rounds, isa, fixed)]
    record.write(machine, f"{commit}-speculation-{fixed['isa']}", FIELDS, rows)


if __name__ == "__main__":
    main()
