#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the lines of `moge bench serve --json` as SVG: latencies and throughput against the load.

    serve_plot.py OUT.svg FILE...      each FILE has one JSON object a line, one run each

Runs that differ in nothing but the load (request_rate, or max_concurrency) make a line; p50 is solid,
p90 dashed, p99 dotted.  Runs of `--rate inf` have no place on the axis and are left out.  Nothing but
the standard library is needed."""
import argparse
import json


from plot import COLOURS, HEIGHT, LEFT, LEGEND, TOP, WIDTH, axes, frame, legend, nice_ticks

BOTTOM = 56
DASHES = {"p50": "", "p90": ' stroke-dasharray="6 3"', "p99": ' stroke-dasharray="2 3"'}


def read(paths):
    """{series name: {load: run}}, and what the load is."""
    series, axis = {}, None
    for path in paths:
        with open(path) as file:
            for line in filter(str.strip, file):
                run = json.loads(line)
                key = "max_concurrency" if run["request_rate"] is None else "request_rate"
                if run[key] == "inf":
                    continue
                if axis not in (None, key):
                    raise ValueError("some runs have a rate and some a concurrency: draw them apart")
                axis = key
                name = f"{run['model_id']} {run['isa']} {run['threads']}t, speculation {run['speculation']}"
                series.setdefault(name, {})[run[key]] = run
    if not series:
        raise ValueError("these files hold no runs with a load")
    return {name: dict(sorted(runs.items())) for name, runs in sorted(series.items())}, axis


def panel(x0, title, unit, axis, series, keys):
    """One set of axes.  keys: {field of a run: stroke style}"""
    loads = sorted({load for runs in series.values() for load in runs})
    ticks = nice_ticks(max(run[key] for runs in series.values() for run in runs.values() for key in keys) or 1)
    span = loads[-1] - loads[0] or 1
    x_of = lambda load: x0 + LEFT + (WIDTH - LEFT - 20) * (load - loads[0]) / span
    y_of = lambda value: TOP + HEIGHT - HEIGHT * value / ticks[-1]
    what = {"request_rate": "requests a second", "max_concurrency": "streams at once"}[axis]
    yield from axes(x0, title, unit, what, ticks, y_of)
    for load in loads:
        yield (f'<text x="{x_of(load):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{load:g}</text>')
    for i, runs in enumerate(series.values()):
        for key, dash in keys.items():
            path = " ".join(f"{x_of(load):.1f},{y_of(run[key]):.1f}" for load, run in runs.items())
            yield (f'<polyline points="{path}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" '
                   f'stroke-width="2"{dash}/>')


def draw(series, axis):
    yield frame(3, TOP + HEIGHT + BOTTOM + LEGEND * len(series) + 10)
    for i, (metric, title) in enumerate((("ttft", "time to the first token: p50, p90, p99"),
                                         ("tpot", "time per output token: p50, p90, p99"))):
        keys = {f"{kind}_{metric}_ms": dash for kind, dash in DASHES.items()}
        yield from panel(i * WIDTH, title, "ms", axis, series, keys)
    yield from panel(2 * WIDTH, "output", "tokens/s", axis, series, {"output_throughput": ""})
    for i, name in enumerate(series):
        y = TOP + HEIGHT + BOTTOM + LEGEND * i + 10
        yield legend(LEFT, y, COLOURS[i % len(COLOURS)], name)
    yield "</svg>"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out")
    parser.add_argument("runs", nargs="+")
    options = parser.parse_args()
    try:
        series, axis = read(options.runs)
    except (OSError, ValueError, KeyError) as error:
        parser.exit(1, f"serve_plot.py: {error}\n")
    with open(options.out, "w") as file:
        file.write("\n".join(draw(series, axis)) + "\n")


if __name__ == "__main__":
    main()
