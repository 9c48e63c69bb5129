#!/usr/bin/env python3
"""Hold what `limbeck run` exported for the target `openvino` against OpenVINO's CPU plugin.

    pip install openvino==2026.4.1
    python .ci/openvino_check.py OUT… --images IDX --labels IDX [--float]

OUT: folders that `limbeck run --out` wrote from recipes judged on the whole of --images, in its order (model.onnx, predictions.txt). OpenVINO runs each
model with everything that is not quantised in float32 (`INFERENCE_PRECISION_HINT`), one line a model: on how many images it gives the predicted label, and
in which element types its convolutions and products run. Fails (exit 1) where fewer than 99.9 % of the labels agree, or one of those does not run in
8-bit integers although the target says that it does. --float: weights alone are quantised; no layer is expected to, and OpenVINO is told not to quantise
inputs by itself. On processors without VNNI sums of 8-bit products may be cut off: agreement is then told and not judged.
"""
import argparse
import collections
import pathlib
import sys

import numpy as np
import openvino

from onnxruntime_check import AGREEMENT, read_idx

VNNI = {"avx512_vnni", "avx_vnni", "asimddp"}
LAYERS = ("Convolution", "FullyConnected", "MatMul")
INTEGERS = ("u8", "i8")


def exact():
    """Whether this processor adds products of 8-bit integers up without loss, as far as Linux says."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    return not cpuinfo.is_file() or bool(VNNI & set(cpuinfo.read_text().split()))


def check(folder, images, labels, a):
    predicted = np.array([int(line) for line in (folder / "predictions.txt").read_text().split()])
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    if a.float:
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    run = core.compile_model(core.read_model(folder / "model.onnx"), "CPU", options)
    given = np.concatenate([run(images[i : i + a.batch])[0].argmax(1) for i in range(0, len(images), a.batch)])
    kinds = collections.Counter()
    for node in run.get_runtime_model().get_ordered_ops():
        kind = node.get_rt_info()["layerType"].value
        if kind in LAYERS:
            kinds[kind, node.get_rt_info()["runtimePrecision"].value] += 1
    same = int((given == predicted).sum())
    layers = ", ".join(f"{n} {kind} in {element}" for (kind, element), n in sorted(kinds.items()))
    right = 100 * (given == labels).mean(), 100 * (predicted == labels).mean()
    integers = bool(kinds) and all(element in INTEGERS for _, element in kinds)
    agrees = same >= AGREEMENT * len(images) or not (exact() or a.float)
    passed = agrees and (integers or a.float)
    print(f"{'ok  ' if passed else 'FAIL'} {folder.name}: {same:,} of {len(images):,} labels as predicted; top-1 {right[0]:.2f} %, "
          f"predicted {right[1]:.2f} %; {layers}")
    return passed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--labels", type=pathlib.Path, required=True)
    parser.add_argument("--scale", type=float, default=1 / 255, help="pixels are multiplied by this (default 1/255)")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--float", action="store_true", help="layers need not run in integers: weights alone are quantised")
    a = parser.parse_args()
    images = (read_idx(a.images).astype(np.float64) * a.scale).astype(np.float32)[:, None]
    labels = read_idx(a.labels)
    print(f"OpenVINO {openvino.__version__}")
    sys.exit(0 if all([check(folder, images, labels, a) for folder in a.folders]) else 1)


if __name__ == "__main__":
    main()
