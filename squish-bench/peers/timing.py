"""What the Python peers share: how a call is timed, and the lines that are printed."""

import argparse
import json
import math
import statistics
import time

# Seconds that the samples of a figure take together.
SPAN = 0.5


def parser(doc):
    """A parser of the arguments that every program takes; `doc` is its help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only rows whose id contains this text")
    parser.add_argument("--quick", action="store_true", help="less than half of the time")
    return parser


def print_fastest(group, options, version, threads):
    """Times the calls of `group`, tuples of row, shape, peer, form and a function, of the rows that `options` let run, and prints the
    fastest form of each row, shape and peer. `version` is a function of a peer to its name with a version, `threads` one to the threads
    that its calls just had."""
    fastest = {}
    for row, shape, peer, form, run in group:
        if options.filter not in row:
            continue
        samples = time_call(run, 0.4 * SPAN if options.quick else SPAN)
        line = {"row": row, "peer": version(peer), "shape": shape, "ns_min": min(samples)}
        line |= {"ns_median": statistics.median(samples), "threads": threads(peer), "form": form}
        key = row, shape, peer
        fastest[key] = min(fastest.get(key, line), line, key=lambda each: each["ns_min"])
    for line in fastest.values():
        print(json.dumps(line), flush=True)


def time_call(run, span):
    """Times of one call in ns, from samples as long as those of the benches, whose minimum would not be comparable to that of shorter ones.

    20 samples of 1, 2, ... 20 times so many calls that all take the span, or of equally many if that would take twice as long; five at
    least of calls that exceed a twentieth of it.
    """
    warm_ups, began = 0, time.perf_counter()
    while warm_ups < 3 or time.perf_counter() - began < span / 10:
        run()
        warm_ups += 1
    once = (time.perf_counter() - began) / warm_ups
    step = math.ceil(span / once / 210)
    if step * 210 * once <= 2 * span:
        counts = [i * step for i in range(1, 21)]
    else:
        counts = [math.ceil(span / once / 20)] * min(max(int(span / once), 5), 20)
    samples = []
    for calls in counts:
        start = time.perf_counter_ns()
        for _ in range(calls):
            run()
        samples.append((time.perf_counter_ns() - start) / calls)
    return samples
