//! A model with its weights in a file beside it, as large as one likes: 3×3 convolutions of 256 channels, each with a batch norm
//! and a ReLU, 2.36 MB a layer. The data file is sparse where nothing was put into it.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

pub const CHANNELS: usize = 256;
/// Bytes of a layer's weight.
pub const LAYER_BYTES: u64 = (CHANNELS * CHANNELS * 9 * 4) as u64;

/// Writes `model.onnx` and `model.data` into a folder. `weight` gives a layer's elements; `None` leaves zeros.
pub fn write(
    folder: &Path,
    layers: usize,
    weight: impl Fn(usize) -> Option<Vec<f32>>,
) -> [PathBuf; 2] {
    let [model, data] = ["model.onnx", "model.data"].map(|name| folder.join(name));
    let mut file = File::create(&data).expect("the folder can be written");
    file.set_len(layers as u64 * LAYER_BYTES).expect("sparse");
    for layer in 0..layers {
        if let Some(values) = weight(layer) {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(bytes.len() as u64, LAYER_BYTES);
            file.seek(SeekFrom::Start(layer as u64 * LAYER_BYTES))
                .and_then(|_| file.write_all(&bytes))
                .expect("room on the disk");
        }
    }
    std::fs::write(&model, proto(layers)).expect("the folder can be written");
    [model, data]
}

/// The `ModelProto`; field numbers are those of onnx.proto.
fn proto(layers: usize) -> Vec<u8> {
    let mut graph = Vec::new();
    let mut add = |tag, message: Vec<u8>| graph.extend(field(tag, &message));
    for layer in 0..layers {
        let before = match layer {
            0 => "image".to_owned(),
            l => format!("relu{}", l - 1),
        };
        let [conv, norm, relu, weight] =
            ["conv", "norm", "relu", "weight"].map(|name| format!("{name}{layer}"));
        let ints = |name: &str, values: &[u64]| {
            let mut a = [field(1, name.as_bytes()), number(20, 7)].concat();
            for value in values {
                a.extend(number(8, *value));
            }
            a
        };
        let windows = [ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4])];
        add(1, node("Conv", &conv, &[&before, &weight], &windows));
        let statistics =
            ["scale", "shift", "mean", "variance"].map(|name| format!("{name}{layer}"));
        let mut inputs = vec![conv.as_str()];
        inputs.extend(statistics.iter().map(String::as_str));
        add(1, node("BatchNormalization", &norm, &inputs, &[]));
        add(1, node("Relu", &relu, &[&norm], &[]));
        let c = CHANNELS as u64;
        let mut external = tensor(&weight, &[c, c, 3, 3]);
        let offset = (layer as u64 * LAYER_BYTES).to_string();
        for (key, value) in [
            ("location", "model.data"),
            ("offset", &offset),
            ("length", &LAYER_BYTES.to_string()),
        ] {
            let entry = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
            external.extend(field(13, &entry));
        }
        external.extend(number(14, 1));
        add(5, external);
        for (name, value) in statistics.iter().zip([1.5f32, 0.25, 0.0, 1.0]) {
            let mut t = tensor(name, &[c]);
            t.extend(field(9, &value.to_le_bytes().repeat(CHANNELS)));
            add(5, t);
        }
    }
    let image = |name: &str| {
        let dims = [
            field(2, b"N"),
            number(1, CHANNELS as u64),
            number(1, 14),
            number(1, 14),
        ];
        let shape: Vec<u8> = dims.iter().flat_map(|dim| field(1, dim)).collect();
        let kind = field(1, &[number(1, 1), field(2, &shape)].concat());
        [field(1, name.as_bytes()), field(2, &kind)].concat()
    };
    add(2, b"big".to_vec());
    add(11, image("image"));
    add(12, image(&format!("relu{}", layers - 1)));
    [number(1, 8), field(8, &number(2, 17)), field(7, &graph)].concat()
}

fn node(op: &str, name: &str, inputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut n: Vec<u8> = inputs.iter().flat_map(|i| field(1, i.as_bytes())).collect();
    // A node is called as what it computes.
    for tag in [2, 3] {
        n.extend(field(tag, name.as_bytes()));
    }
    n.extend(field(4, op.as_bytes()));
    n.extend(attributes.iter().flat_map(|a| field(5, a)));
    n
}

/// A float tensor without its data.
fn tensor(name: &str, shape: &[u64]) -> Vec<u8> {
    let mut t: Vec<u8> = shape.iter().flat_map(|d| number(1, *d)).collect();
    t.extend(number(2, 1));
    t.extend(field(8, name.as_bytes()));
    t
}

fn field(tag: u64, bytes: &[u8]) -> Vec<u8> {
    [
        varint(tag << 3 | 2),
        varint(bytes.len() as u64),
        bytes.to_vec(),
    ]
    .concat()
}

fn number(tag: u64, value: u64) -> Vec<u8> {
    [varint(tag << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
