#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the lines of `moge bench spec --json`: tokens/s against batch for speculation off, auto and the best fixed length.

    spec_plot.py OUT.svg FILE...                   a panel for each weights, drafter and acceptance
    spec_plot.py MACHINE NAME FILE...              writes bench/results/MACHINE/COMMIT-NAME.csv, and prints the table

Each FILE has one JSON object a line; a later line replaces an earlier one of the same run."""
import json
import sys
from xml.sax.saxutils import escape

import record
from plot import COLOURS, HEIGHT, LEFT, LEGEND, TOP, WIDTH, axes, frame, legend, nice_ticks

BOTTOM = 56
FIELDS = ["machine", "commit", "isa", "threads", "model", "weights", "drafter", "acceptance", "draft_cost", "temperature", "batch",
          "mode", "tok_s", "tok_s_q1", "tok_s_q3", "ratio", "ratio_q1", "ratio_q3", "ratio_low", "ratio_high",
          "acceptance_length", "offered", "accepted", "tokens", "rounds"]


def read(paths):
    """{(title of a panel): {batch: {mode: line}}}"""
    panels = {}
    for path in paths:
        with open(path) as file:
            for line in filter(str.strip, file):
                run = json.loads(line)
                title = f"{run['model']} {run['weights']}, {run['drafter']}"
                if "acceptance" in run:
                    title += " right %g, cost %g" % (run["acceptance"][0], run["draft_cost"])
                panels.setdefault(title, {}).setdefault(run["batch"], {})[str(run["mode"])] = run
    return {title: dict(sorted(batches.items())) for title, batches in panels.items()}


def best_fixed(modes):
    """The fixed length with the most tokens a second; off is the length 0."""
    return max((run for mode, run in modes.items() if mode != "auto"), key=lambda run: run["ratio"])


def panel(x0, title, batches):
    lines = {"off": {b: m["off"] for b, m in batches.items()}, "auto": {b: m["auto"] for b, m in batches.items()},
             "best fixed": {b: best_fixed(m) for b, m in batches.items()}}
    ticks = nice_ticks(max(run["tok_s"] for points in lines.values() for run in points.values()))
    places = {b: x0 + LEFT + (WIDTH - LEFT - 20) * (i + 0.5) / len(batches) for i, b in enumerate(batches)}
    y_of = lambda value: TOP + HEIGHT - HEIGHT * value / ticks[-1]
    yield from axes(x0, title, "tokens/s", "sequences together", ticks, y_of)
    for batch, x in places.items():
        yield f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{batch}</text>'
    for i, (name, points) in enumerate(lines.items()):
        path = " ".join(f"{places[b]:.1f},{y_of(run['tok_s']):.1f}" for b, run in points.items())
        dash = ' stroke-dasharray="6 3"' if name == "best fixed" else ""
        yield f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}" stroke-width="2"{dash}/>'
        for batch, run in points.items():
            yield (f'<circle cx="{places[batch]:.1f}" cy="{y_of(run["tok_s"]):.1f}" r="3" fill="{COLOURS[i]}">'
                   f'<title>{escape(name)} ({run["mode"]}): {run["tok_s"]:.1f}</title></circle>')


def draw(panels):
    yield frame(len(panels), TOP + HEIGHT + BOTTOM + LEGEND + 10)
    for i, (title, batches) in enumerate(panels.items()):
        yield from panel(WIDTH * i, title, batches)
    for i, name in enumerate(("off", "auto", "best fixed")):
        yield legend(LEFT + 120 * i, TOP + HEIGHT + BOTTOM + 10, COLOURS[i], name)
    yield "</svg>"


def table(panels):
    for title, batches in panels.items():
        print(f"\n{title}\n\n| batch | off tok/s | auto tok/s | auto / off | best fixed | best / off | auto / best |\n" + "|---" * 7 + "|")
        for batch, modes in batches.items():
            auto, best = modes["auto"], best_fixed(modes)
            print(f"| {batch} | {modes['off']['tok_s']:.1f} | {auto['tok_s']:.1f} | {auto['ratio']:.3f} ({auto['ratio_q1']:.3f}.."
                  f"{auto['ratio_q3']:.3f}) | {best['mode']} | {best['ratio']:.3f} | {auto['ratio'] / best['ratio']:.3f} |")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if sys.argv[1].endswith(".svg"):
        with open(sys.argv[1], "w") as out:
            out.write("\n".join(draw(read(sys.argv[2:]))) + "\n")
        return
    machine, name, panels = sys.argv[1], sys.argv[2], read(sys.argv[3:])
    rows = []
    for batches in panels.values():
        for modes in batches.values():
            for run in modes.values():
                row = {key: run[key] for key in FIELDS if key in run}
                row["acceptance"] = "/".join(f"{p:g}" for p in run["acceptance"]) if "acceptance" in run else "real"
                rows.append(dict(row, machine=machine, commit=record.commit()))
    record.write(machine, f"{record.commit()}-{name}", FIELDS, rows)
    table(panels)


if __name__ == "__main__":
    main()
