#!/usr/bin/env python3
"""Write the labelled data of the sample: 20,000 of Fashion-MNIST's training images and all its test images.

    python subset.py --data DIR [--out DIR]

DIR holds the four gzip-compressed IDX files of Fashion-MNIST (Debian package `dataset-fashion-mnist`). The choice is
fixed: rows 0..60,000 shuffled by Python's own generator (seed 20), the first 20,000 in that order. Gzip is written without a
time stamp, so the same Python and zlib give the same bytes; `SHA256SUMS` holds them.
"""
import argparse
import gzip
import pathlib
import random
import struct

HERE = pathlib.Path(__file__).resolve().parent
COUNT = 20_000


def read(path):
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    dims = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return dims, raw[4 + 4 * rank :]


def write(path, dims, body):
    raw = bytes([0, 0, 8, len(dims)]) + struct.pack(f">{len(dims)}I", *dims) + body
    path.write_bytes(gzip.compress(raw, 9, mtime=0))
    print(f"{path.name}: {dims}, {path.stat().st_size:,} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    rows = list(range(60_000))
    random.Random(20).shuffle(rows)
    rows = rows[:COUNT]
    for kind, rank, size in (("images", 3, 28 * 28), ("labels", 1, 1)):
        name = f"{kind}-idx{rank}-ubyte.gz"
        dims, body = read(args.data / f"train-{name}")
        assert dims[0] == 60_000, dims
        chosen = b"".join(body[row * size : (row + 1) * size] for row in rows)
        write(args.out / f"train-20k-{name}", (COUNT, *dims[1:]), chosen)
        write(args.out / f"t10k-{name}", *read(args.data / f"t10k-{name}"))


if __name__ == "__main__":
    main()
