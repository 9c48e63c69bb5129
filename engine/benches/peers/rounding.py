#!/usr/bin/env python3
"""4-bit weights without training beside AIMET's sequential MSE: the same network, calibration images and judged images.

    pip install aimet-onnx==2.42.0 pillow
    cargo build --release -p limbeck_engine --bin limbeck
    python engine/benches/peers/rounding.py --model M.onnx --labels labels.csv --calibrate 32 --json table.json

Both quantise every layer's weights to 4 bits per channel and activations to 8 bits per tensor. AIMET: `QuantizationSimModel` (default configuration,
per channel), `apply_seq_mse` with its own defaults, `compute_encodings`; judged by its simulation. Limbeck: `limbeck run` with the recipe below. The first
`--calibrate` rows of a seeded shuffle of the labels' file calibrate, all others judge. CPU seconds, all threads: those of the simulation's making,
the search and the encodings for AIMET, without its judgement; those of the whole command for Limbeck, with reading and both of its judgements.
"""
import argparse
import csv
import json
import math
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

BATCH = 16

TASK = """Task(
    version: 1,
    name: "peer",
    sources: {{ "calibration": Csv(file: "calibration.csv"), "judged": Csv(file: "judged.csv") }},
    preprocess: (crop: ({size}, {size}), channels: rgb, mean: [{mean}, {mean}, {mean}], std: [{std}, {std}, {std}], scale: 1.0, layout: nchw),
    classes: Count({classes}),
    metric: top1,
    splits: (calibration: Rows(from: "calibration"), search: Rows(from: "judged")),
)
"""

RECIPE = """(version: 1, name: "peer", model: "{model}", task: "task.ron", steps: [
    FoldBatchNorm,
    Quantize(default: set(int4)),
    {method}
])
"""


def used(who):
    use = resource.getrusage(who)
    return use.ru_utime + use.ru_stime


def pixels(path, a):
    picture = np.asarray(Image.open(path).convert("RGB"), np.float32)
    return ((picture - a.mean) / a.std).transpose(2, 0, 1)


def given(run, name, images):
    return np.concatenate([run.run(None, {name: images[i : i + BATCH]})[0].argmax(1) for i in range(0, len(images), BATCH)])


def lost(before, after):
    """Points lost with their paired 95 % interval, by the normal approximation for both tools alike."""
    difference = before.astype(float) - after.astype(float)
    half = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
    return {"points": 100 * difference.mean(), "ci": [100 * (difference.mean() - half), 100 * (difference.mean() + half)]}


def aimet(a, calibration, images, labels, original):
    from aimet_onnx import QuantizationSimModel, apply_seq_mse

    model = onnx.load(a.model)
    name = model.graph.input[0].name
    inputs = [{name: calibration[i : i + BATCH]} for i in range(0, len(calibration), BATCH)]
    began = used(resource.RUSAGE_SELF)
    options = {"intra_op_num_threads": a.threads}
    sim = QuantizationSimModel(model, param_type="int4", activation_type="int8", dummy_input=inputs[0], session_options_kwargs=options)
    apply_seq_mse(sim, inputs)
    sim.compute_encodings(inputs)
    taken = used(resource.RUSAGE_SELF) - began
    after = given(sim.session, name, images) == labels
    return {"tool": "AIMET", "method": "sequential MSE", "cpu_seconds": taken, "top1": 100 * after.mean(), "lost": lost(original, after)}


def limbeck(a, method, folder, labels, original):
    recipe, out = folder / "recipe.ron", folder / "out"
    recipe.write_text(RECIPE.format(model=a.model.resolve(), method=method))
    began = used(resource.RUSAGE_CHILDREN)
    command = [a.limbeck, "run", recipe, "--split", "search", "--threads", str(a.threads), "--out", out, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    taken = used(resource.RUSAGE_CHILDREN) - began
    if done.returncode not in (0, 1):
        sys.exit(f"limbeck run with {method}: {done.stderr}")
    after = np.array([int(line) for line in (out / "predictions.txt").read_text().split()]) == labels
    shutil.rmtree(out)
    return {"tool": "Limbeck", "method": method, "cpu_seconds": taken, "top1": 100 * after.mean(), "lost": lost(original, after)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limbeck", default="target/release/limbeck")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--labels", type=pathlib.Path, required=True, help="CSV: image,class")
    parser.add_argument("--calibrate", type=int, default=32)
    parser.add_argument("--methods", default="AdaRound(),SequentialMse()", help="steps behind Quantize, by commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mean", type=float, default=127.0)
    parser.add_argument("--std", type=float, default=128.0)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--json", type=pathlib.Path)
    a = parser.parse_args()
    with a.labels.open(newline="") as file:
        rows = [row for row in csv.reader(file) if (a.labels.parent / row[0]).is_file()]
    random.Random(a.seed).shuffle(rows)
    parts = {"calibration": rows[: a.calibrate], "judged": rows[a.calibrate :]}
    calibration, images = (np.stack([pixels(a.labels.parent / row[0], a) for row in part]) for part in parts.values())
    labels = np.array([int(row[1]) for row in parts["judged"]])
    plain = ort.InferenceSession(str(a.model), providers=["CPUExecutionProvider"])
    name = plain.get_inputs()[0].name
    original = given(plain, name, images) == labels
    table = {"calibration": len(calibration), "n": len(images), "original_top1": 100 * original.mean(), "rows": []}
    print(f"{table['calibration']} images calibrate, {table['n']} judge; original {table['original_top1']:.2f} %")

    def add(row):
        table["rows"].append(row)
        points, (low, high) = row["lost"]["points"], row["lost"]["ci"]
        print(f"{row['tool']:8} {row['method']:20} {row['cpu_seconds']:7.1f} CPU s  lost {points:+6.2f} ({low:+.2f} to {high:+.2f})", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for part, lines in parts.items():
            text = "path,label\n"
            for at, row in enumerate(lines):
                name = f"{part}-{at}{pathlib.Path(row[0]).suffix}"
                shutil.copy(a.labels.parent / row[0], folder / name)
                text += f"{name},{row[1]}\n"
            (folder / f"{part}.csv").write_text(text)
        (folder / "task.ron").write_text(TASK.format(mean=a.mean, std=a.std, size=images.shape[-1], classes=a.classes))
        for method in a.methods.split(","):
            add(limbeck(a, method, folder, labels, original))
    add(aimet(a, calibration, images, labels, original))
    if a.json:
        a.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
