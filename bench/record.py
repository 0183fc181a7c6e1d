# SPDX-License-Identifier: Apache-2.0
"""What the scripts that fill bench/results have in common.  They run at the root of the tree."""
import csv
import os
import statistics
import subprocess
import sys


def arguments(usage, rounds):
    """build, machine, rounds, isa from `SCRIPT BUILD MACHINE [rounds [isa]]`."""
    if len(sys.argv) < 3:
        sys.exit(usage)
    build, machine = sys.argv[1:3]
    return (build, machine, int(sys.argv[3]) if len(sys.argv) > 3 else rounds,
            sys.argv[4] if len(sys.argv) > 4 else "auto")


def isa_options(isa):
    return [] if isa == "auto" else ["--isa", isa]


def commit():
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def write(machine, name, fields, rows):
    """Writes bench/results/MACHINE/NAME.csv and says so."""
    path = f"bench/results/{machine}/{name}.csv"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, fields)
        writer.writeheader()
        writer.writerows(rows)
    print(path)
