#!/usr/bin/env python3
"""Structured pruning beside Torch-Pruning: the same network, samples, share of MACs, epochs and batch.

    pip install -r engine/benches/peers/requirements.txt
    cargo build --release
    python engine/benches/peers/pruning.py [--limbeck target/release/limbeck] [--epochs 3] [--threads 2] [--json FILE]

Torch-Pruning: group L1 (`GroupMagnitudeImportance(p=1)`), ranked globally, in small steps until at most half of the MACs are left; then plain
fine-tuning on the labels (SGD with momentum 0.9, half a cosine down to 0, weight decay 5e-4, channels-last). Limbeck: `PruneChannels` by L1, ranked
globally, to the same share, then `Distil`. Both see the rows of the task's training split in batches of 64, unchanged, and are judged on all 10,000
test images. CPU seconds are those of pruning and training for Torch-Pruning, and of the whole command for Limbeck, with both of its judgements.
"""
import argparse
import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import torch_pruning as tp
from onnx import numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "sample-models" / "fashion-resnet"
# As `task.ron` has it: rows of the 20,000 that training sees.
TRAINING = slice(3000, 20000)
BATCH = 64

RECIPE = """(version: 1, name: "peer", model: "{sample}/fashion-resnet.onnx", task: "{sample}/task.ron", seed: {seed}, steps: [
    PruneChannels(amount: macs({share}), criterion: l1, ranking: global),
    Distil(epochs: {epochs}, batch: {batch}, rate: 0.004, schedule: one_cycle, batch_norm: batch(freeze_at: 0.8)),
])
"""


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def rows(sample, name, part):
    images = sample.read_idx(SAMPLE / f"{name}-images-idx3-ubyte.gz")[part]
    labels = sample.read_idx(SAMPLE / f"{name}-labels-idx1-ubyte.gz")[part]
    images = torch.from_numpy(images.astype(np.float32) / 255.0).unsqueeze(1)
    return images, torch.from_numpy(labels.astype(np.int64))


def correct(model, images, labels):
    model.eval()
    with torch.no_grad():
        given = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return (given == labels).numpy()


def peer(sample, train, test, options):
    torch.manual_seed(options.seed)
    model = sample.ResNet20()
    file = onnx.load(SAMPLE / "fashion-resnet.onnx")
    weights = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in file.graph.initializer}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(m.endswith("num_batches_tracked") for m in missing), (missing, unexpected)
    before = correct(model, *test)

    started = time.process_time()
    example = torch.zeros(1, 1, 28, 28)
    macs, _ = tp.utils.count_ops_and_params(model, example)
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=1), global_pruning=True,
        pruning_ratio=0.9, iterative_steps=200, ignored_layers=[model.fc],
    )
    left = macs
    while left > options.share * macs:
        pruner.step()
        left, _ = tp.utils.count_ops_and_params(model, example)
    model = model.to(memory_format=torch.channels_last).train()
    images, labels = train
    steps = options.epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(options.epochs):
        order = torch.randperm(len(images))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            pick = order[at : at + BATCH]
            loss = F.cross_entropy(model(images[pick].contiguous(memory_format=torch.channels_last)), labels[pick])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    spent = time.process_time() - started
    return before, correct(model, *test), left / macs, spent


def ours(test, options):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        recipe = folder / "recipe.ron"
        recipe.write_text(RECIPE.format(sample=SAMPLE, seed=options.seed, share=options.share, epochs=options.epochs, batch=BATCH))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [options.limbeck, "run", recipe, "--out", folder / "out", "--threads", str(options.threads), "--quiet", "--checkpoint-every", "never"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"limbeck run ended with {done.returncode}: {done.stderr}")
        given = np.array((folder / "out" / "predictions.txt").read_text().split(), int)
        metrics = json.loads((folder / "out" / "metrics.json").read_text())
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return given == test[1].numpy(), metrics, spent


def lost(before, after):
    """Points lost and the normal 95 % interval of the paired difference."""
    worse, better, n = np.sum(before & ~after), np.sum(~before & after), len(before)
    points = 100.0 * (worse - better) / n
    half = 196.0 * np.sqrt(worse + better - (worse - better) ** 2 / n) / n
    return points, points - half, points + half


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limbeck", default=ROOT / "target" / "release" / "limbeck")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs left")
    parser.add_argument("--rate", type=float, default=0.02, help="first rate of Torch-Pruning's fine-tuning")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sample = module(SAMPLE / "train.py")
    train = rows(sample, "train-20k", TRAINING)
    test = rows(sample, "t10k", slice(None))
    before, after, left, peer_seconds = peer(sample, train, test, options)
    own, metrics, own_seconds = ours(test, options)
    inspected = subprocess.run([str(options.limbeck), "inspect", str(SAMPLE / "fashion-resnet.onnx"), "--json"], capture_output=True, check=True)
    own_left = metrics["sizes"]["macs"] / json.loads(inspected.stdout)["sizes"]["macs"]
    table = [
        ("Torch-Pruning, fine-tuned", *lost(before, after), left, peer_seconds),
        ("Limbeck, distilled", *lost(before, own), own_left, own_seconds),
    ]
    print(f"fashion-resnet, {options.epochs} epochs of {len(train[0]):,} samples, {len(before):,} test images, original {100 * before.mean():.2f} %")
    print(f"{'':28}{'points lost (95 % interval)':32}{'MACs left':>12}{'CPU s':>9}")
    for name, points, low, high, macs, seconds in table:
        print(f"{name:28}{f'{points:.2f} ({low:.2f} to {high:.2f})':32}{100 * macs:>10.1f} %{seconds:>9.0f}")
    if options.json:
        keys = ("name", "points_lost", "low", "high", "macs_left", "cpu_seconds")
        options.json.write_text(json.dumps({"epochs": options.epochs, "n": len(before), "rows": [dict(zip(keys, row)) for row in table]}, indent=1, default=float))


if __name__ == "__main__":
    main()
