//! Students by width and depth: which blocks can go, which do, and that what is left computes what it should.

use super::{blocks::without, *};
use crate::{
    data::SplitName,
    exec::{CancelToken, ExecError, Mode, Program, Taps},
    graph::{BinaryOp, Graph, Op, TensorData, ValueId},
};
use candle_core::Tensor;

/// Three residual blocks and a head; the third block has a convolution on its way past. The convolution that ends a block is times `sizes`.
/// `rectified`: with batch norms within, and an activation behind every sum.
fn net(sizes: [f32; 3], rectified: bool) -> Model {
    let mut net = Net::new(3, &[1, 6, 6]);
    let mut x = net.conv("stem", ValueId(0), [4, 1, 3, 3], 1, true);
    for (i, size) in sizes.iter().enumerate() {
        let name = |part: &str| format!("block{i}.{part}");
        let mut y = net.conv(&name("a"), x, [4, 4, 3, 3], 1, true);
        if rectified {
            y = net.norm(&name("norm"), y, 4);
        }
        let y = net.relu(&name("relu"), y);
        let y = net.conv(&name("b"), y, [4, 4, 3, 3], 1, false);
        let last = net
            .graph
            .find_value(&name("b.weight"))
            .expect("made just now");
        let data = net.graph.value(last).data.clone().expect("a weight");
        let scaled: Vec<f32> = data.to_f32_vec().iter().map(|w| w * size).collect();
        let scaled = TensorData::from_f32(&data.shape, &scaled);
        net.graph.set_data(last, scaled);
        let past = match i {
            2 => net.conv("block2.past", x, [4, 4, 1, 1], 1, false),
            _ => x,
        };
        x = net.node(&name("sum"), Op::Binary(BinaryOp::Add), &[y, past]);
        if rectified {
            x = net.relu(&name("last"), x);
        }
    }
    let x = net.relu("relu", x);
    let x = net.node("pool", Op::GlobalAveragePool, &[x]);
    let x = net.node("flatten", Op::Flatten { axis: 1 }, &[x]);
    let x = net.linear("head", x, [3, 4], 0.1);
    net.finish(&[x])
}

/// Sets what blocks add to zero.
struct Zero(Vec<ValueId>);

impl Taps for Zero {
    fn wants(&self, value: ValueId) -> bool {
        self.0.contains(&value)
    }
    fn visit(&mut self, _: ValueId, tensor: &Tensor) -> Result<Option<Tensor>, ExecError> {
        Ok(Some(tensor.zeros_like()?))
    }
}

/// Outputs of `graph` where these blocks add nothing.
fn zeroed(graph: &Graph, gone: &[&Block], x: &Tensor) -> Vec<f32> {
    let branch = |b: &&Block| graph.find_value(&b.branch).expect("of this graph");
    let mut taps = Zero(gone.iter().map(branch).collect());
    let program = Program::compile(graph, Mode::Inference).expect("compiles");
    let token = CancelToken::default();
    let out = program.run(std::slice::from_ref(x), &mut taps, &token);
    let out = out.expect("runs")[0].flatten_all();
    out.and_then(|t| t.to_vec1()).expect("floats")
}

fn made(model: &Model, settings: StudentSettings) -> Result<(Model, Account), CompressError> {
    let (_folder, data) = task(1);
    let context = PassContext {
        data: Some(&data),
        cancel: &CancelToken::default(),
        seed: 0,
    };
    let (student, account) = Student(settings).apply(model.clone(), &context)?;
    student.graph.validate().expect("valid");
    let told: Vec<&LayerId> = account.entries.iter().map(|e| &e.layer).collect();
    let layers = model.graph.layers();
    assert_eq!(told, layers.iter().map(|l| &l.id).collect::<Vec<_>>());
    Ok((student, account))
}

fn names(graph: &Graph) -> Vec<String> {
    let layers = graph.layers();
    layers.iter().map(|l| l.id.0.to_string()).collect()
}

fn said<'a>(account: &'a Account, layer: &str) -> &'a Outcome {
    let entry = account.entries.iter().find(|e| &*e.layer.0 == layer);
    &entry.expect("the layer is in the account").outcome
}

fn depth(depth: f32) -> StudentSettings {
    StudentSettings {
        depth,
        samples: 40,
        ..StudentSettings::default()
    }
}

#[test]
fn only_blocks_that_add_to_a_value_of_their_own_shape_can_go() {
    for rectified in [false, true] {
        let found = blocks(&net([1.0; 3], rectified).graph);
        let words: Vec<String> = found.iter().map(Block::words).collect();
        assert_eq!(words, ["block0.a to block0.b", "block1.a to block1.b"]);
        // What is read elsewhere stays.
        let mut leaking = net([1.0; 3], rectified);
        let inner = leaking.graph.find_value("block1.relu_out").expect("there");
        leaking.graph.outputs.push(inner);
        assert_eq!(blocks(&leaking.graph).len(), 1);
    }
    assert!(blocks(&classifier(1).graph).is_empty());
}

/// The invariant of pruning, for whole blocks.
#[test]
fn without_blocks_is_what_it_is_when_they_add_nothing() {
    let x = batch(5, &[1, 6, 6]);
    for rectified in [false, true] {
        let model = net([0.5, 0.7, 1.0], rectified);
        let found = blocks(&model.graph);
        let whole = run_on(&model.graph, &x);
        for gone in [vec![0], vec![1], vec![0, 1]] {
            let first = usize::from(gone.contains(&0));
            let gone: Vec<&Block> = gone.iter().map(|i| &found[*i]).collect();
            let left = without(&model.graph, &gone).expect("there");
            left.validate().expect("valid");
            let (left_names, all) = (names(&left), names(&model.graph));
            assert_eq!(left_names.len(), all.len() - 2 * gone.len());
            let expected = zeroed(&model.graph, &gone, &x);
            let found = run_on(&left, &x);
            assert_ne!(expected, whole);
            for (a, b) in expected.iter().zip(&found) {
                assert!((a - b).abs() <= 1e-5, "{a} with zeros, {b} without");
            }
            // An activation of an activation is one too many; the one on its own stays.
            let relus = left.nodes.iter().filter(|n| n.op.name() == "Relu").count();
            let blocks = 3 - gone.len();
            let expected = match rectified {
                // Nothing rectifies the stem before the first block's.
                true => 2 * blocks + first,
                false => blocks + 1,
            };
            assert_eq!(relus, expected);
        }
        assert!(without(&classifier(1).graph, &[&found[0]]).is_err());
    }
}

#[test]
fn the_block_that_is_missed_least_goes() {
    let x = batch(5, &[1, 6, 6]);
    // Blocks that add nothing go without a trace, each and both: the second reads what the first added to.
    for (sizes, share, left) in [
        ([0.0, 0.3, 1.0], 0.5, vec!["block1.a"]),
        ([0.3, 0.0, 1.0], 0.5, vec!["block0.a"]),
        ([0.0, 0.0, 1.0], 0.2, vec![]),
    ] {
        let model = net(sizes, false);
        let (student, account) = made(&model, depth(share)).expect("made");
        for (a, b) in run_on(&student.graph, &x)
            .iter()
            .zip(run_on(&model.graph, &x))
        {
            assert!((a - b).abs() <= 1e-5, "{a} {b}");
        }
        let there = names(&student.graph);
        for block in ["block0.a", "block1.a"] {
            let stays = left.contains(&block);
            assert_eq!(there.iter().any(|l| l == block), stays, "{there:?}");
            let done = matches!(said(&account, block), Outcome::Done(_));
            assert_eq!(done, !stays, "{account:?}");
        }
        assert!(there.iter().any(|l| l == "block2.past"));
        let words = format!("{} of 2 residual blocks left", left.len());
        assert!(account.pass.contains(&words), "{}", account.pass);
    }
}

/// What is said of the one block that goes is what the student misses, statistics settled, and less than what is said of the other.
#[test]
fn what_is_missed_is_measured() {
    let (_folder, data) = task(1);
    let samples: Vec<usize> = (0..40).collect();
    let images = data
        .images(SplitName::Calibration, &samples)
        .expect("images");
    for rectified in [false, true] {
        let model = net([0.02, 0.01, 1.0], rectified);
        let (student, account) = made(&model, depth(0.5)).expect("made");
        let (whole, less) = (
            run_on(&model.graph, &images),
            run_on(&student.graph, &images),
        );
        let missed = crate::eval::mean_kl(&whole, &less, 3).value;
        assert!(missed > 0.0);
        let mut nats = [0.0; 2];
        for (block, nats) in nats.iter_mut().enumerate() {
            let (Outcome::Done(words) | Outcome::NotDone(words)) =
                said(&account, &format!("block{block}.b"));
            let number = words.split("diverge by ").nth(1).expect("said");
            let number = number.split(' ').next().expect("a number");
            *nats = number.parse::<f64>().expect("a number");
            let gone = matches!(said(&account, &format!("block{block}.b")), Outcome::Done(_));
            assert_eq!(gone, format!("{missed:.3e}") == number, "{words} {missed}");
        }
        let least = nats[0].min(nats[1]);
        assert!((missed - least).abs() <= 1e-3 * least, "{nats:?} {missed}");
        let settled = match rectified {
            true => "statistics of 2 batch norms taken again",
            false => "layers scaled and shifted",
        };
        assert!(account.pass.contains(settled), "{}", account.pass);
    }
}

#[test]
fn width_keeps_the_same_share_of_every_group() {
    let model = net([0.4, 0.0, 1.0], true);
    let settings = StudentSettings {
        width: 0.5,
        ..depth(0.5)
    };
    let (student, account) = made(&model, settings).expect("made");
    let channels = layer_channels(&student.graph);
    assert_eq!(channels[&id("stem")], (2, 1));
    assert_eq!(channels[&id("block0.a")], (2, 2));
    assert_eq!(channels[&id("head")], (3, 2));
    assert!(!channels.contains_key(&id("block1.a")));
    assert!(matches!(said(&account, "block1.a"), Outcome::Done(w) if w.contains("gone with")));
    let stem = said(&account, "stem");
    assert!(matches!(stem, Outcome::Done(w) if w.contains("2 of 4 output")));
    // The best are inherited: those whose weights are largest.
    let mut uneven = classifier(9);
    let weight = uneven.graph.find_value("first.weight").expect("there");
    let data = uneven.graph.value(weight).data.clone().expect("a weight");
    let each = data.len() / data.shape[0];
    let small = |(i, w): (usize, &f32)| if i / each < 3 { w * 0.01 } else { *w };
    let values: Vec<f32> = data.to_f32_vec().iter().enumerate().map(small).collect();
    let values = TensorData::from_f32(&data.shape, &values);
    uneven.graph.set_data(weight, values);
    let half = StudentSettings {
        width: 0.5,
        samples: 40,
        ..StudentSettings::default()
    };
    let (student, _) = made(&uneven, half).expect("made");
    let left = weight_of(&student.graph, "first");
    assert_eq!(left, weight_of(&uneven.graph, "first")[3 * each..]);
}

#[test]
fn what_is_no_student_is_refused() {
    let refused = |model: &Model, settings: StudentSettings, words: &str| {
        let said = made(model, settings).expect_err("refused").to_string();
        assert!(said.contains(words), "{said}");
    };
    let model = net([1.0; 3], false);
    refused(&model, StudentSettings::default(), "would be the original");
    refused(&model, depth(0.0), "depth: a share above 0");
    refused(&model, depth(f32::NAN), "found NaN");
    refused(&model, depth(0.9), "keeps all 2 residual blocks");
    let wide = |width: f32| StudentSettings {
        width,
        ..StudentSettings::default()
    };
    refused(&model, wide(1.5), "width: a share above 0 and at most 1");
    refused(&model, wide(0.95), "takes no channel out");
    refused(&classifier(1), depth(0.5), "no residual block");
    let said = with_context(|c| Student(depth(0.5)).apply(model.clone(), c));
    let said = said.expect_err("no data").to_string();
    assert!(said.contains("needs data"), "{said}");
}
