#!/usr/bin/env python3
"""Train the bundled sample: ResNet-20 (He et al. 2016, CIFAR form) on Fashion-MNIST.

Writes `fashion-resnet.onnx` beside this script, batch norms not folded, with the layer names of the
PyTorch modules. Deterministic for one PyTorch build on one kind of machine (seed 20).

    pip install torch==2.* numpy onnx
    python train.py --data DIR [--epochs 18] [--out fashion-resnet.onnx]

DIR holds the four gzip-compressed IDX files of Fashion-MNIST (Debian package `dataset-fashion-mnist`).
"""
import argparse
import gzip
import pathlib
import struct
import time

import numpy as np
import onnx
import torch
import torch.nn as nn
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent


def read_idx(path):
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    dims = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(dims)


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.down = self.down_bn = None
        if stride != 1 or cin != cout:
            self.down = nn.Conv2d(cin, cout, 1, stride, bias=False)
            self.down_bn = nn.BatchNorm2d(cout)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        skip = x if self.down is None else self.down_bn(self.down(x))
        return F.relu(y + skip)


class ResNet20(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        cin = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for i in range(3):
                blocks.append(Block(cin, width, 2 if stage > 1 and i == 0 else 1))
                cin = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def augment(x, generator):
    """Horizontal flip and a shift of up to 2 pixels, drawn per image."""
    n = x.shape[0]
    flip = torch.rand(n, generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    dx, dy = torch.randint(0, 5, (2, n), generator=generator)
    padded = F.pad(x, (2, 2, 2, 2))
    rows = (torch.arange(28)[None] + dy[:, None])[:, :, None].expand(n, 28, 28)
    cols = (torch.arange(28)[None] + dx[:, None])[:, None, :].expand(n, 28, 28)
    return padded[torch.arange(n)[:, None, None], 0, rows, cols].unsqueeze(1)


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        hits = sum(
            (model(images[i : i + 500].contiguous(memory_format=torch.channels_last)).argmax(1) == labels[i : i + 500]).sum().item()
            for i in range(0, len(images), 500)
        )
    return 100.0 * hits / len(images)


def export(model, path):
    """Write the graph by hand, so that every name is the module's own and batch norms stay apart."""
    nodes, weights = [], []

    def add_weight(name, tensor):
        weights.append(numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        return name

    def conv(name, module, x):
        k, s, p = module.kernel_size, module.stride, module.padding
        nodes.append(helper.make_node("Conv", [x, add_weight(f"{name}.weight", module.weight)], [f"{name}.out"], name=name,
                                      kernel_shape=k, strides=s, pads=[*p, *p], dilations=[1, 1], group=1))
        return f"{name}.out"

    def batch_norm(name, module, x):
        params = [add_weight(f"{name}.{k}", getattr(module, k)) for k in ("weight", "bias", "running_mean", "running_var")]
        nodes.append(helper.make_node("BatchNormalization", [x, *params], [f"{name}.out"], name=name, epsilon=module.eps))
        return f"{name}.out"

    def simple(op, name, inputs, **attributes):
        nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    x = simple("Relu", "relu", [batch_norm("bn1", model.bn1, conv("conv1", model.conv1, "image"))])
    for stage in (1, 2, 3):
        for i, block in enumerate(getattr(model, f"layer{stage}")):
            prefix = f"layer{stage}.{i}"
            y = batch_norm(f"{prefix}.bn1", block.bn1, conv(f"{prefix}.conv1", block.conv1, x))
            y = simple("Relu", f"{prefix}.relu1", [y])
            y = batch_norm(f"{prefix}.bn2", block.bn2, conv(f"{prefix}.conv2", block.conv2, y))
            skip = x
            if block.down is not None:
                skip = batch_norm(f"{prefix}.down_bn", block.down_bn, conv(f"{prefix}.down", block.down, x))
            x = simple("Relu", f"{prefix}.relu2", [simple("Add", f"{prefix}.add", [y, skip])])
    x = simple("Flatten", "flatten", [simple("GlobalAveragePool", "pool", [x])], axis=1)
    nodes.append(helper.make_node("Gemm", [x, add_weight("fc.weight", model.fc.weight), add_weight("fc.bias", model.fc.bias)],
                                  ["logits"], name="fc", transB=1))
    graph = helper.make_graph(
        nodes, "fashion-resnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
                              producer_name="limbeck sample-models/fashion-resnet/train.py")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.4)
    parser.add_argument("--bf16", action="store_true", help="mixed precision; quick on processors with AMX")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "fashion-resnet.onnx")
    args = parser.parse_args()
    torch.manual_seed(20)
    generator = torch.Generator().manual_seed(20)
    images = torch.from_numpy(read_idx(args.data / "train-images-idx3-ubyte.gz").astype(np.float32) / 255).unsqueeze(1)
    labels = torch.from_numpy(read_idx(args.data / "train-labels-idx1-ubyte.gz").astype(np.int64))
    test_images = torch.from_numpy(read_idx(args.data / "t10k-images-idx3-ubyte.gz").astype(np.float32) / 255).unsqueeze(1)
    test_labels = torch.from_numpy(read_idx(args.data / "t10k-labels-idx1-ubyte.gz").astype(np.int64))

    model = ResNet20().to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in model.parameters()):,} trainable parameters", flush=True)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.SGD([{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}],
                                lr=args.rate, momentum=0.9, nesterov=True)
    steps = args.epochs * (len(images) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.rate, total_steps=steps, pct_start=0.2)
    for epoch in range(args.epochs):
        model.train()
        start, total = time.time(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for i in range(0, len(images) - args.batch + 1, args.batch):
            pick = order[i : i + args.batch]
            x = augment(images[pick], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                loss = F.cross_entropy(model(x).float(), labels[pick], label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        # The test images judge the finished model only; progress is shown on the training loss.
        print(f"epoch {epoch + 1}/{args.epochs} loss {total / (len(images) // args.batch):.4f} {time.time() - start:.0f} s", flush=True)
        torch.save(model.state_dict(), args.out.with_suffix(".pt"))
    print(f"holdout top-1 {accuracy(model, test_images, test_labels):.2f} % (n 10,000, fp32)", flush=True)
    model.eval()
    export(model.float(), args.out)
    args.out.with_suffix(".pt").unlink()


if __name__ == "__main__":
    main()
