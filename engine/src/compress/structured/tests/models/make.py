"""Makes the encoders with folded heads that exported.rs prunes: python make.py (torch 2.x, onnx, onnxscript)."""

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
    """(N, 5, 4) to (N, 3): one encoder layer, by itself or by the parts of it where attention also gives its weights."""

    def __init__(self, first, weights):
        super().__init__()
        self.first, self.weights = first, weights
        self.embed = nn.Linear(4, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, dropout=0.0, batch_first=first)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.embed(x)
        if not self.first:
            x = x.transpose(0, 1)
        if self.weights:
            layer = self.layer
            attended, _ = layer.self_attn(x, x, x, need_weights=True)
            x = layer.norm1(x + attended)
            x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
        else:
            x = self.layer(x)
        return self.head(x.mean(1 if self.first else 0))


def export(first, weights, how):
    torch.manual_seed(1)
    net = Net(first, weights).eval()
    with torch.no_grad():
        # PyTorch starts biases at zero: nothing would show that they are cut.
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(2, 5, 4)
    name = f"{'batch' if first else 'length'}-first{'-weights' if weights else ''}-{how}.onnx"
    names = {"input_names": ["x"], "output_names": ["y"]}
    if how == "dynamo":
        batch = torch.export.Dim("N", min=1, max=64)
        torch.onnx.export(
            net, (x,), name, dynamo=True, opset_version=18, dynamic_shapes=({0: batch},), external_data=False, verbose=False, **names
        )
    else:
        axes = {"x": {0: "N"}} if how == "dynamic" else None
        torch.onnx.export(net, (x,), name, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    model = onnx.load(name)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # Where the exporter stood while it wrote a node: of no use here.
    onnx.save(model, name)


if __name__ == "__main__":
    for first, weights, how in itertools.product((True, False), (True, False), ("dynamic", "fixed", "dynamo")):
        export(first, weights, how)
