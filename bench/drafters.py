#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens per second by who guesses (the draft model, n-gram lookup, both) on three kinds of text.

Runs `moge bench spec` on the embedded pair; speculation auto against off, which take turns within each run.

    bench/drafters.py BUILD MACHINE [rounds [isa]]         writes bench/results/MACHINE/COMMIT-drafters-ISA.csv
"""
import json
import subprocess
import tempfile

import record

TEXTS = {"prose": "docs/ARCHITECTURE.md", "code": "draft/policy.c"}
FIELDS = ["machine", "commit", "isa", "threads", "temperature", "text", "batch", "drafter", "off_tok_s", "tok_s", "tok_s_q1",
          "tok_s_q3", "ratio", "ratio_q1", "ratio_q3", "acceptance_length", "offered", "accepted", "rounds"]


def measure(build, path, drafter, temperature, rounds, isa):
    """The JSON objects of one run: off and auto at each batch size."""
    command = [f"{build}/moge", "bench", "spec", "--model", "models/moge-embedded-target.gguf", "--draft",
               "models/moge-embedded-draft.gguf", "--drafter", drafter, "--text", path, "--batch", "1,4", "--modes", "off,auto",
               "--weights", "q8_0", "--prompt-tokens", "192", "--tokens", "96", "--threads", "2", "--rounds", str(rounds),
               "--temperature", str(temperature), "--json", *record.isa_options(isa)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def main():
    build, machine, rounds, isa = record.arguments(__doc__, 5)
    commit = record.commit()
    rows = []
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as repetitive:
        repetitive.writelines(f"INSERT INTO t1(a,b,c) VALUES({i},{i * i},'row {i}');\n" for i in range(400))
        repetitive.flush()
        for temperature in (0, 1):
            for text, path in {"repetitive": repetitive.name, **TEXTS}.items():
                for drafter in ("model", "ngram", "both"):
                    off = {}
                    for r in measure(build, path, drafter, temperature, rounds, isa):
                        if r["mode"] == "off":
                            off[r["batch"]] = r["tok_s"]
                            continue
                        row = {"machine": machine, "commit": commit, "text": text, "off_tok_s": f"{off[r['batch']]:.0f}"}
                        row.update({k: f"{r[k]:.0f}" for k in ("tok_s", "tok_s_q1", "tok_s_q3")})
                        row.update({k: f"{r[k]:.3f}" for k in ("ratio", "ratio_q1", "ratio_q3")})
                        row.update({k: r[k] for k in FIELDS if k in r and k not in row})
                        rows.append(row)
                        print(f"T={temperature} {text:>10} batch {r['batch']} {drafter:>5}: {row['tok_s']:>5} tok/s  {row['ratio']}x "
                              f"({row['ratio_q1']}..{row['ratio_q3']}) of off, {r['acceptance_length']:.2f} tokens a step", flush=True)
    record.write(machine, f"{commit}-drafters-{rows[0]['isa']}", FIELDS, rows)


if __name__ == "__main__":
    main()
