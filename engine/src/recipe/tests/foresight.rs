//! What is foreseen of a plan at its target, held against exports.

use crate::{
    compress::{Activations, LayerSetting, Precision, QuantScheme, Symmetry},
    exec::CancelToken,
    graph::LayerId,
    recipe::{PlanContext, Recipe, Session, Unwatched, build},
    search::LayerFacts,
    target::{self, Execution, foresee},
};
use std::{collections::BTreeMap, path::Path};

#[test]
fn what_is_foreseen_of_a_plan_is_what_its_export_does() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models");
    let at = |file: &str| samples.join("fashion-resnet").join(file);
    let session = Session::open(&at("fashion-resnet.onnx"), Some(&at("task.ron"))).expect("opens");
    let layers = LayerFacts::of(&session.graph);
    let cancel = CancelToken::default();
    let target = target::find("onnxruntime-cpu").expect("known");
    let placed = target.defaults();
    let plain = QuantScheme::default();
    let symmetric = QuantScheme {
        symmetry: Symmetry::Symmetric,
        ..placed.clone()
    };
    let wide = QuantScheme {
        activations: Activations::Int16,
        ..placed.clone()
    };
    let dynamic = QuantScheme {
        activations: Activations::Dynamic,
        ..placed.clone()
    };
    let some = |n: usize| {
        if n.is_multiple_of(4) {
            Precision::Int4
        } else {
            Precision::Int8
        }
    };
    let all = |_: usize| Precision::Int8;
    let mixed = |n: usize| match n % 5 {
        0 => Precision::Fp32,
        1 => Precision::Fp16,
        _ => Precision::Int7,
    };
    let plans: [(&QuantScheme, &dyn Fn(usize) -> Precision); 7] = [
        (&placed, &all),
        (&placed, &some),
        (&placed, &mixed),
        (&plain, &all),
        (&symmetric, &some),
        (&wide, &mixed),
        (&dynamic, &all),
    ];
    let mut seen = Vec::new();
    for (scheme, plan) in plans {
        let scheme = QuantScheme {
            samples: 2,
            ..scheme.clone()
        };
        let precisions: BTreeMap<LayerId, Precision> = layers
            .iter()
            .enumerate()
            .map(|(n, layer)| (layer.id.clone(), plan(n)))
            .collect();
        let settings = precisions.iter().map(|(id, p)| {
            let setting = LayerSetting {
                precision: *p,
                ..LayerSetting::KEEP
            };
            (id.clone(), setting)
        });
        let context = PlanContext {
            trained: Vec::new(),
            name: String::new(),
            model: "m".into(),
            task: "t".into(),
            seed: 0,
            goals: Vec::new(),
            scheme: scheme.clone(),
            channels: false,
            shrinking: crate::recipe::Shrinking::default(),
            methods: Vec::new(),
            distil: None,
        };
        let recipe = Recipe::from_plan(&context, &layers, &settings.collect());
        let built = build(&session, &recipe, &mut Unwatched, &cancel).expect("builds");
        let is = Execution::of(&built.graph, &target);
        let foreseen =
            foresee(&session.graph, &precisions, &scheme, &target, &cancel).expect("foresees");
        assert_eq!(foreseen, is, "{scheme:?}");
        seen.push(is.map(|e| (e.in_integers(), e.nodes.len())));
    }
    // Of whole plans, placed and not.
    assert_eq!(seen[0], Some((32, 32)), "{seen:?}");
    assert_eq!(seen[3], Some((9, 31)), "{seen:?}");
    assert!(seen[1].is_some_and(|(inside, all)| inside > 0 && inside < all));
}
