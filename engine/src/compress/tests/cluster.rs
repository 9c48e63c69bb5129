use super::*;
use crate::{
    formats::onnx,
    graph::{Op, TensorData, ValueId},
    measure::{coded_bytes, entropy_bits, sizes},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// One convolution and a product over `weights`.
fn network(weights: &[f32]) -> Model {
    let mut net = Net::new(1, &[2, 6, 6]);
    let x = net.conv("conv", ValueId(0), [8, 2, 3, 3], 1, true);
    let x = net.relu("relu", x);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let shape = [8, weights.len() / 8];
    let weight = net
        .graph
        .add_constant("product.weight", TensorData::from_f32(&shape, weights));
    let x = net.node("product", Op::MatMul, &[x, weight]);
    let mut model = net.finish(&[x]);
    model.graph.infer_shapes();
    model
}

fn share(model: Model, values: usize, codebooks: Codebooks) -> (Model, Account) {
    let layers = model.graph.layers().into_iter();
    let pass = Cluster {
        codebooks,
        layers: layers.map(|l| (l.id, values)).collect(),
    };
    apply(&pass, model)
}

fn only_product(values: usize, codebooks: Codebooks) -> Cluster {
    Cluster {
        codebooks,
        layers: BTreeMap::from([(id("product"), values)]),
    }
}

/// What a layer's weight is computed as.
fn computed(graph: &Graph, layer: &str) -> Vec<f32> {
    let mut graph = graph.clone();
    let node = graph.node(graph.find_node(layer).expect("a layer"));
    graph.outputs = vec![node.inputs[1].expect("a weight")];
    let shape = graph.value(ValueId(0)).shape.clone().expect("known");
    let sample: Vec<usize> = shape[1..].iter().filter_map(|d| d.known()).collect();
    run_on(&graph, &batch(1, &sample))
}

fn words<'a>(account: &'a Account, layer: &str) -> &'a str {
    match outcome(account, layer) {
        Outcome::Done(words) => words,
        Outcome::NotDone(reason) => panic!("{layer} was left alone: {reason}"),
    }
}

/// Looks at those weights that share one codebook.
fn check_list(
    weights: &[f32],
    found: &[f32],
    values: usize,
    of: impl Fn(usize) -> bool,
) -> Result<(), TestCaseError> {
    let pairs = || {
        let pairs = weights.iter().zip(found).enumerate();
        pairs.filter(|(i, _)| of(*i)).map(|(_, (w, v))| (*w, *v))
    };
    let distinct: BTreeSet<u32> = pairs().map(|(_, v)| v.to_bits()).collect();
    let own: BTreeSet<u32> = pairs().map(|(w, _)| w.to_bits()).collect();
    prop_assert!(distinct.len() <= values);
    // Of as many as it may have, few are left without a weight.
    prop_assert!(
        distinct.len() * 10 >= values.min(own.len()) * 7,
        "{} of {values}",
        distinct.len()
    );
    let list: Vec<f32> = distinct
        .iter()
        .map(|bits| f32::from_bits(*bits))
        .filter(|v| *v != 0.0)
        .collect();
    let mut sums: BTreeMap<u32, (f64, usize)> = BTreeMap::new();
    for (w, v) in pairs() {
        prop_assert_eq!(w == 0.0, v == 0.0);
        if w != 0.0 {
            let least = list
                .iter()
                .map(|l| (l - w).abs())
                .fold(f32::INFINITY, f32::min);
            prop_assert!((v - w).abs() <= least + 1e-6);
            let sum = sums.entry(v.to_bits()).or_default();
            *sum = (sum.0 + f64::from(w), sum.1 + 1);
        }
    }
    for (bits, (sum, n)) in sums {
        let mean = sum / n as f64;
        prop_assert!(
            (mean - f64::from(f32::from_bits(bits))).abs() < 1e-5,
            "{mean}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Zeros stay zero and nothing else becomes it; there are no more values than asked for; every weight has the value nearest to it; and no
    /// value could be moved to lower the error (the mean of its weights).
    #[test]
    fn weights_share_their_nearest_mean(seed: u64, values in 2_usize..=200, zeros in 0_usize..3, by_channel: bool) {
        let mut net = Net::new(seed, &[1]);
        let columns = if by_channel { 3 } else { 300 };
        let mut weights = net.floats(8 * 300, -1.0, 1.0);
        let every = [usize::MAX, 2, 17][zeros];
        weights.iter_mut().step_by(every).skip(usize::from(zeros == 0)).for_each(|w| *w = 0.0);
        // Per channel: 8 × 300 as 800 × 3, a MatMul's outputs being its last axis.
        let (codebooks, values) = match by_channel {
            true => (Codebooks::PerChannel, values.min(60)),
            false => (Codebooks::PerLayer, values),
        };
        let model = network_of(&weights, columns);
        let (shared, account) = apply(&only_product(values, codebooks), model.clone());
        words(&account, "product");
        let found = computed(&shared.graph, "product");
        prop_assert_eq!(found.len(), weights.len());
        match by_channel {
            false => check_list(&weights, &found, values, |_| true)?,
            true => for channel in 0..columns {
                check_list(&weights, &found, values, |i| i % columns == channel)?;
            }
        }
        // The same seed, the same bits.
        let (again, _) = apply(&only_product(values, codebooks), model);
        prop_assert_eq!(computed(&again.graph, "product"), found);
    }
}

/// As [`network`], with so many outputs of the product.
fn network_of(weights: &[f32], outputs: usize) -> Model {
    let rows = weights.len() / outputs;
    let mut net = Net::new(1, &[rows]);
    let weight = net.graph.add_constant(
        "product.weight",
        TensorData::from_f32(&[rows, outputs], weights),
    );
    let x = net.node("product", Op::MatMul, &[ValueId(0), weight]);
    let mut model = net.finish(&[x]);
    model.graph.infer_shapes();
    model
}

#[test]
fn few_values_are_kept_exactly_and_small_layers_stay() {
    let weights: Vec<f32> = (0..8 * 64).map(|i| [0.5, -0.25, 0.0, 3.0][i % 4]).collect();
    let (shared, account) = share(network(&weights), 4, Codebooks::PerLayer);
    assert_eq!(computed(&shared.graph, "product"), weights);
    let said = words(&account, "product");
    let start = "4 values for 512 weights, one of them 0 for the 128 weights that are; squared error 0.000 %";
    assert!(said.starts_with(start), "{said}");
    assert!(said.contains("entropy 2.00 bits a weight"), "{said}");
    let (_, account) = share(network(&weights), 256, Codebooks::PerLayer);
    assert!(
        refused(&account, "conv").contains("would take"),
        "{account:?}"
    );
    for values in [0, 1, 257] {
        let pass = only_product(values, Codebooks::PerLayer);
        let error = with_context(|c| pass.apply(network(&weights), c)).expect_err("no such number");
        assert!(error.to_string().contains("2 to 256 values"), "{error}");
    }
    let unknown = Cluster {
        codebooks: Codebooks::PerLayer,
        layers: BTreeMap::from([(id("nobody"), 16)]),
    };
    assert!(with_context(|c| unknown.apply(network(&weights), c)).is_err());
    let mut broken = weights.clone();
    broken[7] = f32::NAN;
    let (_, account) = apply(&only_product(16, Codebooks::PerLayer), network(&broken));
    assert!(refused(&account, "product").contains("NaN"), "{account:?}");
}

/// The file has what the account says, reads back bit by bit, and its three sizes are what they are called.
#[test]
fn sizes_are_exact_and_kept_apart() {
    let channels = 500;
    for (values, bits, codebooks) in [
        (16, 4, Codebooks::PerLayer),
        (50, 8, Codebooks::PerLayer),
        (3, 4, Codebooks::PerChannel),
    ] {
        let mut net = Net::new(7, &[1]);
        let mut weights = net.floats(8 * channels, -1.0, 1.0);
        // One in five stays, scattered.
        let order = net.floats(8 * channels, 0.0, 1.0);
        let mut places: Vec<usize> = (0..8 * channels).collect();
        places.sort_by(|a, b| order[*a].total_cmp(&order[*b]));
        places[800..].iter().for_each(|i| weights[*i] = 0.0);
        let dense = network(&weights);
        let before = sizes(&dense.graph).expect("sizes");
        let (shared, account) = apply(&only_product(values, codebooks), dense);
        let packed = pack(&shared).expect("packs");
        let bytes = onnx::to_bytes(&packed).expect("writes");
        let read = onnx::read_bytes(bytes.clone().into()).expect("reads");
        assert_eq!(
            computed(&read, "product"),
            computed(&shared.graph, "product")
        );
        let layers = read.layers();
        let layer = layers
            .iter()
            .find(|l| &*l.id.0 == "product")
            .expect("still a layer");
        assert_eq!(
            (layer.weight_shape.as_slice(), layer.macs),
            (&[8, channels][..], Some(4000))
        );
        let [shared_values] = read.shared_values()[..] else {
            panic!("{:?}", read.shared_values())
        };
        assert_eq!(shared_values.codes, layer.weight);
        let data = |id| read.value(id).data.as_ref().expect("a constant");
        let codes = data(layer.weight);
        assert_eq!(
            (codes.element.bits() as u64, codes.bytes.len()),
            (bits, 500 * bits as usize)
        );
        // Codebooks, and where each channel's begins.
        let lists = data(shared_values.codebook).bytes.len() as u64
            + shared_values
                .offsets
                .map_or(0, |begins| data(begins).bytes.len() as u64);
        match codebooks {
            Codebooks::PerLayer => assert_eq!(lists, 4 * values as u64),
            Codebooks::PerChannel => {
                let own = |channel: usize| {
                    (0..8)
                        .filter(|row| weights[row * channels + channel] != 0.0)
                        .count()
                };
                let values: usize = (0..channels).map(|c| 1 + own(c).min(values - 1)).sum();
                assert_eq!(lists, 4 * (values + channels) as u64);
            }
        }
        let after = sizes(&read).expect("sizes");
        assert_eq!(after.stored.0, bytes.len() as u64);
        // Names and two or three operators are a few hundred bytes.
        let saved = before.stored.0 - after.stored.0;
        let expected = 16_000 - (500 * bits + lists);
        assert!(
            saved <= expected && saved + 500 > expected,
            "{saved} of {expected}"
        );
        assert_eq!(after.runtime.0, before.runtime.0 + lists);
        assert_eq!(after.nonzero_params, before.nonzero_params);
        assert_eq!((after.params, after.macs), (before.params, before.macs));
        let one_a_byte: Vec<u8> = codes.to_i64_vec().iter().map(|c| *c as u8).collect();
        let coded = coded_bytes(&one_a_byte);
        // Less than the codes and than a mask with the codes that are not zero; not less than the entropy.
        assert!(coded < 500 * bits && coded < 100 * bits + 500, "{coded}");
        assert!(
            coded as f64 * 8.0 >= 4000.0 * entropy_bits(&one_a_byte),
            "{coded}"
        );
        assert_eq!(after.stored.0 - after.theoretical.0, 500 * bits - coded);
        let said = words(&account, "product");
        for part in [
            format!(
                "16000 bytes as float32 → {} stored ({bits}-bit codes",
                500 * bits + lists
            ),
            format!("{} with the codes entropy-coded", coded + lists),
            format!("{} in memory while running", 16_000 + lists),
        ] {
            assert!(said.contains(&part), "{part}: {said}");
        }
        let pass = format!(
            "1 of 2 layers: their weights 16000 bytes as float32, {} stored",
            500 * bits + lists
        );
        assert!(account.pass.contains(&pass), "{}", account.pass);
    }
}

/// Other passes leave shared values alone, with a reason.
#[test]
fn shared_values_are_left_alone() {
    let mut net = Net::new(2, &[1]);
    let weights = net.floats(8 * 100, -1.0, 1.0);
    for codebooks in [Codebooks::PerLayer, Codebooks::PerChannel] {
        let (shared, _) = share(network(&weights), 4, codebooks);
        let (_, account) = share(shared.clone(), 8, codebooks);
        let reason = refused(&account, "product");
        assert!(reason.contains("share values already"), "{reason}");
        let prune = MagnitudePrune {
            ratios: BTreeMap::from([(id("product"), Ratio(0.5))]),
            ..MagnitudePrune::default()
        };
        let (_, account) = apply(&prune, shared.clone());
        refused(&account, "product");
        let quantise = Quantize {
            scheme: QuantScheme {
                activations: Activations::Float,
                ..QuantScheme::default()
            },
            layers: BTreeMap::from([(id("product"), Precision::Int8)]),
            ranges: None,
        };
        let (_, account) = apply(&quantise, shared.clone());
        refused(&account, "product");
        let channels = PruneChannels {
            settings: ChannelSettings::default(),
            layers: BTreeMap::from([(id("conv"), Some(Ratio(0.5)))]),
        };
        let (_, account) = apply(&channels, shared.clone());
        refused(&account, "conv");
        apply(&FoldBatchNorm, shared);
    }
}
