//! The evaluator on the bundled sample, held against labels that ONNX Runtime gave.

use limbeck_engine::{
    data::{Dataset, SplitName},
    eval::{EvalError, NoObserver, evaluate, evaluate_with_logits, mean_kl},
    exec::{CancelToken, ExecError, Mode, Program},
    formats::onnx,
    graph::Dim,
};

/// The bundled network on the head of its holdout, once with a free batch axis and once fixed to 7 samples.
#[test]
fn the_sample_is_judged_alike_at_any_batch() {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let data = Dataset::open(&folder.join("task.ron")).unwrap();
    let mut graph = onnx::read(&folder.join("fashion-resnet.onnx")).unwrap();
    let mut run = |fix: bool| {
        if fix {
            let input = graph.inputs[0];
            graph.value_mut(input).shape = Some([7, 1, 28, 28].map(Dim::Known).to_vec());
        }
        let program = Program::compile(&graph, Mode::Inference).unwrap();
        let limit = Some(30);
        let cancel = CancelToken::default();
        evaluate_with_logits(
            &program,
            &data,
            SplitName::Holdout,
            limit,
            &mut NoObserver,
            &cancel,
        )
        .unwrap()
    };
    let (free, logits) = run(false);
    let (fixed, same) = run(true);
    assert_eq!(free.labels, fixed.labels);
    assert_eq!(free.predictions, fixed.predictions);
    assert_eq!((free.n, logits.classes, logits.values.len()), (30, 10, 300));
    assert!(mean_kl(&logits.values, &same.values, 10).value < 1e-9);
    // What ONNX Runtime gives with its optimisations off.
    let theirs = [
        9, 2, 1, 1, 0, 1, 4, 6, 5, 7, 4, 5, 7, 3, 4, 1, 2, 4, 8, 0, 2, 5, 7, 5, 1, 4, 6, 0, 9, 3,
    ];
    assert_eq!(free.predictions, theirs);
    assert_eq!(free.metrics(None).top1.value, 28.0 / 30.0);
    let cancel = CancelToken::default();
    cancel.cancel();
    let program = Program::compile(&graph, Mode::Inference).unwrap();
    let error = evaluate(
        &program,
        &data,
        SplitName::Search,
        None,
        &mut NoObserver,
        &cancel,
    );
    assert!(matches!(error, Err(EvalError::Exec(ExecError::Cancelled))));
}
