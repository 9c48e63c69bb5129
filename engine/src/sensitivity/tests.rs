use super::*;
use crate::{
    compress::{
        Activations, FoldBatchNorm, LayerSetting, Pass, PassContext, QuantScheme, compress_layers,
        inspect_layer,
        testkit::{Net, classifier, task, with_context, zoo},
    },
    data::SplitName,
    eval::{self, evaluate},
    exec::{CancelToken, Mode, Program},
    graph::Op,
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
    early: Vec<Cell>,
    cells: Vec<Cell>,
    batches: usize,
    stop_after: usize,
    total: usize,
}

impl MapObserver for Watch {
    fn early(&mut self, cells: Vec<Cell>) {
        self.early.extend(cells);
    }
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
        early: Vec::new(),
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
        let options = MapOptions {
            limit,
            exact: true,
            ..MapOptions::default()
        };
        measure(
            &model,
            &scheme,
            Some(&baseline),
            &data,
            &options,
            known,
            watch,
            &cancel,
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
        assert_eq!((cell.tier, cell.n, cell.of), (Tier::Measured, 60, 60));
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

#[test]
fn the_baseline_and_the_proxy_may_be_left_to_the_map() {
    let (_folder, data) = task(5);
    let model = classifier(5);
    let cancel = CancelToken::default();
    let scheme = QuantScheme {
        samples: 40,
        ..QuantScheme::default()
    };
    let options = MapOptions::default();
    let expected = map(&options, &[], &mut watch(usize::MAX));
    let known = proxy(&model.graph, &scheme);
    let mut seen = watch(usize::MAX);
    let cells = measure(
        &model, &scheme, None, &data, &options, &known, &mut seen, &cancel,
    );
    assert_eq!(cells.unwrap(), expected);
}

/// The map of a small classifier under some options.
fn map(options: &MapOptions, known: &[Cell], watch: &mut Watch) -> Vec<Cell> {
    let (_folder, data) = task(5);
    let model = classifier(5);
    let cancel = CancelToken::default();
    let program = Program::compile(&model.graph, Mode::Inference).unwrap();
    let split = SplitName::Search;
    let baseline = evaluate(&program, &data, split, None, &mut eval::NoObserver, &cancel).unwrap();
    let scheme = QuantScheme {
        samples: 40,
        ..QuantScheme::default()
    };
    measure(
        &model,
        &scheme,
        Some(&baseline),
        &data,
        options,
        known,
        watch,
        &cancel,
    )
    .unwrap()
}

#[test]
fn little_memory_changes_nothing_but_the_time() {
    let mut roomy = watch(usize::MAX);
    let expected = map(&MapOptions::default(), &[], &mut roomy);
    let mut tight = watch(usize::MAX);
    let options = MapOptions {
        memory: 1,
        ..MapOptions::default()
    };
    assert_eq!(map(&options, &[], &mut tight), expected);
    let by_cell = |cells: &[Cell]| {
        let key = |c: &Cell| (c.layer.clone(), c.candidate, c.tier);
        cells
            .iter()
            .map(|c| (key(c), c.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(by_cell(&tight.early), by_cell(&roomy.early));
}

#[test]
fn earlier_tiers_come_first_and_see_what_is_measured() {
    let mut watch = watch(usize::MAX);
    let exact = MapOptions {
        exact: true,
        ..MapOptions::default()
    };
    let cells = map(&exact, &[], &mut watch);
    let early = |tier: Tier, like: &Cell| {
        let same =
            |c: &&Cell| (c.tier, &c.layer, c.candidate) == (tier, &like.layer, like.candidate);
        let found = watch.early.iter().find(same);
        found
            .unwrap_or_else(|| panic!("no {tier:?} cell of {like:?}"))
            .clone()
    };
    let mut close = 0;
    for cell in &cells {
        let (local, fisher) = (early(Tier::Local, cell), early(Tier::Fisher, cell));
        assert!(local.n > 0 && local.n <= 64 && local.n == fisher.n);
        assert!(local.value > 0.0 && fisher.value > 0.0);
        let kl = cell.kl.unwrap();
        // To second order only, and from one random direction a sample: the order of magnitude where little changes.
        let ratio = fisher.value / kl;
        close += usize::from((0.3..3.0).contains(&ratio) || kl < 1e-9);
    }
    assert!(close * 10 >= cells.len() * 8, "{close} of {}", cells.len());
    let sum = |tier: Tier, candidate: Candidate| -> f64 {
        let of = cells.iter().filter(|c| c.candidate == candidate);
        of.map(|c| early(tier, c).value).sum()
    };
    for tier in [Tier::Local, Tier::Fisher] {
        assert!(sum(tier, Candidate::Fp16) < sum(tier, Candidate::Int8));
        assert!(sum(tier, Candidate::Int8) < sum(tier, Candidate::Int4));
        assert!(sum(tier, Candidate::P25) < sum(tier, Candidate::P75));
    }
}

#[test]
fn estimates_alone_are_the_same_cells() {
    let (_folder, data) = task(5);
    let model = classifier(5);
    let scheme = QuantScheme {
        samples: 40,
        ..QuantScheme::default()
    };
    let mut seen = watch(usize::MAX);
    let cancel = CancelToken::default();
    let options = MapOptions::default();
    let cells = estimate(&model, &scheme, &data, &options, &[], &mut seen, &cancel).unwrap();
    assert_eq!(cells, seen.early);
    let mut whole = watch(usize::MAX);
    map(&options, &[], &mut whole);
    assert_eq!(cells, whole.early);
}

#[test]
fn estimates_on_a_task_of_other_classes_are_refused() {
    let (_folder, data) = task(5);
    // Twice the outputs that the task has classes.
    let mut net = Net::new(1, &[1]);
    net.graph = classifier(5).graph;
    let logits = net.graph.outputs[0];
    let twice = net.node("twice", Op::Concat { axis: 1 }, &[logits, logits]);
    net.graph.outputs = vec![twice];
    let model = crate::compress::Model::new(net.graph);
    let cancel = CancelToken::default();
    let options = MapOptions::default();
    let mut seen = watch(usize::MAX);
    let scheme = float_activations();
    let error = estimate(&model, &scheme, &data, &options, &[], &mut seen, &cancel).unwrap_err();
    assert!(error.to_string().contains("classes"), "{error}");
}

#[test]
fn all_but_one_is_the_plan_without_that_layer() {
    let options = MapOptions {
        exact: true,
        direction: Direction::AllBut,
        ..MapOptions::default()
    };
    let mut seen = watch(usize::MAX);
    let cells = map(&options, &[], &mut seen);
    assert_eq!(cells.len(), 18);
    assert!(seen.early.is_empty());

    let (_folder, data) = task(5);
    let model = classifier(5);
    let scheme = QuantScheme {
        samples: 40,
        ..QuantScheme::default()
    };
    let cancel = CancelToken::default();
    let context = PassContext {
        data: Some(&data),
        cancel: &cancel,
        seed: 0,
    };
    let judge = |program: &Program| {
        let split = SplitName::Search;
        evaluate(program, &data, split, None, &mut eval::NoObserver, &cancel).unwrap()
    };
    let baseline = judge(&Program::compile(&model.graph, Mode::Inference).unwrap());
    // Ranges of the float network, as all cells of a map have them.
    let (folded, _) = with_context(|c| FoldBatchNorm.apply(model.clone(), c)).unwrap();
    let ranges = crate::compress::calibrate_layers(&folded.graph, &data, &scheme, &cancel).unwrap();
    let ranges = std::sync::Arc::new(ranges);
    for cell in &cells {
        assert_eq!((cell.direction, cell.n), (Direction::AllBut, 60));
        let layers = model.graph.layers();
        let others = layers.iter().filter(|l| l.id != cell.layer);
        let plan: BTreeMap<_, _> = others
            .map(|l| (l.id.clone(), cell.candidate.setting()))
            .collect();
        let ranges = Some(ranges.clone());
        let (changed, _) =
            compress_layers(model.clone(), &plan, &scheme, ranges, &context).unwrap();
        let program = Program::compile(&changed.graph, Mode::Inference).unwrap();
        let drop = judge(&program).drop_from(&baseline);
        assert_eq!(
            (cell.value, cell.ci),
            (drop.drop, Some(drop.ci)),
            "{cell:?}"
        );
    }
    // Another direction's cells are not taken for these.
    let alone = MapOptions {
        exact: true,
        ..MapOptions::default()
    };
    assert_eq!(map(&alone, &cells, &mut watch(usize::MAX)).len(), 18);
    assert!(map(&options, &cells, &mut watch(usize::MAX)).is_empty());
}

#[test]
fn a_cell_that_was_stopped_is_measured_again_and_a_settled_one_is_not() {
    let options = MapOptions::default();
    let cells = map(&options, &[], &mut watch(usize::MAX));
    assert!(cells.iter().all(|c| c.settled && c.of == 60));
    assert!(
        cells
            .iter()
            .all(|c| (c.why == Some(Settled::All)) == (c.n == 60) && c.why.is_some())
    );
    let mut stopped = cells.clone();
    stopped[2].settled = false;
    stopped[2].n = 16;
    let again = map(&options, &stopped, &mut watch(usize::MAX));
    assert_eq!(again, cells[2..3]);
    // More exact than asked for: what was settled on all samples stays, the rest is run again.
    let exact = MapOptions {
        exact: true,
        ..options
    };
    let short = cells.iter().filter(|c| c.n < 60).count();
    assert_eq!(map(&exact, &cells, &mut watch(usize::MAX)).len(), short);
}
