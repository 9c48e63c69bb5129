//! A runtime that is not there. In a process of its own: one that has loaded a runtime, as those beside this test would have under
//! `cargo test`, gives another reason for not loading a second.

use limbeck_engine::{
    data::SplitName,
    jobs::{Command, Engine, Event, JobId},
    recipe::Recipe,
};
use std::{path::Path, sync::Arc, time::Duration};

/// A path in the settings is taken or nothing is, and what is said names it and what to do.
#[test]
fn a_path_in_the_settings_that_holds_no_runtime_is_said() {
    if std::env::var_os("LIMBECK_ONNXRUNTIME").is_some() {
        // The variable goes before the settings.
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet");
    let engine = Engine::start(Arc::new(|| {}));
    let carried_out = |command: Command| {
        engine.commands.send(command).expect("the engine listens");
        let mut seen = Vec::new();
        loop {
            let wait = Duration::from_secs(300);
            let event = engine.events.recv_timeout(wait).expect("the job ends");
            let end = matches!(event, Event::Finished { .. } | Event::Failed { .. });
            seen.push(event);
            if end {
                return seen;
            }
        }
    };
    carried_out(Command::Open {
        job: JobId(1),
        model: folder.join("fashion-resnet.onnx"),
        task: Some(folder.join("task.ron")),
    });
    let text = "(version: 1, model: \"m\", task: \"t\", steps: [FoldBatchNorm])";
    let recipe = Recipe::parse(text, Path::new("test.ron")).expect("a recipe");
    let events = carried_out(Command::Confirm {
        job: JobId(2),
        recipe: Arc::new(recipe),
        split: SplitName::Search,
        limit: Some(10),
        library: Some("/nowhere/libonnxruntime.so".into()),
    });
    let said = events.iter().find_map(|e| match e {
        Event::Runtime {
            found: Err(why), ..
        } => Some(why.clone()),
        _ => None,
    });
    let said = said.expect("it says that there is none");
    assert!(
        said.contains("/nowhere") && said.contains("pip install"),
        "{said}"
    );
    assert!(
        matches!(events.last(), Some(Event::Failed { .. })),
        "{events:?}"
    );
}
