use super::*;
use crate::{
    compress::{
        Model, Outcome, Pass, Quantize, Ranges, pack,
        testkit::{Net, batch, run_on, with_context},
    },
    exec::{CancelToken, Mode, Program},
    graph::{Graph, LayerId, Op, ValueId},
};
use std::collections::BTreeMap;

#[test]
fn every_target_that_comes_with_limbeck_reads_and_takes_its_own_defaults() {
    assert_eq!(built_in().len(), BUILT_IN.len());
    for (name, text) in BUILT_IN {
        let target = Target::parse(text, Path::new(name)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(target.name, name);
        let precision = match name {
            "weight-only-int4" => Precision::Int4,
            _ => Precision::Int8,
        };
        for op in ["Gemm", "MatMul"] {
            assert_eq!(
                target.takes(op, precision, &target.defaults()),
                Ok(()),
                "{name}"
            );
        }
        assert_eq!(
            target.takes("Conv", Precision::Fp32, &target.defaults()),
            Ok(())
        );
    }
    let avx2 = find("onnxruntime-avx2").expect("known");
    assert_eq!(avx2.products, Products::SaturatingPairs);
    let error = find("onnxruntime-avx").expect_err("not known").to_string();
    assert!(
        error.contains("did you mean `onnxruntime-avx2`?"),
        "{error}"
    );
}

#[test]
fn a_description_is_read_strictly() {
    let error = |text: &str| {
        let error = Target::parse(text, Path::new("my.ron")).expect_err(text);
        error.to_string()
    };
    let unknown = error("(version: 1,\n name: \"x\", title: \"t\",\n producs: exact, runs: [])");
    assert!(
        unknown.contains("my.ron:3:") && unknown.contains("`products`"),
        "{unknown}"
    );
    let value = error("(version: 1, name: \"x\", title: \"t\", runs: [], products: roughly)");
    assert!(
        value.contains("roughly") && value.contains("saturating_pairs"),
        "{value}"
    );
    assert!(
        error("(version: 2, name: \"x\", title: \"t\", runs: [], stores: [fp16])")
            .contains("version: 2")
    );
    assert!(error("(version: 1, name: \"x\", title: \"t\", runs: [])").contains("runs"));
    assert!(
        error("(version: 1, name: \"x\", title: \"t\", runs: [], stores: [int8])").contains("int8")
    );
}

#[test]
fn what_a_target_cannot_do_is_refused_with_what_it_can() {
    let target = find("onnxruntime-cpu").expect("known");
    let scheme = target.defaults();
    let refused = |op: &str, precision, scheme: &QuantScheme| {
        target.takes(op, precision, scheme).expect_err("refused")
    };
    assert!(refused("ConvTranspose", Precision::Int8, &scheme).contains("float only"));
    let tflite = find("tflite-int8").expect("known");
    let int4 = tflite.takes("Conv", Precision::Int4, &tflite.defaults());
    let int4 = int4.expect_err("refused");
    assert!(
        int4.contains("int8 or int7") && int4.contains("not of int4"),
        "{int4}"
    );
    let grouped = QuantScheme {
        int8_weights: Granularity::Group(32),
        ..scheme.clone()
    };
    let grouped = refused("Conv", Precision::Int8, &grouped);
    assert!(
        grouped.contains("`int8_weights` must be per_tensor or per_channel"),
        "{grouped}"
    );
    let wide = QuantScheme {
        activations: Activations::Int16,
        ..scheme
    };
    let wide = refused("Conv", Precision::Int8, &wide);
    assert!(wide.contains("`activations` must be int8"), "{wide}");
}

/// conv → relu → conv → relu → gemm without bias, in 8 bits, as exported; weights near ±1, so that codes are large.
fn network() -> Graph {
    let mut net = Net::new(11, &[5, 7, 6]);
    let heavy = |net: &mut Net, name: &str, shape: &[usize]| net.weight(name, shape, 0.7, 1.0);
    let conv = |net: &mut Net, name: &str, x: ValueId, shape: [usize; 4]| {
        let inputs = [x, heavy(net, &format!("{name}.weight"), &shape)];
        let mut window = crate::compress::testkit::window([shape[2], shape[3]]);
        window.strides = vec![2, 1];
        net.node(name, Op::Conv { window, group: 1 }, &inputs)
    };
    let x = conv(&mut net, "first", ValueId(0), [6, 5, 3, 3]);
    let x = net.relu("r1", x);
    let x = conv(&mut net, "second", x, [4, 6, 1, 1]);
    let x = net.relu("r2", x);
    let x = net.node("flat", Op::Flatten { axis: 1 }, &[x]);
    let inputs = [x, heavy(&mut net, "head.weight", &[3, 4 * 2 * 6])];
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let x = net.node("head", gemm, &inputs);
    quantised(net.finish(&[x]), QuantScheme::default())
}

fn quantised(model: Model, scheme: QuantScheme) -> Graph {
    let layers: BTreeMap<LayerId, Precision> = model
        .graph
        .layers()
        .into_iter()
        .map(|l| (l.id, Precision::Int8))
        .collect();
    let mut values: BTreeMap<String, [f32; 2]> = BTreeMap::new();
    for (id, hi) in crate::compress::layer_inputs(&model.graph)
        .into_iter()
        .zip([1.0, 30.0, 120.0])
    {
        let lo = if values.is_empty() { -1.0 } else { 0.0 };
        values.insert(model.graph.value(id).name.clone(), [lo, hi]);
    }
    let pass = Quantize {
        scheme,
        layers,
        ranges: Some(std::sync::Arc::new(Ranges { values })),
    };
    let (model, _) = with_context(|c| pass.apply(model, c)).expect("quantises");
    pack(&model).expect("packs")
}

/// The first layer by the definition of `vpmaddubsw`, all in integers: what its output would be at the target.
fn first_by_hand(graph: &Graph, x: &[f32]) -> Vec<f32> {
    let kept = crate::compress::quantized_layers(graph);
    let (weight, input) = (
        kept[0].weight.clone().expect("quantised"),
        kept[0].input.clone().expect("quantised"),
    );
    let layer = &graph.layers()[0];
    let codes = graph
        .value(layer.weight)
        .data
        .as_ref()
        .expect("packed")
        .to_i64_vec();
    let zero = i64::from(input.zero_point[0]);
    let code = |c: i64, y: i64, x_: i64| -> i64 {
        if !(0..7).contains(&y) || !(0..6).contains(&x_) {
            return zero;
        }
        let v = x[((c * 7 + y) * 6 + x_) as usize];
        ((v / input.scale[0]).round_ties_even() as i64 + zero).clamp(0, 255)
    };
    let mut out = Vec::new();
    for o in 0..6_i64 {
        for oy in 0..4_i64 {
            for ox in 0..6_i64 {
                let (mut sum, mut zeros, mut pair, mut held) = (0_i64, 0_i64, 0_i64, 0);
                for ky in 0..3_i64 {
                    for kx in 0..3_i64 {
                        for c in 0..5_i64 {
                            let w = codes[(((o * 5 + c) * 3 + ky) * 3 + kx) as usize];
                            pair += code(c, oy * 2 + ky - 1, ox + kx - 1) * w;
                            zeros += zero * w;
                            held += 1;
                            if held == 2 {
                                sum += pair.clamp(-32768, 32767);
                                (pair, held) = (0, 0);
                            }
                        }
                    }
                }
                sum += pair.clamp(-32768, 32767);
                out.push((sum - zeros) as f32 * input.scale[0] * weight.scale[o as usize]);
            }
        }
    }
    out
}

/// Keeps one value.
struct Keep(ValueId, Vec<f32>, Saturation);

impl crate::exec::Taps for Keep {
    fn wants(&self, value: ValueId) -> bool {
        value == self.0 || self.2.wants(value)
    }
    fn visit(
        &mut self,
        value: ValueId,
        tensor: &candle_core::Tensor,
    ) -> Result<Option<candle_core::Tensor>, crate::exec::ExecError> {
        let replaced = match self.2.wants(value) {
            true => self.2.visit(value, tensor)?,
            false => None,
        };
        if value == self.0 {
            self.1 = replaced
                .as_ref()
                .unwrap_or(tensor)
                .flatten_all()?
                .to_vec1()?;
        }
        Ok(replaced)
    }
}

#[test]
fn sums_of_pairs_are_cut_off_as_the_instruction_does_it() {
    let graph = network();
    let target = find("onnxruntime-avx2").expect("known");
    // A Gemm without bias is an integer kernel whatever follows; both convolutions are quantised behind their Relu, one across Flatten:
    // no kernel moves a quantisation across that.
    let names: Vec<String> = integer_layers(&graph, &target.fusion)
        .iter()
        .map(|l| l.id.0.to_string())
        .collect();
    assert_eq!(names, ["first", "head"]);
    let saturation = Saturation::of(&graph, &target).expect("can saturate");
    let x = batch(1, &[5, 7, 6]);
    let program = Program::compile(&graph, Mode::Inference).expect("compiles");
    let mut keep = Keep(graph.layers()[0].output, Vec::new(), saturation);
    let cancel = CancelToken::default();
    program
        .run(std::slice::from_ref(&x), &mut keep, &cancel)
        .expect("runs");
    let values: Vec<f32> = x.flatten_all().and_then(|t| t.to_vec1()).expect("floats");
    let expected = first_by_hand(&graph, &values);
    assert_eq!(keep.1.len(), expected.len());
    for (a, b) in keep.1.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
    let (_, count) = keep.2.counts().next().expect("a layer");
    assert_eq!(count.outputs, 6 * 4 * 6);
    assert!(count.saturated > 0 && count.most > 0.0, "{count:?}");
    let kept = keep.2.by_layer();
    assert_eq!(&*kept[0].layer.0, "first");
    assert_eq!(kept[0].saturated, count.saturated);
    assert_eq!(kept[0].share(), count.saturated as f64 / (6.0 * 4.0 * 6.0));
    assert_ne!(run_on(&graph, &x).len(), 0);
    // The exact target has nothing to take off.
    let exact = find("onnxruntime-cpu").expect("known");
    assert!(Saturation::of(&graph, &exact).is_none());
}

#[test]
fn ranges_of_each_inference_are_said_not_to_be_simulated() {
    let mut net = Net::new(3, &[12]);
    let inputs = [ValueId(0), net.weight("head.weight", &[12, 3], 0.7, 1.0)];
    let x = net.node("head", Op::MatMul, &inputs);
    let scheme = QuantScheme {
        activations: Activations::Dynamic,
        ..QuantScheme::default()
    };
    let graph = quantised(net.finish(&[x]), scheme);
    let target = find("onnxruntime-avx2").expect("known");
    let saturation = Saturation::of(&graph, &target).expect("there is something to say");
    assert_eq!(saturation.target(), None, "nothing is simulated");
    let account = saturation.account();
    let said = |outcome: &Outcome| matches!(outcome, Outcome::NotDone(why) if why.contains("not simulated"));
    assert_eq!(account.entries.len(), 1, "{account:?}");
    assert!(said(&account.entries[0].outcome), "{account:?}");
}

/// Two residual additions, of which the model gives the second's result.
fn residual(target: &str) -> Graph {
    let target = find(target).expect("known");
    let mut net = Net::new(12, &[3, 6, 6]);
    let x = net.conv("stem", ValueId(0), [4, 3, 3, 3], 1, true);
    let stem = net.relu("r", x);
    let x = net.conv("inner", stem, [4, 4, 3, 3], 1, true);
    let add = Op::Binary(crate::graph::BinaryOp::Add);
    let sum = net.node("add", add.clone(), &[x, stem]);
    let x = net.conv("last", sum, [4, 4, 3, 3], 1, true);
    let x = net.node("end", add, &[x, sum]);
    let model = net.finish(&[x]);
    let values = crate::compress::values_to_calibrate(&model.graph, &target.defaults());
    let range = |v: &ValueId| (model.graph.value(*v).name.clone(), [0.0, 4.0]);
    let ranges = Ranges {
        values: values.iter().map(range).collect(),
    };
    let layers = model.graph.layers().into_iter();
    let pass = Quantize {
        scheme: target.defaults(),
        layers: layers.map(|l| (l.id, Precision::Int8)).collect(),
        ranges: Some(std::sync::Arc::new(ranges)),
    };
    let (model, _) = with_context(|c| pass.apply(model, c)).expect("quantises");
    pack(&model).expect("packs")
}

#[test]
fn what_runs_in_integers_is_said_of_layers_and_of_what_joins_them() {
    let target = find("onnxruntime-cpu").expect("known");
    let at_target =
        Execution::of(&residual("onnxruntime-cpu"), &target).expect("something is quantised");
    let floats = |execution: &Execution| -> Vec<(String, String)> {
        let float = execution
            .nodes
            .iter()
            .filter_map(|n| Some((n.name.0.to_string(), n.float.clone()?)));
        float.collect()
    };
    let names: Vec<&str> = at_target.nodes.iter().map(|n| &*n.name.0).collect();
    assert_eq!(names, ["stem", "inner", "add", "last", "end"]);
    let found = floats(&at_target);
    // The last convolution goes into the model's own result alone.
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].0, "last");
    assert!(found[0].1.contains("end (Add) reads it"), "{found:?}");
    assert_eq!(found[1].0, "end");
    assert!(found[1].1.contains("last_out is float"), "{found:?}");
    // The input; the sum, for what is computed in float behind it.
    assert_eq!((at_target.to_codes, at_target.to_float), (1, 1));
    let account = at_target.account();
    assert!(
        account.pass.contains("onnxruntime-cpu") && account.pass.contains("once"),
        "{}",
        account.pass
    );
    assert_eq!(account.entries.len(), 5);
    let around = |name: &str| {
        let mut nodes = at_target.nodes.iter();
        let node = nodes.find(|n| &*n.name.0 == name).expect("there");
        (node.before, node.behind)
    };
    assert_eq!(
        around("stem"),
        (true, false),
        "the image is quantised for it"
    );
    assert_eq!(around("inner"), (false, false));
    assert_eq!(
        around("add"),
        (false, true),
        "the end reads the sum as float"
    );
    assert_eq!(around("last"), (true, false), "its codes become float");
    assert_eq!(around("end"), (true, false));
    // Pairs at the inputs of layers only: what the additions read keeps convolutions float.
    let plain = Execution::of(&residual("openvino"), &target).expect("something is quantised");
    let names: Vec<String> = floats(&plain).into_iter().map(|(name, _)| name).collect();
    assert!(
        names.contains(&"inner".to_owned()) && names.contains(&"add".to_owned()),
        "{plain:?}"
    );
    assert!(plain.to_codes + plain.to_float > 2, "{plain:?}");
    // Nothing is known of what others fuse.
    let other = find("openvino").expect("known");
    assert_eq!(Execution::of(&residual("openvino"), &other), None);
}

#[test]
fn what_a_target_unpacks_is_taken_in_any_layout() {
    let target = find("onnxruntime-cpu").expect("known");
    let scheme = target.defaults();
    for precision in [Precision::Int4, Precision::Int2] {
        assert_eq!(target.takes("Conv", precision, &scheme), Ok(()));
    }
    let text = BUILT_IN[0].1.replace("unpacks: [int4,", "unpacks: [fp16,");
    let error = Target::parse(&text, Path::new("mine.ron")).expect_err("no integer");
    assert!(error.to_string().contains("unpacks: fp16"), "{error}");
}

#[test]
fn what_a_target_fuses_is_what_it_has_quantised() {
    let joins = find("onnxruntime-cpu").expect("known").defaults().outputs;
    let joins = joins.expect("it fuses");
    assert!(joins.contains(&IntegerOp::Add) && joins.contains(&IntegerOp::Conv));
    assert!(
        !joins.contains(&IntegerOp::MatMul),
        "its products give float"
    );
    assert_eq!(find("openvino").expect("known").defaults().outputs, None);
    let text = BUILT_IN[0].1.replace("joins: [Add,", "joins: [Conv,");
    let error = Target::parse(&text, Path::new("mine.ron")).expect_err("a layer");
    assert!(error.to_string().contains("Conv has weights"), "{error}");
}

/// OpenVINO does not read files in which the last group of a weight is cut short (tried: 192 inputs in groups of 128).
#[test]
fn groups_that_do_not_share_out_the_inputs_are_refused_where_the_target_does_not_read_them() {
    let target = find("openvino").expect("known");
    let scheme = QuantScheme {
        activations: Activations::Float,
        ..target.defaults()
    };
    let takes = |inputs: usize, target: &Target| {
        target.takes_layer(("MatMul", &[inputs, 64], 1), Precision::Int4, &scheme)
    };
    let refused = takes(192, &target).expect_err("192 is no multiple of 128");
    assert!(refused.contains("192 are no multiple of 128"), "{refused}");
    assert_eq!(takes(256, &target), Ok(()));
    // Too short for one group: it has one scale an output.
    assert_eq!(takes(96, &target), Ok(()));
    let packed = find("weight-only-int4").expect("known");
    assert_eq!(takes(192, &packed), Ok(()));
}
