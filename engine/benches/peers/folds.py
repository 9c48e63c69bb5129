#!/usr/bin/env python3
"""A recipe judged on every image of a small set once, by calibrations that never saw it: what it loses, and how far its answers are from the original's.

    pip install onnxruntime pillow numpy
    cargo build --release -p limbeck_engine --bin limbeck
    python engine/benches/peers/folds.py RECIPE --labels labels.csv --calibrate 64 --shuffle 11

The images are shuffled and dealt into `--folds`; for each, `limbeck run` calibrates on the first `--calibrate` of the others and judges on it. The exported
file then runs in ONNX Runtime beside the original, on the images and their mirror images: KL(original ‖ exported) in nats, with the standard error.
"""
import argparse
import csv
import json
import pathlib
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import types

import numpy as np
import onnxruntime as ort
from rounding import TASK, pixels


def answers(model, images):
    """Log-probabilities of a model of logits."""
    session = ort.InferenceSession(str(model))
    name = session.get_inputs()[0].name
    found = []
    for image in images:
        for x in (image, image[..., ::-1]):
            z = session.run(None, {name: np.ascontiguousarray(x)[None]})[0][0].astype(np.float64)
            z -= z.max()
            found.append(z - np.log(np.exp(z).sum()))
    return np.array(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=pathlib.Path)
    parser.add_argument("--labels", type=pathlib.Path, required=True, help="CSV of image file and label, with a heading")
    parser.add_argument("--limbeck", default="target/release/limbeck")
    parser.add_argument("--calibrate", type=int, default=64)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--shuffle", type=int, default=11)
    parser.add_argument("--mean", type=float, default=127.0)
    parser.add_argument("--std", type=float, default=128.0)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    a = parser.parse_args()
    text = a.recipe.read_text()
    named = re.search(r'model: "([^"]+)"', text)
    if not named:
        sys.exit(f"{a.recipe} names no model")
    model = (a.recipe.parent / named[1]).resolve()
    text = text.replace(named[0], f'model: "{model}"')
    text = re.sub(r'task: "[^"]+"', 'task: "task.ron"', text)
    rows = [row for row in csv.reader(a.labels.open()) if (a.labels.parent / row[0]).is_file()]
    random.Random(a.shuffle).shuffle(rows)
    n, lost, won, kl = len(rows), 0, 0, []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for fold in range(a.folds):
        span = slice(fold * n // a.folds, (fold + 1) * n // a.folds)
        judged, others = rows[span], rows[: span.start] + rows[span.stop :]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for part, own in {"calibration": others[: a.calibrate], "judged": judged}.items():
                lines = ["path,label"]
                for i, (path, label, *_) in enumerate(own):
                    name = f"{part}-{i}{pathlib.Path(path).suffix}"
                    shutil.copy(a.labels.parent / path, folder / name)
                    lines.append(f"{name},{label}")
                (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
            (folder / "task.ron").write_text(TASK.format(mean=a.mean, std=a.std, size=a.size, classes=a.classes))
            (folder / "recipe.ron").write_text(text)
            out = folder / "out"
            command = [a.limbeck, "-q", "--json", "run", folder / "recipe.ron", "--split", "search", "--out", out]
            run = subprocess.run(command, capture_output=True, text=True)
            # A goal that is missed is no failure here.
            if not (out / "model.onnx").is_file():
                sys.exit(run.stderr)
            drop = json.loads(run.stdout)["metrics"]["drop"]
            lost, won = lost + drop["only_baseline"], won + drop["only_candidate"]
            look = types.SimpleNamespace(mean=a.mean, std=a.std)
            images = [pixels(a.labels.parent / row[0], look) for row in judged]
            original, found = answers(model, images), answers(out / "model.onnx", images)
            kl.extend((np.exp(original) * (original - found)).sum(1))
        print(f"fold {fold + 1}: {100 * drop['value']:+.2f} points of {drop['n']}", flush=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    p = (lost - won) / n
    half = 1.96 * (((lost + won) / n - p * p) / n) ** 0.5
    print(
        f"{a.recipe.name}: lost {100 * p:+.2f} points ({100 * (p - half):+.2f} to {100 * (p + half):+.2f}, n = {n}, paired), "
        f"KL {np.mean(kl):.4f} ± {np.std(kl) / len(kl) ** 0.5:.4f} nats, {cpu / a.folds:.1f} CPU s a run"
    )


if __name__ == "__main__":
    main()
