#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the CSV files of `moge bench engine --csv` as SVG: tokens/s and cost per row against rows.

    plot.py OUT.svg FILE.csv...            one line per model, weights, ISA level and threads
    plot.py OUT.svg FILE.csv... --work batch --threads 2

A column of a peer comparison (ms, peer_ms) gives a line each.  Nothing but the standard library is
needed."""
import argparse
import csv
import math
from xml.sax.saxutils import escape

COLOURS = ("#1f6fb4", "#d1491f", "#2a8a3e", "#8450a8", "#b8860b", "#12858c", "#c2347b", "#555555")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 460, 320, 64, 40, 48, 22


def read(paths, options):
    """{series name: {rows: median ms}}; rows of `verify` and `decode` are one line."""
    series = {}
    for path in paths:
        with open(path) as file:
            for row in csv.DictReader(file):
                work = "verify" if row["work"] == "decode" and options.work != "batch" else row["work"]
                if options.work == "batch" and row["work"] == "decode":
                    work = "batch"
                if work != options.work or options.threads not in (None, int(row["threads"])):
                    continue
                name = " ".join((row.get("model") or row["file"], row["weights"]))
                name = name.removeprefix("synthetic ")
                ours = f"{name} {row['isa']} {row['threads']}t"
                series.setdefault(ours, {})[int(row["rows"])] = float(row["ms"])
                if row.get("peer_ms"):
                    peer = f"llama.cpp {name} {row['backend']} {row['threads']}t"
                    series.setdefault(peer, {})[int(row["rows"])] = float(row["peer_ms"])
    return {name: dict(sorted(points.items())) for name, points in sorted(series.items())}


def nice_ticks(top):
    """About five round steps from 0 to at least top."""
    step = 10 ** math.floor(math.log10(top / 5))
    step = next(step * factor for factor in (1, 2, 5, 10) if top / (step * factor) <= 6)
    return [step * i for i in range(math.ceil(top / step) + 1)]


def axes(x0, title, unit, what, ticks, y_of):
    """Titles, and the scale and lines of the vertical axis."""
    right = x0 + WIDTH - 20
    yield f'<text x="{x0 + LEFT}" y="{TOP - 16}" font-weight="bold">{escape(title)}</text>'
    for tick in ticks:
        yield (f'<line x1="{x0 + LEFT}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}" '
               f'stroke="#ddd"/><text x="{x0 + LEFT - 6}" y="{y_of(tick) + 4:.1f}" '
               f'text-anchor="end">{tick:g}</text>')
    yield (f'<text x="{(x0 + LEFT + right) / 2:.1f}" y="{TOP + HEIGHT + 36}" '
           f'text-anchor="middle">{what}</text>'
           f'<text transform="translate({x0 + 14},{TOP + HEIGHT / 2}) rotate(-90)" '
           f'text-anchor="middle">{escape(unit)}</text>')


def panel(x0, title, unit, series, value):
    """One set of axes: rows on a logarithmic axis, value(rows, ms) on a linear one."""
    rows = sorted({n for points in series.values() for n in points})
    ticks = nice_ticks(max(value(n, ms) for points in series.values() for n, ms in points.items()))
    span = math.log2(rows[-1] / rows[0]) or 1
    x_of = lambda n: x0 + LEFT + (WIDTH - LEFT - 20) * math.log2(n / rows[0]) / span
    y_of = lambda v: TOP + HEIGHT - HEIGHT * v / ticks[-1]
    yield from axes(x0, title, unit, "rows of a pass", ticks, y_of)
    for n in rows:
        yield (f'<line x1="{x_of(n):.1f}" x2="{x_of(n):.1f}" y1="{TOP + HEIGHT}" '
               f'y2="{TOP + HEIGHT + 4}" stroke="#888"/><text x="{x_of(n):.1f}" '
               f'y="{TOP + HEIGHT + 18}" text-anchor="middle">{n}</text>')
    for i, (name, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        dash = ' stroke-dasharray="6 3"' if name.startswith("llama.cpp") else ""
        at = [(x_of(n), y_of(value(n, ms))) for n, ms in points.items()]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        for x, y in at:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def frame(n_panels, height):
    """What a picture of panels side by side begins with."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{n_panels * WIDTH}" height="{height}" '
            f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>')


def legend(x, y, colour, name, dash=""):
    """A line of the legend."""
    return (f'<line x1="{x}" x2="{x + 28}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="3"{dash}/><text x="{x + 36}" y="{y + 4}">{escape(name)}</text>')


def draw(series, work):
    yield frame(2, TOP + HEIGHT + BOTTOM + LEGEND * len(series) + 10)
    kind = {"verify": "rows of one sequence", "batch": "sequences together"}.get(work, work)
    yield from panel(0, f"throughput, {kind}", "tokens/s", series, lambda n, ms: n / ms * 1e3)
    yield from panel(WIDTH, f"cost per row, {kind}", "ms per row", series, lambda n, ms: ms / n)
    for i, name in enumerate(series):
        y, colour = TOP + HEIGHT + BOTTOM + LEGEND * i + 10, COLOURS[i % len(COLOURS)]
        dash = ' stroke-dasharray="6 3"' if name.startswith("llama.cpp") else ""
        yield legend(LEFT, y, colour, name, dash)
    yield "</svg>"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out")
    parser.add_argument("csv", nargs="+")
    parser.add_argument("--work", default="verify", choices=("verify", "batch", "prefill"))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    series = read(options.csv, options)
    if not series:
        parser.exit(1, f"plot.py: no line of these files is about {options.work}\n")
    with open(options.out, "w") as file:
        file.write("\n".join(draw(series, options.work)) + "\n")


if __name__ == "__main__":
    main()
