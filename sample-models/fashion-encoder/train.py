#!/usr/bin/env python3
"""Train the bundled encoder sample: a BERT-type transformer of two layers on Fashion-MNIST.

An image of 28×28 is 49 tokens, one a patch of 4×4, with learned positions and a [CLS] token in front (Dosovitskiy et al. 2021,
layers in BERT's order: normalisation behind each residual sum, GELU). Writes `fashion-encoder.onnx`, with the layer names of the
PyTorch modules and the operators of PyTorch's own export (LayerNormalization, Softmax, Erf). Deterministic for one PyTorch build
on one kind of machine (seed 20).

    pip install torch==2.15.0 numpy onnx==1.23.2
    python train.py --data DIR [--epochs 12] [--out fashion-encoder.onnx]

DIR holds the four gzip-compressed IDX files of Fashion-MNIST (Debian package `dataset-fashion-mnist`).
"""
import argparse
import gzip
import pathlib
import struct
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

HERE = pathlib.Path(__file__).resolve().parent
WIDTH, HEADS, INNER, PATCH, SIDE = 64, 4, 192, 4, 28
TOKENS = (SIDE // PATCH) ** 2


def read_idx(path):
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    dims = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(dims)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.dense = nn.Linear(WIDTH, WIDTH)

    def heads(self, x):
        n, t, _ = x.shape
        return x.reshape(n, t, HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        scores = q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5
        mixed = (F.softmax(scores, -1) @ v).transpose(1, 2)
        n, t = x.shape[:2]
        return self.dense(mixed.reshape(n, t, WIDTH))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.intermediate = nn.Linear(WIDTH, INNER)
        self.output = nn.Linear(INNER, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x))))


class Encoder(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.patches = nn.Linear(PATCH * PATCH, WIDTH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH) * 0.02)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, x):
        n, side = x.shape[0], SIDE // PATCH
        x = x.reshape(n, side, PATCH, side, PATCH).permute(0, 1, 3, 2, 4).reshape(n, TOKENS, PATCH * PATCH)
        x = torch.cat([self.cls.expand(n, 1, WIDTH), self.patches(x)], 1) + self.positions
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x[:, 0])


def augment(x, generator):
    """Horizontal flip and a shift of up to 2 pixels, drawn per image."""
    n = x.shape[0]
    flip = torch.rand(n, generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    dx, dy = torch.randint(0, 5, (2, n), generator=generator)
    rows = torch.arange(SIDE).view(1, SIDE, 1) + dy.view(n, 1, 1)
    columns = torch.arange(SIDE).view(1, 1, SIDE) + dx.view(n, 1, 1)
    return F.pad(x, (2, 2, 2, 2))[torch.arange(n).view(n, 1, 1), 0, rows, columns].unsqueeze(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "fashion-encoder.onnx")
    args = parser.parse_args()
    torch.manual_seed(20)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(20)

    def load(kind):
        images = torch.tensor(read_idx(args.data / f"{kind}-images-idx3-ubyte.gz")).float().div(255).unsqueeze(1)
        return images, torch.tensor(read_idx(args.data / f"{kind}-labels-idx1-ubyte.gz")).long()

    (x, y), net, batch = load("train"), Encoder(), 256
    decay = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    steps = args.epochs * (len(x) // batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    for epoch in range(args.epochs):
        started, total = time.time(), 0.0
        order = torch.randperm(len(x), generator=generator)
        for i in range(len(x) // batch):
            chosen = order[i * batch : (i + 1) * batch]
            loss = F.cross_entropy(net(augment(x[chosen], generator)), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            rate.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / (len(x) // batch):.4f}, {time.time() - started:.0f} s", flush=True)
    net.eval()
    x, y = load("t10k")
    with torch.no_grad():
        right = sum((net(x[i : i + 500]).argmax(1) == y[i : i + 500]).sum().item() for i in range(0, len(x), 500))
    print(f"holdout top-1 {right / len(x):.2%} (n {len(x):,}, fp32)")
    torch.onnx.export(
        net, torch.zeros(2, 1, SIDE, SIDE), str(args.out), input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}}, opset_version=17, dynamo=False,
    )


if __name__ == "__main__":
    main()
