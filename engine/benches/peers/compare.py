#!/usr/bin/env python3
"""Limbeck beside ONNX Runtime and PyTorch: the same inputs, the same threads, alternated runs, medians.

    pip install -r engine/benches/peers/requirements.txt
    cargo build --release -p limbeck_engine --example peer
    python engine/benches/peers/compare.py [--threads 2] [--rounds 7] [--json FILE] [--only WORD]

Every row is a ratio measured in this one run; the outputs (or the losses) of both sides are compared first.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
import onnxruntime as ort
import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[3]
SAMPLES = ROOT / "sample-models"
sys.path.insert(0, str(SAMPLES / "fashion-resnet"))


def pattern(shape):
    """The input that `examples/peer.rs` computes as well."""
    i = np.arange(np.prod(shape), dtype=np.int64)
    return (((i * 7919 + i // 13 * 104_729) % 1021) / np.float32(1021.0)).astype(np.float32).reshape(shape)


class Limbeck:
    def __init__(self, binary, threads):
        self.process = subprocess.Popen(
            [binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"RAYON_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin"},
        )

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise SystemExit(f"peer: {answer['error']}")
        return answer


class Separable(nn.Module):
    """A depthwise-separable network of the same kind as ResNet-20: MobileNet's blocks at 28×28."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU()]
        c = 32
        for o, stride in [(64, 1), (64, 1), (128, 2), (128, 1), (128, 1), (256, 2), (256, 1)]:
            layers += [nn.Conv2d(c, c, 3, stride, 1, groups=c), nn.ReLU(), nn.Conv2d(c, o, 1), nn.ReLU()]
            c = o
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(c, 10)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class TorchStep:
    """Forward, cross-entropy, backward, SGD with momentum; batch norms on their stored statistics, or the mini-batch's (`own`)."""

    def __init__(self, model, batch, channels_last, own):
        self.model = model.train(own)
        self.x = torch.from_numpy(pattern((batch, 1, 28, 28)))
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
            self.x = self.x.to(memory_format=torch.channels_last)
        self.y = torch.arange(batch) % 10
        self.optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run(self):
        began = time.perf_counter()
        self.optimiser.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimiser.step()
        self.loss = float(loss.detach())
        return time.perf_counter() - began


def alternated(rounds, *sides):
    """Seconds of each side, medians over alternated rounds.

    The threads of both peers go on spinning for a while after a run, at the cost of whoever comes next, and threads
    that slept take a few runs to find their cores: so each turn begins with a pause and three runs that are not
    counted, and is the median of the next three.
    """
    times = [[] for _ in sides]
    for _ in range(rounds):
        for side, list_ in zip(sides, times):
            time.sleep(0.15)
            for _ in range(3):
                side()
            list_.append(statistics.median(side() for _ in range(3)))
    return [statistics.median(t) for t in times]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--binary", default=str(ROOT / "target/release/examples/peer"))
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--rounds", type=int, default=7)
    args.add_argument("--dogs", help="mobilenetv2-dogs-nhwc.onnx, which is not part of the repository")
    args.add_argument("--json")
    args.add_argument("--only", default="")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    ours = Limbeck(args.binary, args.threads)
    rows = []

    def row(name, mine, theirs, peer, difference, flop=None):
        rows.append({
            "name": name, "limbeck_ms": mine * 1e3, "peer_ms": theirs * 1e3, "peer": peer,
            "speed": theirs / mine, "difference": difference,
            "gflops": flop / mine / 1e9 if flop else None,
        })
        print(f"{name:44} {mine*1e3:9.2f} ms  {theirs*1e3:9.2f} ms {peer:24} {theirs/mine:5.2f}x  diff {difference:.1e}", flush=True)

    models = [
        ("efficientnet-lite0", SAMPLES / "efficientnet-lite0/efficientnet-lite0.onnx", (3, 224, 224), (16, 1), 385e6),
        ("fashion-resnet", SAMPLES / "fashion-resnet/fashion-resnet.onnx", (1, 28, 28), (64, 1), 31e6),
    ]
    path = pathlib.Path("/tmp") / "limbeck-peer-encoder.onnx"
    write_encoder(path)
    models.append(("encoder", path, (128, 256), (8, 1), 4 * 128 * (12 * 256 * 256 + 2 * 128 * 256)))
    if args.dogs:
        models.append(("mobilenetv2-dogs", pathlib.Path(args.dogs), (160, 160, 3), (16, 1), None))
    for name, path, sample, batches, macs in models:
        if args.only not in name + " forward":
            continue
        ours.ask("load", name, path, *sample)
        options = ort.SessionOptions()
        options.intra_op_num_threads = args.threads
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        port = session.get_inputs()[0].name
        for batch in batches:
            x = pattern((batch, *sample))

            def theirs():
                began = time.perf_counter()
                session.run(None, {port: x})
                return time.perf_counter() - began

            mine = np.array(ours.ask("output", name, batch)["output"])
            expected = session.run(None, {port: x})[0].flatten()
            difference = float(np.abs(mine - expected).max() / max(1.0, np.abs(expected).max()))
            assert difference < 1e-3, (name, difference)
            a, b = alternated(args.rounds, lambda: ours.ask("forward", name, batch)["seconds"], theirs)
            row(f"{name} forward, batch {batch}", a, b, "onnxruntime " + ort.__version__, difference,
                2 * macs * batch if macs else None)

    import train as sample_training

    for name, make, own in (("fashion-resnet", None, False), ("fashion-resnet", None, True), ("separable", Separable, False)):
        if args.only not in name + " training":
            continue
        path = models[1][1]
        if make:
            torch.manual_seed(1)
            model = make().eval()
            path = pathlib.Path("/tmp") / f"limbeck-peer-{name}.onnx"
            write_onnx(model, path)
        key = name + "-train" + "-own" * own
        words = ("train", key, 64) + ("own",) * own
        ours.ask("load", key, path, 1, 28, 28)
        steps = {}
        for last in (False, True):
            model = make() if make else sample_training.ResNet20()
            load_weights(model, path)
            steps[last] = TorchStep(model, 64, last, own)
        first = ours.ask(*words)["loss"], steps[False].run()
        difference = abs(first[0] - steps[False].loss)
        assert difference < 1e-3, (name, first[0], steps[False].loss)
        mine, nchw, nhwc = alternated(
            args.rounds, lambda: ours.ask(*words)["seconds"], steps[False].run, steps[True].run)
        best = min(nchw, nhwc)
        row(f"{name} training step, {'batch statistics, ' * own}batch 64", mine, best,
            f"torch {torch.__version__} {'nhwc' if nhwc < nchw else 'nchw'}", difference, 6 * 31e6 * 64 if not make else None)
    peak = max(ours.ask("gemm", 1024)["gflops"] for _ in range(5))
    print(f"best matrix product of this machine: {peak:.0f} GFLOP/s")
    for r in rows:
        if r["gflops"]:
            print(f"  {r['name']:42} {r['gflops']:6.0f} GFLOP/s, {r['gflops']/peak:4.0%} of it")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"threads": args.threads, "peak_gflops": peak, "rows": rows}, indent=1))


def write_encoder(path, blocks=4, length=128, width=256, heads=8):
    """Blocks of BERT's encoder over embedded tokens, layer norm and GELU spelled out as exporters did before opset 17 and 20."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    noise = np.random.default_rng(1)
    nodes, weights = [], []

    def weight(array, name):
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(op, *inputs, **attributes):
        out = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [out], name=f"n{len(nodes)}", **attributes))
        return out

    def scalar(value):
        return weight(np.float32(value), f"s{len(weights)}")

    def ints(*values):
        return weight(np.array(values, np.int64), f"i{len(weights)}")

    def linear(x, a, b):
        w = weight((noise.standard_normal((a, b)) / a**0.5).astype(np.float32), f"w{len(weights)}")
        return node("Add", node("MatMul", x, w), weight((noise.standard_normal(b) * 0.1).astype(np.float32), f"b{len(weights)}"))

    def norm(x):
        d = node("Sub", x, node("ReduceMean", x, axes=[-1]))
        variance = node("ReduceMean", node("Pow", d, scalar(2)), axes=[-1])
        y = node("Div", d, node("Sqrt", node("Add", variance, scalar(1e-5))))
        y = node("Mul", y, weight((1 + 0.1 * noise.standard_normal(width)).astype(np.float32), f"g{len(weights)}"))
        return node("Add", y, weight((0.1 * noise.standard_normal(width)).astype(np.float32), f"g{len(weights)}"))

    x = "tokens"
    for _ in range(blocks):
        def head(perm):
            return node("Transpose", node("Reshape", linear(x, width, width), ints(0, 0, heads, width // heads)), perm=perm)
        q, k, v = head([0, 2, 1, 3]), head([0, 2, 3, 1]), head([0, 2, 1, 3])
        scores = node("Div", node("MatMul", q, k), scalar((width / heads) ** 0.5))
        mixed = node("MatMul", node("Softmax", scores, axis=-1), v)
        mixed = node("Reshape", node("Transpose", mixed, perm=[0, 2, 1, 3]), ints(0, 0, width))
        x = norm(node("Add", linear(mixed, width, width), x))
        h = linear(x, width, 4 * width)
        h = node("Mul", node("Mul", h, node("Add", node("Erf", node("Div", h, scalar(2**0.5))), scalar(1))), scalar(0.5))
        x = norm(node("Add", linear(h, 4 * width, width), x))
    port = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", length, width])
    graph = helper.make_graph(nodes, "encoder", [port("tokens")], [port(x)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def named(model):
    """Weights by the names that the exported file has."""
    return {n: p for n, p in model.state_dict().items() if not n.endswith("num_batches_tracked")}


def load_weights(model, path):
    import onnx
    from onnx import numpy_helper

    initialisers = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    state = named(model)
    missing = [n for n in state if n not in initialisers]
    if missing:
        raise SystemExit(f"{path} has no {missing[:3]}; it has {list(initialisers)[:5]}")
    with torch.no_grad():
        for n, p in state.items():
            p.copy_(torch.from_numpy(initialisers[n].copy()).reshape(p.shape))


def write_onnx(model, path):
    """The separable network as ONNX, written by hand: torch's exporter wants packages of its own."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, x = [], [], "image"
    for name, p in named(model).items():
        weights.append(numpy_helper.from_array(p.detach().numpy(), name))
    for i, layer in enumerate(model.features):
        out = f"v{i}"
        if isinstance(layer, nn.Conv2d):
            k, pad = layer.kernel_size, layer.padding
            nodes.append(helper.make_node(
                "Conv", [x, f"features.{i}.weight", f"features.{i}.bias"], [out], name=f"conv{i}",
                kernel_shape=k, strides=layer.stride, pads=pad * 2, group=layer.groups))
        else:
            nodes.append(helper.make_node("Relu", [x], [out], name=f"relu{i}"))
        x = out
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "separable",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


if __name__ == "__main__":
    main()
