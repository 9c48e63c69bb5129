//! A large model with external data: it is shown before any weight is read, its hash comes later and says what it always said,
//! and going through its weights leaves none of them in memory.

mod big;

use limbeck_engine::{
    compress::{LayerSetting, Precision, QuantScheme, Ratio, inspect_layer},
    data::SplitName,
    exec::CancelToken,
    formats::onnx,
    jobs::{Command, Engine, Event, JobId},
    recipe::{Recipe, Session, sha256, sha256_file},
    sensitivity::Candidate,
};
use std::{path::Path, sync::Arc, time::Duration};

/// Just above what is read at once.
const LAYERS: usize = 30;

/// Different in every layer and channel.
fn weights(layer: usize) -> Vec<f32> {
    (0..big::LAYER_BYTES as usize / 4)
        .map(|i| ((i * 7919 + layer * 104_729) % 2003) as f32 / 2003.0 - 0.4)
        .collect()
}

/// Events until `enough`.
fn until(engine: &Engine, mut enough: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let mut seen = Vec::new();
    while !enough(&seen) {
        let event = engine
            .events
            .recv_timeout(Duration::from_secs(120))
            .unwrap_or_else(|_| panic!("no more events after {} of them", seen.len()));
        seen.push(event);
    }
    seen
}

fn open(engine: &Engine, model: &Path) -> Vec<Event> {
    let command = Command::Open {
        job: JobId(1),
        model: model.to_owned(),
        task: None,
    };
    engine.commands.send(command).expect("the engine listens");
    until(engine, |seen| {
        let hashed = seen.iter().any(|e| matches!(e, Event::Hashed { .. }));
        let ended = |e: &Event| matches!(e, Event::Finished { .. } | Event::Failed { .. });
        hashed && seen.iter().any(ended)
    })
}

#[test]
fn a_large_model_is_shown_first_then_its_proxies_and_its_hash() {
    let folder = tempfile::tempdir().expect("folder");
    let [model, data] = big::write(folder.path(), LAYERS, |layer| Some(weights(layer)));
    let engine = Engine::start(Arc::new(|| {}));
    let events = open(&engine, &model);
    let place = |what: fn(&Event) -> bool| events.iter().position(what).expect("comes");
    let opened = place(|e| matches!(e, Event::Opened { .. }));
    assert!(opened < place(|e| matches!(e, Event::Cells { .. })));
    assert!(opened < place(|e| matches!(e, Event::Hashed { .. })));
    let (mut cells, mut hash) = (Vec::new(), String::new());
    for event in events {
        match event {
            Event::Opened { info, .. } => {
                assert_eq!(info.sha256, None, "nothing waits for it");
                assert_eq!(info.layers.len(), LAYERS);
                assert!(info.runnable && info.warnings.is_empty(), "{info:?}");
                let params = LAYERS * (256 * 256 * 9 + 2 * 256);
                assert_eq!(info.sizes.params, params as u64);
            }
            Event::Cells { cells: some, .. } => cells.extend(some),
            Event::Hashed { sha256, .. } => hash = sha256.expect("readable"),
            Event::Failed { message, .. } => panic!("{message}"),
            _ => {}
        }
    }
    let own = [&model, &data].map(|path| sha256_file(path).expect("readable") + "\n");
    assert_eq!(hash, sha256(own.concat().as_bytes()));

    // Every layer has its cells, in order, and they say what the inspector says of the layer by itself.
    assert_eq!(cells.len(), LAYERS * Candidate::ALL.len());
    let graph = onnx::read(&model).expect("reads");
    let int8 = cells.iter().filter(|c| c.candidate == Candidate::Int8);
    for (cell, layer) in int8.zip(graph.layers()) {
        assert_eq!(cell.layer, layer.id);
        let setting = LayerSetting {
            precision: Precision::Int8,
            sparsity: Ratio(0.0),
        };
        let found = inspect_layer(&graph, &layer.id, setting, &QuantScheme::default());
        let decibels = found.expect("inspects").sqnr_db.expect("quantised");
        let noise = 10f64.powf(-decibels / 10.0);
        let off = (cell.value / noise - 1.0).abs();
        assert!(off < 1e-3, "{}: {} and {noise}", layer.id.0, cell.value);
    }
}

#[test]
fn broken_weights_of_a_large_model_are_said_after_it_is_shown() {
    let folder = tempfile::tempdir().expect("folder");
    let [model, _] = big::write(folder.path(), LAYERS, |layer| {
        (layer == 17).then(|| vec![f32::NAN; big::LAYER_BYTES as usize / 4])
    });
    let engine = Engine::start(Arc::new(|| {}));
    let events = open(&engine, &model);
    let warning = events.iter().find_map(|e| match e {
        Event::Unsound { warning, .. } => Some(warning.as_str()),
        _ => None,
    });
    assert!(warning.expect("said").contains("weight17"), "{warning:?}");
    let measure = Command::Measure {
        job: JobId(2),
        recipe: Arc::new(Recipe::baseline(model.clone(), "task.ron".into())),
        split: SplitName::Search,
        limit: None,
    };
    engine.commands.send(measure).expect("the engine listens");
    let last = until(&engine, |seen| {
        seen.iter().any(|e| matches!(e, Event::Failed { .. }))
    });
    let Some(Event::Failed { message, .. }) = last.last() else {
        panic!("{last:?}");
    };
    assert!(message.contains("weight17"), "{message}");
}

#[test]
fn tier_0_lets_others_in_between_and_ends_when_cancelled() {
    // Five parts: the first is waited for, the inspector comes after the next, the cancellation after one more.
    let layers = 2 * LAYERS;
    let folder = tempfile::tempdir().expect("folder");
    let [model, _] = big::write(folder.path(), layers, |layer| Some(weights(layer)));
    let engine = Engine::start(Arc::new(|| {}));
    let send = |command| engine.commands.send(command).expect("the engine listens");
    send(Command::Open {
        job: JobId(1),
        model: model.clone(),
        task: None,
    });
    let mut seen = until(&engine, |seen| {
        seen.iter().any(|e| matches!(e, Event::Cells { .. }))
    });
    let Some(Event::Opened { info, .. }) = seen.iter().find(|e| matches!(e, Event::Opened { .. }))
    else {
        panic!("{seen:?}");
    };
    send(Command::Inspect {
        job: JobId(2),
        layer: info.layers[0].id.clone(),
        setting: LayerSetting {
            precision: Precision::Int8,
            sparsity: Ratio(0.0),
        },
        scheme: QuantScheme::default(),
    });
    seen.extend(until(&engine, |seen| {
        let over = |e: &Event| matches!(e, Event::Finished { job: JobId(1) });
        assert!(!seen.iter().any(over), "the inspector waited for tier 0");
        seen.iter().any(|e| matches!(e, Event::Inspected { .. }))
    }));
    send(Command::Cancel(JobId(1)));
    seen.extend(until(&engine, |seen| {
        let over = |e: &Event| matches!(e, Event::Finished { job: JobId(1) });
        assert!(!seen.iter().any(over), "not cancelled");
        seen.iter()
            .any(|e| matches!(e, Event::Cancelled { job: JobId(1) }))
    }));
    let cells = |event: &Event| match event {
        Event::Cells { cells, .. } => cells.len(),
        _ => 0,
    };
    let told: usize = seen.iter().map(cells).sum();
    assert!(0 < told && told < layers * Candidate::ALL.len(), "{told}");
    while let Ok(event) = engine.events.recv_timeout(Duration::from_millis(300)) {
        assert_eq!(cells(&event), 0, "more cells after the job's end");
    }
}

#[test]
fn a_lock_or_project_waits_for_the_hash() {
    let folder = tempfile::tempdir().expect("folder");
    let [model, _] = big::write(folder.path(), LAYERS, |_| None);
    let session = Session::open(&model, None).expect("opens");
    let waited = session.model_sha256(&CancelToken::default()).expect("read");
    assert_eq!(session.known_sha256(), Some(waited));
}

/// MB of the files below `folder` that are in memory through this process's maps. Under `cargo test` other tests of this
/// binary open models and page in code meanwhile, so what the process holds as a whole says nothing about one test.
#[cfg(target_os = "linux")]
fn mapped(folder: &std::path::Path) -> f64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux tells its maps");
    let folder = folder.to_str().expect("UTF-8");
    let mut ours = false;
    let mut kilobytes = 0.0;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some(size) = line.strip_prefix("Rss:").filter(|_| ours) {
            let size = size.trim().trim_end_matches(" kB");
            kilobytes += size.parse::<f64>().expect("a number");
        } else if !first.ends_with(':') {
            ours = line.contains(folder);
        }
    }
    kilobytes * 1024.0 / 1e6
}

#[cfg(target_os = "linux")]
#[test]
fn neither_opening_nor_tier_0_leaves_weights_in_memory() {
    let folder = tempfile::tempdir().expect("folder");
    let [model, _] = big::write(folder.path(), LAYERS, |_| None);
    let session = Session::open(&model, None).expect("opens");
    let file = LAYERS as f64 * big::LAYER_BYTES as f64 / 1e6;
    let opened = mapped(folder.path());
    assert!(opened < file / 4.0, "{opened} MB of {file} after opening");
    let cells = limbeck_engine::sensitivity::proxy(&session.graph, &QuantScheme::default());
    assert_eq!(cells.len(), LAYERS * Candidate::ALL.len());
    assert!(session.obstacles().is_empty());
    let read = mapped(folder.path());
    assert!(read < file / 4.0, "{read} MB of {file} after tier 0");
    // The graph still reads its weights, and then they are seen in memory: the counting above counts.
    let layers = session.graph.layers();
    assert_eq!(layers.len(), LAYERS);
    for layer in &layers {
        let weight = session.graph.value(layer.weight).data.as_ref();
        assert!(
            weight.is_some_and(|w| w.non_finite() == 0),
            "{:?}",
            layer.id
        );
    }
    let in_use = mapped(folder.path());
    assert!(in_use > file / 2.0, "{in_use} MB of {file} read");
}
