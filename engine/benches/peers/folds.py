#!/usr/bin/env python3
"""A recipe judged on every image of a small set once, by calibrations that never saw it: what it loses, and how far its answers are from the original's.

    pip install onnxruntime pillow numpy
    cargo build --release -p limbeck_engine --bin limbeck
    python engine/benches/peers/folds.py RECIPE --labels labels.csv --calibrate 64 --shuffle 11

The images are shuffled and dealt into `--folds`; for each, `limbeck run` calibrates on the first `--calibrate` of the others and judges on it. The exported
file then runs in ONNX Runtime beside the original on ten views of each image (itself and its four corners at 0.89 of its size, enlarged, and their mirror images):
how many points of top-1 are lost on them, how often the labels are the same, and KL(original ‖ exported) in nats. Views of one image are alike: intervals and
standard errors are over images.
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

import numpy as np
import onnxruntime as ort
from PIL import Image
from rounding import TASK

VIEWS = 10


def views(path, a):
    """Ten views of an image, normalised."""
    picture = Image.open(path).convert("RGB")
    small = [round(0.89 * side) for side in picture.size]
    found = [picture]
    for x in (0, picture.width - small[0]):
        for y in (0, picture.height - small[1]):
            found.append(picture.crop((x, y, x + small[0], y + small[1])).resize(picture.size, Image.Resampling.BICUBIC))
    arrays = [((np.asarray(view, np.float32) - a.mean) / a.std).transpose(2, 0, 1) for view in found]
    return arrays + [array[..., ::-1] for array in arrays]


def answers(model, images, a):
    """Log-probabilities of a model of logits: images × views × classes."""
    session = ort.InferenceSession(str(model))
    name = session.get_inputs()[0].name

    def answer(view):
        z = session.run(None, {name: np.ascontiguousarray(view)[None]})[0][0].astype(np.float64)
        z -= z.max()
        return z - np.log(np.exp(z).sum())

    return np.array([[answer(view) for view in views(image, a)] for image in images])


def spread(values):
    """Mean over images, and half of its 95 % interval."""
    return np.mean(values), 1.96 * np.std(values, ddof=1) / len(values) ** 0.5


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
    n, lost, won, kl, less, same = len(rows), 0, 0, [], [], []
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
            images = [a.labels.parent / row[0] for row in judged]
            original, found = answers(model, images, a), answers(out / "model.onnx", images, a)
            kl.extend((np.exp(original) * (original - found)).sum(2).mean(1))
            truth = np.array([int(row[1]) for row in judged])[:, None]
            first, second = original.argmax(2), found.argmax(2)
            less.extend(100 * ((first == truth).mean(1) - (second == truth).mean(1)))
            same.extend(100 * (first == second).mean(1))
        print(f"fold {fold + 1}: {100 * drop['value']:+.2f} points of {drop['n']}", flush=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    p = (lost - won) / n
    half = 1.96 * (((lost + won) / n - p * p) / n) ** 0.5
    mean, interval = spread(less)
    print(
        f"{a.recipe.name}: lost {100 * p:+.2f} points ({100 * (p - half):+.2f} to {100 * (p + half):+.2f}, n = {n}, paired); "
        f"on {VIEWS} views of each {mean:+.2f} ({mean - interval:+.2f} to {mean + interval:+.2f}), labels the same on {np.mean(same):.1f} %, "
        f"KL {np.mean(kl):.4f} ± {spread(kl)[1] / 1.96:.4f} nats; {cpu / a.folds:.1f} CPU s a run"
    )


if __name__ == "__main__":
    main()
