//! Attention as PyTorch exports it: heads folded into the batch on the way or an axis of their own, with masks, with an open length. See
//! models/make.py.

use super::*;
use crate::formats::onnx;
use std::path::Path;

/// One encoder layer each: 3 heads of width 4, feed-forward width 10. By name what they differ in: whether the batch or the length comes
/// first; whether attention gives its weights (products of three axes, heads in the batch) or not (of four axes); whether the TorchScript
/// exporter left the batch open (dynamic) or at 2 (fixed), or the newer exporter left it open (dynamo). The length is 5 in all.
const EXPORTED: [&str; 5] = [
    "batch-first-dynamic",
    "length-first-dynamic",
    "length-first-weights-dynamic",
    "batch-first-fixed",
    "batch-first-weights-dynamo",
];

fn exported(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compress/structured/tests/models");
    Model::new(onnx::read(&folder.join(format!("{name}.onnx"))).expect("reads"))
}

/// The same with a padding mask, of which PyTorch makes one for every head; the length is open too where it says so. In `bert` heads are an
/// axis of their own, but for the keys on their way to the product.
const MASKED: [&str; 4] = [
    "batch-first-mask-dynamic",
    "batch-first-mask-dynamo-length",
    "length-first-weights-mask-dynamo-length",
    "bert-dynamo-length",
];

/// Samples and their lengths; some of a sample may be padding.
fn padded(samples: usize, length: usize) -> Tensor {
    let mut x: Vec<f32> = batch(samples, &[length, 4])
        .flatten_all()
        .and_then(|x| x.to_vec1())
        .expect("floats");
    x[(length - 2) * 4..length * 4].fill(0.0);
    Tensor::from_vec(x, (samples, length, 4), &candle_core::Device::Cpu).expect("fits")
}

/// Units of each block, and outputs of a unit.
fn sizes_of(structure: &Structure) -> Vec<(usize, usize)> {
    let blocks = structure.blocks.iter();
    blocks.map(|b| (b.units.len(), b.width)).collect()
}

#[test]
fn heads_go_under_a_mask_and_where_the_length_is_open() {
    for name in MASKED {
        let model = exported(name);
        let bert = name.starts_with("bert");
        let sizes: &[(usize, usize)] = match name.ends_with("length") {
            true => &[(2, 5), (3, 7), (1, 4), (4, 1)],
            false => &[(1, 5), (4, 5)],
        };
        for attention in [Attention::Heads, Attention::Widths] {
            let structure = Structure::with(&model.graph, attention);
            let found = sizes_of(&structure);
            let said = format!(
                "{name}, {attention:?}: {found:?}, {:?}",
                structure.groups.fixed
            );
            let expected: &[(usize, usize)] = match (attention, bert) {
                // Of queries, keys and values in one; of each.
                (Attention::Heads, false) => &[(3, 12), (10, 1)],
                (Attention::Heads, true) => &[(3, 4), (10, 1)],
                // Queries and keys are one, values another.
                (Attention::Widths, false) => &[(4, 9), (10, 1)],
                (Attention::Widths, true) => &[(4, 3), (4, 3), (10, 1)],
            };
            assert_eq!(found, expected, "{said}");
            for &(samples, length) in sizes {
                let removed: usize = (0..4)
                    .map(|seed| {
                        let x = match length {
                            1 => batch(samples, &[1, 4]),
                            _ => padded(samples, length),
                        };
                        equals_the_zeroed_with(attention, &model, &x, 3 + seed, 1e-4)
                    })
                    .sum();
                assert!(removed > 8, "{said}: {removed}");
            }
        }
    }
}

#[test]
fn heads_folded_into_the_batch_go_and_so_does_the_width_between() {
    for name in EXPORTED {
        let model = exported(name);
        let open = !name.ends_with("fixed");
        // Of queries, keys and values alike, a head has 4 outputs and a place within heads 3. Where a batch of 2 is part of the axis of
        // heads, that is the longer one and goes either way.
        let places = if open { (4, 9) } else { (3, 12) };
        for (attention, units) in [(Attention::Heads, (3, 12)), (Attention::Widths, places)] {
            let structure = Structure::with(&model.graph, attention);
            let found = sizes_of(&structure);
            let fixed = &structure.groups.fixed;
            let said = format!("{name}, {attention:?}: {found:?}, {fixed:?}");
            assert_eq!(found, [units, (10, 1)], "{said}");
            // Another batch than the one that was exported, where there may be.
            let samples = if open { 5 } else { 2 };
            let removed: usize = (0..6)
                .map(|seed| {
                    let x = batch(samples, &[5, 4]);
                    equals_the_zeroed_with(attention, &model, &x, 3 + seed, 1e-4)
                })
                .sum();
            assert!(removed > 20, "{said}: {removed}");
        }
    }
}

/// Queries, keys and values in one: (12, 36) of 3 heads. Two of them go with 8 of the 12 inputs of what projects them back.
#[test]
fn the_pass_takes_whole_heads_and_the_width_between() {
    for name in EXPORTED {
        let model = exported(name);
        let layers = model.graph.layers();
        let pass = PruneChannels {
            settings: ChannelSettings {
                attention: Attention::Heads,
                amount: Amount::Ratios,
                ..ChannelSettings::default()
            },
            layers: (layers.iter())
                .map(|layer| (layer.id.clone(), Some(Ratio(0.6))))
                .collect(),
        };
        let (pruned, account) = with_context(|c| pass.apply(model.clone(), c)).expect("applies");
        let shapes = |graph: &Graph| -> Vec<Vec<usize>> {
            let weights = graph.layers().into_iter().map(|l| l.weight);
            weights
                .filter_map(|w| graph.value(w).known_shape())
                .collect()
        };
        let before = [
            vec![4, 12],
            vec![12, 36],
            vec![12, 12],
            vec![12, 10],
            vec![10, 12],
            vec![3, 12],
        ];
        assert_eq!(shapes(&model.graph), before, "{name}");
        let after = [
            vec![4, 12],
            vec![12, 12],
            vec![12, 4],
            vec![12, 4],
            vec![4, 12],
            vec![3, 12],
        ];
        assert_eq!(shapes(&pruned.graph), after, "{name}: {account:?}");
    }
}
