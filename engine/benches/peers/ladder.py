#!/usr/bin/env python3
"""How much faster a network became: ONNX Runtime on the original and on others, in turns within one run.

    pip install onnxruntime==1.31.1 'numpy>=2,<3'
    python engine/benches/peers/ladder.py ORIGINAL.onnx OTHER.onnx… [--batch 1] [--rounds 40] [--runs 30] [--json FILE]

One thread each, graph optimisations on. A round times `runs` inferences of every network one after the other, in CPU time of this process, so
that other work on the machine counts as little as can be. Printed: the median of the rounds' ratios to the original, with the 95 %
interval of that median (by order statistics), and the median milliseconds an inference.
"""
import argparse
import json
import math
import pathlib
import statistics
import sys
import time

import numpy as np
import onnxruntime as ort


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def interval(values):
    """95 % interval of the median: order statistics of the binomial distribution."""
    values = sorted(values)
    n = len(values)
    half = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return values[low], values[high]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", type=pathlib.Path)
    a = parser.parse_args()
    sessions = [session(path) for path in a.models]
    feed = sessions[0].get_inputs()[0]
    shape = [a.batch] + [d if isinstance(d, int) else 1 for d in feed.shape[1:]]
    image = np.random.default_rng(0).random(shape, np.float32)
    times = [[] for _ in sessions]
    for turn in range(a.rounds + 1):
        for place, s in enumerate(sessions):
            name = s.get_inputs()[0].name
            s.run(None, {name: image})
            began = time.process_time()
            for _ in range(a.runs):
                s.run(None, {name: image})
            # The first round warms up.
            if turn:
                times[place].append((time.process_time() - began) / a.runs)
    rows = []
    for path, taken in zip(a.models, times):
        ratios = [first / own for first, own in zip(times[0], taken)]
        rows.append({
            "model": path.name,
            "bytes": path.stat().st_size,
            "milliseconds": statistics.median(taken) * 1e3,
            "times_as_fast": statistics.median(ratios),
            "ci": interval(ratios),
            "rounds": a.rounds,
        })
    print(f"ONNX Runtime {ort.__version__}, one thread, batch {a.batch}, CPU time, {a.rounds} rounds in turns", file=sys.stderr)
    for row in rows:
        low, high = row["ci"]
        print(f'{row["model"]:32} {row["bytes"]:>10,} bytes {row["milliseconds"]:9.4f} ms  {row["times_as_fast"]:.2f} times as fast ({low:.2f} to {high:.2f})')
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
