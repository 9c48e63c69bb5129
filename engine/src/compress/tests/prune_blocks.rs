//! Whole residual blocks by name and by number.

use super::*;
use crate::{
    exec::{CancelToken, ExecError, Mode, Program, Taps},
    formats::onnx,
    graph::{Graph, ValueId},
};
use candle_core::Tensor;
use std::path::Path;

fn sample(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models");
    let file = onnx::read_model(&folder.join(name));
    Model::new(file.expect("the sample is there").graph)
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

fn zeroed(graph: &Graph, gone: &[Block], x: &Tensor) -> Vec<f32> {
    let branch = |b: &Block| graph.find_value(&b.branch).expect("of this graph");
    let mut taps = Zero(gone.iter().map(branch).collect());
    let program = Program::compile(graph, Mode::Inference).expect("compiles");
    let out = program.run(std::slice::from_ref(x), &mut taps, &CancelToken::default());
    let out = out.expect("runs")[0].flatten_all();
    out.and_then(|t| t.to_vec1()).expect("floats")
}

fn named<'a>(blocks: impl IntoIterator<Item = &'a Block>) -> PruneBlocks {
    PruneBlocks {
        settings: BlockSettings::default(),
        layers: Some(blocks.into_iter().flat_map(|b| b.layers.clone()).collect()),
    }
}

/// The invariant on the samples: every block alone, and two together. Norms keep their statistics, for there is no data.
#[test]
fn what_is_left_is_the_network_with_nothing_added_by_what_went() {
    for (name, pixels) in [
        ("fashion-resnet/fashion-resnet.onnx", 28),
        ("fashion-encoder/fashion-encoder.onnx", 28),
    ] {
        let model = sample(name);
        let x = batch(2, &[1, pixels, pixels]);
        let found = blocks(&model.graph);
        assert!(found.len() >= 4, "{name}: {found:?}");
        let whole = run_on(&model.graph, &x);
        let mut choices: Vec<Vec<Block>> = found.iter().map(|b| vec![b.clone()]).collect();
        choices.push(vec![found[0].clone(), found[found.len() - 1].clone()]);
        for gone in choices {
            let pass = named(&gone);
            let (left, account) = with_context(|c| pass.apply(model.clone(), c)).expect("applies");
            left.graph.validate().expect("valid");
            let layers = |g: &Graph| g.layers().len();
            let fewer: usize = gone.iter().map(|b| b.layers.len()).sum();
            assert_eq!(layers(&left.graph) + fewer, layers(&model.graph), "{name}");
            let done = account.entries.iter();
            let done = done.filter(|e| matches!(e.outcome, Outcome::Done(_)));
            assert_eq!(done.count(), fewer);
            let wanted = zeroed(&model.graph, &gone, &x);
            assert_ne!(wanted, whole);
            let largest = wanted.iter().fold(1e-3_f32, |m, v| m.max(v.abs()));
            for (a, b) in wanted.iter().zip(run_on(&left.graph, &x)) {
                assert!(
                    (a - b).abs() <= 1e-4 * largest,
                    "{name}: {a} with zeros, {b} without {gone:?}"
                );
            }
            // What is left is smaller in the file too.
            let bytes = |g: &Graph| onnx::to_bytes(g).expect("encodes").len();
            assert!(bytes(&left.graph) < bytes(&model.graph));
        }
    }
}

#[test]
fn what_cannot_go_is_said() {
    let model = sample("fashion-resnet/fashion-resnet.onnx");
    let found = blocks(&model.graph);
    let refused = |pass: &PruneBlocks, model: &Model| {
        let error = with_context(|c| pass.apply(model.clone(), c)).expect_err("refused");
        error.to_string()
    };
    // Half of a block.
    let mut half = named([&found[0]]);
    half.layers.as_mut().expect("named").pop_last();
    let said = refused(&half, &model);
    assert!(
        said.contains("not a whole residual block") && said.contains(&found[0].words()),
        "{said}"
    );
    // More than there are, and none to judge by.
    let count = |count: usize| PruneBlocks {
        settings: BlockSettings {
            count: Some(count),
            ..BlockSettings::default()
        },
        layers: None,
    };
    let said = refused(&count(found.len() + 1), &model);
    assert!(said.contains(&format!("but {} can", found.len())), "{said}");
    let said = refused(&count(1), &model);
    assert!(said.contains("needs data"), "{said}");
    assert!(refused(&count(0), &model).contains("count"));
    let said = refused(&count(1), &classifier(1));
    assert!(said.contains("no residual block"), "{said}");
}
