#!/usr/bin/env python3
"""Runs every node case of the ONNX standard on the engine and keeps the tables of docs/operators.md true.

Needs onnx 1.23.2 and numpy, and the built example `onnx_node_cases`. A case whose operators are all claimed must run
and agree, or the exact reason why it is not claimed stands in the document. Exits 1 on a failed case, or when the document
is not what this run finds; `--update` writes it instead.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnx.backend.test.case.node
from onnx import TensorProto, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "operators.md"
BEGIN, END = "<!-- begin: written by .ci/onnx_node_cases.py -->", "<!-- end -->"

# ONNX element types and what the engine calls them.
ELEMENTS = {
    TensorProto.FLOAT: "F32", TensorProto.FLOAT16: "F16", TensorProto.BFLOAT16: "BF16", TensorProto.DOUBLE: "F64",
    TensorProto.INT4: "I4", TensorProto.UINT4: "U4", TensorProto.INT8: "I8", TensorProto.UINT8: "U8",
    TensorProto.INT16: "I16", TensorProto.UINT16: "U16", TensorProto.INT32: "I32", TensorProto.UINT32: "U32",
    TensorProto.INT64: "I64", TensorProto.UINT64: "U64", TensorProto.BOOL: "Bool",
}
CODES = {name: code for code, name in ELEMENTS.items()}


class NotClaimed(Exception):
    """The case asks for something that no operator here claims; the message is the group it is counted under."""


def type_name(code):
    return TensorProto.DataType.Name(code).lower()


def as_proto(value):
    """A case's value as a TensorProto with raw data."""
    if isinstance(value, TensorProto):
        code = value.data_type
        if code not in ELEMENTS:
            raise NotClaimed(f"element type {type_name(code)}")
        return value if value.HasField("raw_data") else numpy_helper.from_array(numpy_helper.to_array(value))
    if value is None or isinstance(value, list | tuple | dict):
        raise NotClaimed("sequence or optional types")
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        raise NotClaimed("element type string")
    proto = numpy_helper.from_array(array)
    if proto.data_type not in ELEMENTS:
        raise NotClaimed(f"element type {type_name(proto.data_type)}")
    return proto


def operators(graph):
    """(domain, type) of every node, sub-graphs included."""
    for node in graph.node:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)
            for g in attribute.graphs:
                yield from operators(g)


def dump(case, where, name):
    """Writes model and inputs; gives the entry for cases.json and the expected outputs."""
    if len(case.data_sets) != 1:
        raise NotClaimed(f"{len(case.data_sets)} data sets")
    for value in list(case.model.graph.input) + list(case.model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise NotClaimed("sequence or optional types")
        code = value.type.tensor_type.elem_type
        if code not in ELEMENTS:
            raise NotClaimed(f"element type {type_name(code)}")
    inputs, outputs = case.data_sets[0]
    expected = [as_proto(o) for o in outputs]
    stored = []
    # An absent optional input has no graph input and no value.
    for i, value in enumerate(inputs):
        proto = as_proto(value)
        file = f"{name}.in{i}"
        (where / file).write_bytes(proto.raw_data)
        stored.append({"element": ELEMENTS[proto.data_type], "shape": list(proto.dims), "file": file})
    (where / f"{name}.onnx").write_bytes(case.model.SerializeToString())
    return {"name": name, "model": f"{name}.onnx", "inputs": stored}, expected


def difference(case, got, expected, where):
    """What is wrong with the outputs, or None."""
    if len(got) != len(expected):
        return f"{len(got)} outputs, expected {len(expected)}"
    for i, (g, want) in enumerate(zip(got, expected)):
        if CODES[g["element"]] != want.data_type:
            return f"output {i} is {g['element']}, expected {ELEMENTS[want.data_type]}"
        if g["shape"] != list(want.dims):
            return f"output {i} has shape {g['shape']}, expected {list(want.dims)}"
        proto = TensorProto(data_type=want.data_type, dims=want.dims, raw_data=(where / g["file"]).read_bytes())
        a, b = numpy_helper.to_array(proto), numpy_helper.to_array(want)
        if want.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
            a, b = a.astype(np.float64), b.astype(np.float64)
            same = np.isclose(a, b, rtol=case.rtol, atol=case.atol, equal_nan=True)
        else:
            same = a.astype(np.int64) == b.astype(np.int64)
        if not np.all(same):
            at = np.argwhere(~same)[0]
            return f"output {i}: {int((~same).sum())} of {same.size} differ, first at {at.tolist()}: {a[tuple(at)]}, expected {b[tuple(at)]}"
    return None


def binary():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "debug" / "examples" / "onnx_node_cases"


def run_engine(*args):
    return json.loads(subprocess.run([binary(), *args], check=True, stdout=subprocess.PIPE).stdout)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(" --- " for _ in head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in r) + " |" for r in rows])


def document(claims, total, passed, by_operator, unclaimed, reasons):
    missing = sum(unclaimed.values()) + sum(len(v) for v in reasons.values())
    part = [
        BEGIN,
        f"Of the {total} node cases of `onnx` {onnx.__version__}, **{passed} are claimed and pass, 0 fail**; {missing} are not claimed:"
        f" {sum(unclaimed.values())} use an operator outside the list, {sum(len(v) for v in reasons.values())} a form or type outside it.",
        "",
        "## Claimed operators",
        "",
        "“Cases” counts the passing cases whose model holds the operator. “Float types” are float16, bfloat16, float32 and float64.",
        "",
        table(
            ["operator", "cases", "gradient", "restrictions"],
            [
                (c["operator"], by_operator[c["operator"]], "yes" if c["differentiable"] else "", c["restriction"])
                for c in claims
            ],
        ),
        "",
        "## Cases not claimed: forms and types",
        "",
        "Every operator of these cases is claimed; this is why the case is not.",
        "",
        table(
            ["reason", "cases", "which"],
            [(reason, len(names), ", ".join(f"`{n}`" for n in sorted(names))) for reason, names in sorted(reasons.items())],
        ),
        "",
        "## Cases not claimed: operators",
        "",
        "A case is counted under the first operator outside the list that it holds.",
        "",
        table(["operator", "cases"], sorted(unclaimed.items())),
        END,
    ]
    return "\n".join(part)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write docs/operators.md instead of checking it")
    parser.add_argument("--keep", type=pathlib.Path, help="leave the cases in this directory")
    parser.add_argument("--verbose", action="store_true", help="list the cases that are not claimed")
    options = parser.parse_args()
    np.seterr(all="ignore")
    claims = run_engine("--claims")
    claimed = {c["operator"] for c in claims}
    cases = onnx.backend.test.case.node.collect_testcases(None)
    unclaimed, reasons = collections.Counter(), collections.defaultdict(list)
    by_operator, failed, passed = collections.Counter(), {}, 0
    with tempfile.TemporaryDirectory() as temporary:
        where = options.keep or pathlib.Path(temporary)
        where.mkdir(parents=True, exist_ok=True)
        entries, expectations = [], {}
        for case in cases:
            used = list(operators(case.model.graph))
            name = case.name
            outside = [f"{d}.{t}" if d else t for d, t in used if d or t not in claimed]
            if outside:
                unclaimed[outside[0]] += 1
                continue
            try:
                entry, expected = dump(case, where, name)
            except NotClaimed as e:
                reasons[str(e)].append(name)
                continue
            if name in expectations:
                sys.exit(f"two cases are called {name}")
            entries.append(entry)
            expectations[name] = (case, expected, {t for _, t in used})
        (where / "cases.json").write_text(json.dumps(entries))
        for result in run_engine(where)["cases"]:
            case, expected, used = expectations[result["name"]]
            if result["verdict"] == "refused":
                reasons["; ".join(sorted(set(result["reasons"])))].append(result["name"])
            elif result["verdict"] == "failed":
                failed[result["name"]] = result["error"]
            elif wrong := difference(case, result["outputs"], expected, where):
                failed[result["name"]] = wrong
            else:
                passed += 1
                by_operator.update(used)
    print(f"{len(cases)} cases: {passed} passed, {len(failed)} failed, {sum(unclaimed.values())} hold an operator that is not claimed, "
          f"{sum(map(len, reasons.values()))} a form or type that is not claimed")
    for reason, names in sorted(reasons.items()):
        print(f"  not claimed: {reason}: {len(names)}" + (f" ({', '.join(names)})" if options.verbose else ""))
    for name, wrong in sorted(failed.items()):
        print(f"  FAILED {name}: {wrong}")
    if failed:
        sys.exit(1)
    text = document(claims, len(cases), passed, by_operator, unclaimed, reasons)
    old = DOCUMENT.read_text()
    head, tail = old.split(BEGIN)[0], old.split(END)[-1]
    new = head + text + tail
    if options.update:
        DOCUMENT.write_text(new)
    elif new != old:
        sys.exit("docs/operators.md is not what this run found: run .ci/onnx_node_cases.py --update and look at the difference")


if __name__ == "__main__":
    main()
