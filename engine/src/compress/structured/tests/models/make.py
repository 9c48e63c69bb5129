"""Makes the encoders that exported.rs prunes: python make.py (torch 2.x, onnx, onnxscript)."""

import itertools
import warnings

import onnx
import torch
from torch import nn

warnings.filterwarnings("ignore")
# The fast path is one operator, which exporters do not know.
torch.backends.mha.set_fastpath_enabled(False)

WIDTH, HEADS, FEED_FORWARD = 12, 3, 10


class Net(nn.Module):
    """(N, L, 4) to (N, 3): one encoder layer, by itself or by the parts of it where attention also gives its weights."""

    def __init__(self, first, weights, mask):
        super().__init__()
        self.first, self.weights, self.mask = first, weights, mask
        self.embed = nn.Linear(4, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, dropout=0.0, batch_first=first)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        padding = x.abs().sum(-1) == 0 if self.mask else None
        x = self.embed(x)
        if not self.first:
            x = x.transpose(0, 1)
        if self.weights:
            layer = self.layer
            attended, _ = layer.self_attn(x, x, x, need_weights=True, key_padding_mask=padding)
            x = layer.norm1(x + attended)
            x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
        else:
            x = self.layer(x, src_key_padding_mask=padding)
        return self.head(x.mean(1 if self.first else 0))


class Bert(nn.Module):
    """(N, L, 4) to (N, 3): one encoder layer as BERT has it, heads an axis of their own, attention by PyTorch's one function for it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.query, self.key, self.value, self.back = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, FEED_FORWARD), nn.Linear(FEED_FORWARD, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        padding = (x.abs().sum(-1) == 0)[:, None, None, :].to(x.dtype) * -1e4
        x = self.embed(x)
        n, length, _ = x.shape
        q, k, v = (p(x).view(n, length, HEADS, WIDTH // HEADS).transpose(1, 2) for p in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=padding)
        x = self.norm1(x + self.back(y.transpose(1, 2).reshape(n, length, WIDTH)))
        x = self.norm2(x + self.narrow(nn.functional.gelu(self.wide(x))))
        return self.head(x.mean(1))


def export(net, name, how):
    torch.manual_seed(1)
    net = net().eval()
    with torch.no_grad():
        # PyTorch starts biases at zero: nothing would show that they are cut.
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(2, 5, 4)
    name = f"{name}-{how}.onnx"
    names = {"input_names": ["x"], "output_names": ["y"]}
    if how.startswith("dynamo"):
        axes = {0: torch.export.Dim("N", min=1, max=64)}
        if how.endswith("length"):
            axes[1] = torch.export.Dim("L", min=2, max=64)
        torch.onnx.export(
            net, (x,), name, dynamo=True, opset_version=18, dynamic_shapes=(axes,), external_data=False, verbose=False, **names
        )
    else:
        axes = {"dynamic": {0: "N"}, "dynamic-length": {0: "N", 1: "L"}}.get(how)
        torch.onnx.export(net, (x,), name, dynamo=False, opset_version=17, dynamic_axes=axes and {"x": axes}, **names)
    model = onnx.load(name)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # Where the exporter stood while it wrote a node: of no use here.
    onnx.save(model, name)


if __name__ == "__main__":
    kinds = ("dynamic", "fixed", "dynamo", "dynamic-length", "dynamo-length")
    for first, weights, mask, how in itertools.product((True, False), (True, False), (True, False), kinds):
        name = f"{'batch' if first else 'length'}-first{'-weights' if weights else ''}{'-mask' if mask else ''}"
        export(lambda: Net(first, weights, mask), name, how)
    for how in kinds:
        export(Bert, "bert", how)
