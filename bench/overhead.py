#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a step costs beside the model: scheduler, bookkeeping of guesses, gRPC.

    overhead.py --model FILE [--draft FILE] [--streams 32] [--csv FILE]     (after a build of release)

Starts a moged, keeps that many streams decoding with `moge bench serve`, and takes two looks at the
daemon a while apart: time by phase from GetStats, and processor time by thread from /proc.  The share
of gRPC is the processor time of its threads in the wall time of the steps: what it would cost if it
took that from the engine.  `propose` holds the forward passes of a draft model: without --draft it is
bookkeeping alone.  `accept` picks tokens from logits and is shown apart, too."""
import argparse
import csv
import json
import os
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("MOGE_BUILD", os.path.join(ROOT, "build", "release"))
SCHEDULER = ("admit", "plan", "commit", "observe")


def moge(*arguments):
    return subprocess.run([os.path.join(BUILD, "moge"), *arguments], check=True, capture_output=True, text=True).stdout


def look(pid, address):
    """(stats, {thread name: seconds of processor time}, seconds)"""
    cpu, hertz = {}, os.sysconf("SC_CLK_TCK")
    stats, now = json.loads(moge("stats", "--connect", address, "--json")), time.monotonic()
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/stat") as file:
            name, rest = file.read().rsplit(")", 1)
        name, fields = name.split("(", 1)[1], rest.split()
        # The finer clock of the scheduler, in nanoseconds, where the kernel has it.
        try:
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                seconds = int(file.read().split()[0]) / 1e9
        except OSError:
            seconds = (int(fields[11]) + int(fields[12])) / hertz
        cpu[name] = cpu.get(name, 0) + seconds
    return stats, cpu, now


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("overhead.py: the daemon or its streams did not come up")
        time.sleep(0.1)


def answers(address):
    return subprocess.run([os.path.join(BUILD, "moge"), "info", "--connect", address], capture_output=True).returncode == 0


def decoding(address, n):
    stats = json.loads(moge("stats", "--connect", address, "--json"))
    return stats["running"] == n and stats["prefilling"] == 0


def measure(options, address, pid):
    load = subprocess.Popen([os.path.join(BUILD, "moge"), "bench", "serve", "--connect", address, "--concurrency",
                             str(options.streams), "--requests", str(options.streams), "--input-len", "16",
                             "--output-len", "100000", "--speculation", options.speculation],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: load.poll() is None and decoding(address, options.streams))
        time.sleep(1)
        before, cpu_before, begin = look(pid, address)
        time.sleep(options.seconds)
        after, cpu_after, end = look(pid, address)
        assert decoding(address, options.streams), "some streams ended meanwhile"
    finally:
        load.terminate()
        load.wait()
    n_steps, step_us = after["steps"] - before["steps"], after["step_us"] - before["step_us"]
    phases = {name: (after["phase_us"][name] - before["phase_us"][name]) / step_us for name in after["phase_us"]}
    cpu = {name: (cpu_after[name] - cpu_before.get(name, 0)) / (end - begin) for name in cpu_after}
    row = {"streams": options.streams, "speculation": options.speculation, "steps": n_steps,
           "step_ms": step_us / n_steps / 1e3, "tok_s": (after["tokens"] - before["tokens"]) / (end - begin)}
    row |= {f"{name}_%": 100 * share for name, share in phases.items()}
    row["scheduler_%"] = sum(row[f"{name}_%"] for name in SCHEDULER)
    row["grpc_cpu_%"] = 100 * sum(share for name, share in cpu.items() if name not in ("moged", "moge-engine"))
    row["sum_%"] = row["scheduler_%"] + row["propose_%"] + row["grpc_cpu_%"]
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", default="none")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--speculation", default="off")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--drafter", default="auto")
    parser.add_argument("--csv")
    parser.add_argument("--machine", default="this")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    place = tempfile.mkdtemp()
    address = "unix:" + os.path.join(place, "s")
    daemon = subprocess.Popen([os.path.join(BUILD, "moged"), "--listen", address, "--model", options.model, "--draft",
                               options.draft, "--max-running", str(options.streams), "--isa", options.isa, "--drafter",
                               options.drafter], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: daemon.poll() is None and answers(address))
        row = measure(options, address, daemon.pid)
    finally:
        daemon.kill()
        daemon.wait()
        subprocess.run(["rm", "-rf", place], check=True)
    row = {"machine": options.machine, "commit": options.commit, "model": os.path.basename(options.model),
           "isa": options.isa, "drafter": options.drafter} | row
    for name, value in row.items():
        print(f"{name:14} {value:.4f}" if isinstance(value, float) else f"{name:14} {value}")
    if options.csv:
        new = not os.path.exists(options.csv)
        with open(options.csv, "a", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
