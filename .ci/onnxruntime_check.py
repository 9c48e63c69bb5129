#!/usr/bin/env python3
"""Hold exported models against the deployment runtime: is what Limbeck predicts what ONNX Runtime gives?

    python .ci/onnxruntime_check.py MODELS --images IDX --labels IDX (--limbeck BINARY --task TASK | predictions beside the models)

For every .onnx file in the folder MODELS (or the one file): ONNX's checker with full shape inference; then ONNX Runtime on
the whole holdout with graph optimisations off and on, one thread each. The predictions compared with are those of
`limbeck eval MODEL --task TASK --predictions FILE` (one class index a line, in the order of the holdout): written here where
--limbeck is given, else read from MODEL.predictions beside the model.

Prints a table to standard error and one JSON object to standard output (--json FILE: into a file). Fails (exit 1) where the checker
refuses a model or the labels of fewer than 99.9 % of the samples agree with optimisations off. With optimisations on the
difference is reported and not judged: on processors without VNNI the runtime's int8 kernels saturate.
"""
import argparse
import gzip
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

AGREEMENT = 0.999


def read_idx(path):
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    rank = raw[3]
    dims = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(dims)


def session(path, optimise):
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def classes(path, images, optimise, batch):
    """Arg-max class of every image (the lowest index on ties, as Limbeck does)."""
    run = session(path, optimise)
    feed = run.get_inputs()[0].name
    out = []
    for start in range(0, len(images), batch):
        logits = run.run(None, {feed: images[start : start + batch]})[0]
        out.append(logits.reshape(len(logits), -1).argmax(1))
    return np.concatenate(out)


def predictions(path, args, count, folder):
    file = path.with_suffix(".predictions")
    if args.limbeck:
        file = pathlib.Path(folder) / f"{path.stem}.predictions"
        subprocess.run([args.limbeck, "eval", path, "--task", args.task, "--predictions", file],
                       check=True, stdout=subprocess.DEVNULL)
    ours = np.array([int(line) for line in file.read_text().split()])
    if len(ours) != count:
        raise SystemExit(f"{file} has {len(ours)} predictions for {count} images")
    return ours


def check(path, images, labels, args, folder):
    result = {"model": path.name, "bytes": path.stat().st_size, "n": len(labels)}
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        result["opset"] = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        result["checker"] = "ok"
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        result["checker"] = str(error)
    ours = predictions(path, args, len(labels), folder)
    result["accuracy_limbeck"] = float((ours == labels).mean())
    for name, optimise in (("off", False), ("on", True)):
        theirs = classes(path, images, optimise, args.batch)
        result[f"agreement_{name}"] = float((ours == theirs).mean())
        result[f"differ_{name}"] = int((ours != theirs).sum())
        result[f"accuracy_{name}"] = float((theirs == labels).mean())
    result["passed"] = result["checker"] == "ok" and result["agreement_off"] >= AGREEMENT
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("--images", type=pathlib.Path, required=True, help="IDX of the holdout's images, plain or gzip")
    parser.add_argument("--labels", type=pathlib.Path, required=True)
    parser.add_argument("--scale", type=float, default=1 / 255, help="pixels are multiplied by this (default 1/255)")
    parser.add_argument("--limbeck", help="the limbeck binary; needs --task")
    parser.add_argument("--task", help="task.ron whose holdout is --images")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--json", type=pathlib.Path, help="write the report here instead of standard output")
    args = parser.parse_args()
    if bool(args.limbeck) != bool(args.task):
        parser.error("--limbeck and --task belong together")
    models = [args.models] if args.models.is_file() else sorted(args.models.rglob("*.onnx"))
    if not models:
        parser.error(f"no .onnx file in {args.models}")
    images = read_idx(args.images)
    images = (images.astype(np.float64) * args.scale).astype(np.float32)[:, None]
    labels = read_idx(args.labels)
    with tempfile.TemporaryDirectory() as folder:
        results = [check(path, images, labels, args, folder) for path in models]
    report = {"onnxruntime": ort.__version__, "required_agreement": AGREEMENT, "models": results,
              "passed": all(r["passed"] for r in results)}
    for r in results:
        print(f"{'ok  ' if r['passed'] else 'FAIL'} {r['model']}: {r['bytes']:,} bytes, checker {r['checker']}, n {r['n']:,}; "
              f"agreement off {100 * r['agreement_off']:.2f} %, on {100 * r['agreement_on']:.2f} %; accuracy limbeck "
              f"{100 * r['accuracy_limbeck']:.2f} %, off {100 * r['accuracy_off']:.2f} %, on {100 * r['accuracy_on']:.2f} %",
              file=sys.stderr)
    text = json.dumps(report, indent=2)
    if args.json:
        args.json.write_text(text + "\n")
    else:
        print(text)
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
