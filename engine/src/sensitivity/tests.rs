use super::*;
use crate::{
    compress::{
        Activations, FoldBatchNorm, LayerSetting, Pass, PassContext, QuantScheme, compress_layers,
        inspect_layer,
        testkit::{classifier, task, with_context, zoo},
    },
    data::SplitName,
    eval::{self, evaluate},
    exec::{CancelToken, Mode, Program},
};
use std::collections::BTreeMap;

fn float_activations() -> QuantScheme {
    QuantScheme {
        activations: Activations::Float,
        ..QuantScheme::default()
    }
}

#[test]
fn the_proxy_is_the_noise_that_the_passes_make() {
    let model = zoo(11);
    let scheme = float_activations();
    let cells = proxy(&model.graph, &scheme);
    let layers = model.graph.layers();
    assert_eq!(cells.len(), layers.len() * Candidate::ALL.len());
    for cell in &cells {
        let seen = inspect_layer(&model.graph, &cell.layer, cell.candidate.setting(), &scheme);
        let sqnr = seen
            .unwrap()
            .sqnr_db
            .expect("every candidate changes something");
        let expected = 10_f64.powf(-sqnr / 10.0);
        assert!(
            (cell.value - expected).abs() <= 1e-3 * expected,
            "{} {:?}: {} against {expected}",
            cell.layer.0,
            cell.candidate,
            cell.value
        );
    }
    let value = |c: Candidate| {
        let cell = cells
            .iter()
            .find(|x| &*x.layer.0 == "stem" && x.candidate == c);
        cell.unwrap().value
    };
    assert!(value(Candidate::Fp16) < value(Candidate::Int8));
    assert!(value(Candidate::Int8) < value(Candidate::Int4));
    assert!(value(Candidate::P25) < value(Candidate::P50));
    assert!(value(Candidate::P50) < value(Candidate::P75));
    // Folding by hand first changes nothing: the proxy looks at folded weights anyway.
    let (folded, _) = with_context(|c| FoldBatchNorm.apply(model, c)).unwrap();
    assert_eq!(proxy(&folded.graph, &scheme), cells);
}

#[test]
fn candidates_are_plans() {
    for candidate in Candidate::ALL {
        assert_ne!(candidate.setting(), LayerSetting::KEEP);
        let model = zoo(2);
        let plan = BTreeMap::from([(LayerId("head".into()), candidate.setting())]);
        let scheme = float_activations();
        with_context(|c| compress_layers(model, &plan, &scheme, None, c)).unwrap();
    }
}

/// Counts, and stops after so many cells.
struct Watch {
    cells: Vec<Cell>,
    batches: usize,
    stop_after: usize,
    total: usize,
}

impl MapObserver for Watch {
    fn cell(&mut self, cell: Cell, done: usize, total: usize) {
        self.cells.push(cell);
        self.total = total;
        assert!(done <= total);
    }
    fn batch(&mut self) -> Result<(), ExecError> {
        self.batches += 1;
        if self.cells.len() >= self.stop_after {
            Err(ExecError::Cancelled)
        } else {
            Ok(())
        }
    }
}

fn watch(stop_after: usize) -> Watch {
    Watch {
        cells: Vec::new(),
        batches: 0,
        stop_after,
        total: 0,
    }
}

#[test]
fn measured_cells_are_plans_judged_on_the_search_split() {
    let (_folder, data) = task(5);
    let model = classifier(5);
    let cancel = CancelToken::default();
    let program = Program::compile(&model.graph, Mode::Inference).unwrap();
    let judge = |program: &Program| {
        let split = SplitName::Search;
        evaluate(program, &data, split, None, &mut eval::NoObserver, &cancel).unwrap()
    };
    let baseline = judge(&program);
    let scheme = QuantScheme {
        samples: 40,
        ..QuantScheme::default()
    };
    let go = |known: &[Cell], limit, watch: &mut Watch| {
        measure(
            &model, &scheme, &baseline, &data, limit, known, true, watch, &cancel,
        )
        .unwrap()
    };
    let mut all = watch(usize::MAX);
    let cells = go(&[], None, &mut all);
    assert_eq!(cells, all.cells);
    assert_eq!((cells.len(), all.total), (18, 18));
    assert!(all.batches >= 18);
    // The coarsest come first, the layers with most at stake first among them.
    assert!(cells[..3].iter().all(|c| c.candidate == Candidate::Int4));
    assert!(cells[15..].iter().all(|c| c.candidate == Candidate::Fp16));

    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    for cell in &cells {
        assert_eq!((cell.tier, cell.n), (Tier::Measured, 60));
        let plan = BTreeMap::from([(cell.layer.clone(), cell.candidate.setting())]);
        let (changed, _) = compress_layers(model.clone(), &plan, &scheme, None, &context).unwrap();
        let program = Program::compile(&changed.graph, Mode::Inference).unwrap();
        let drop = judge(&program).drop_from(&baseline);
        assert_eq!((cell.value, cell.ci), (drop.drop, Some(drop.ci)));
    }
    let kl = |candidate: Candidate| {
        let of = cells.iter().filter(|c| c.candidate == candidate);
        of.map(|c| c.kl.unwrap()).sum::<f64>()
    };
    assert!(kl(Candidate::Fp16) < kl(Candidate::Int8) && kl(Candidate::Int8) < kl(Candidate::Int4));

    // Stopped after four: what was finished by then is kept (a candidate's layers are measured side by side), and the rest is
    // measured the next time.
    let mut short = watch(4);
    let kept = go(&[], None, &mut short);
    assert_eq!(kept, cells[..6]);
    let rest = go(&kept, None, &mut watch(usize::MAX));
    assert_eq!(rest, cells[6..]);
    assert!(go(&cells, None, &mut watch(usize::MAX)).is_empty());
    let few = go(&cells[1..], Some(25), &mut watch(usize::MAX));
    assert_eq!((few.len(), few[0].n), (1, 25));
}
