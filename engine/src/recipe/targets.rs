//! A recipe's deployment target: defaults of its scheme, and what the target cannot run.

use super::{PipelineError, Recipe, RecipeError, Session, Step, text::Anchor};
use crate::{
    compress::{Account, Precision, QuantScheme},
    data::SplitName,
    eval::{self, Evaluation, Observer},
    exec::{CancelToken, Mode, Program, Taps},
    graph::LayerId,
    search::LayerFacts,
    target::{self, Saturation, SchemeText, Target, TargetError},
};
use serde::{Deserialize, Deserializer, de::Error};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

thread_local! {
    /// The folder that paths in what is being read are seen from.
    static FOLDER: RefCell<PathBuf> = RefCell::default();
}

/// Reads something whose schemes name target descriptions as seen from `folder`.
pub(super) fn seen_from<T>(folder: &Path, read: impl FnOnce() -> T) -> T {
    struct Back(PathBuf);
    impl Drop for Back {
        fn drop(&mut self) {
            FOLDER.replace(std::mem::take(&mut self.0));
        }
    }
    let _back = Back(FOLDER.replace(folder.to_owned()));
    read()
}

/// Reads a scheme; keys that are left out are the named target's, or the engine's.
pub(super) fn scheme<'de, D: Deserializer<'de>>(from: D) -> Result<QuantScheme, D::Error> {
    let mut text = SchemeText::deserialize(from)?;
    if let Some(name) = text.target.as_mut().filter(|name| target::is_file(name)) {
        let there = FOLDER.with_borrow(|folder| folder.join(&*name));
        *name = there.display().to_string();
    }
    let base = match &text.target {
        // A scheme that says everything, as those of points and projects do, stands without its target's description: `outputs` that
        // it does not name it does not have.
        Some(_) if text.is_complete() => QuantScheme::default(),
        Some(name) => target::find(name).map_err(D::Error::custom)?.defaults(),
        None => QuantScheme::default(),
    };
    Ok(text.over(base))
}

impl Recipe {
    /// Calls the descriptions of targets that are files as `rename` says: seen from another folder, where it is to lie there.
    pub fn rename_target_files(&mut self, rename: impl Fn(&Path) -> PathBuf) {
        for step in &mut self.steps {
            if let Step::Quantize(quantize) = step
                && let Some(name) = &mut quantize.scheme.target
                && target::is_file(name)
            {
                *name = rename(Path::new(&*name)).display().to_string();
            }
        }
    }

    /// The target that its quantisation is for.
    ///
    /// # Errors
    /// A target that is not known or whose description cannot be read.
    pub fn target(&self) -> Result<Option<Arc<Target>>, TargetError> {
        let name = self.steps.iter().find_map(|step| match step {
            Step::Quantize(quantize) => quantize.scheme.target.as_deref(),
            _ => None,
        });
        name.map(target::find).transpose()
    }
}

/// What an opened quantised model gives at a target on the first `limit` samples of a split, and what its arithmetic does to each layer;
/// `None` where it does nothing.
///
/// # Errors
/// An unknown target, no data, a model that cannot run, cancellation.
pub fn evaluate_at(
    session: &Session,
    name: &str,
    split: SplitName,
    limit: Option<usize>,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<(Arc<Evaluation>, Option<Account>), PipelineError> {
    let target = target::find(name).map_err(|e| RecipeError::new(e.to_string()))?;
    let data = session.runnable()?;
    let program = Program::compile(&session.graph, Mode::Inference)?;
    let Some(mut saturation) = Saturation::of(&session.graph, &target) else {
        return Ok((session.baseline(split, limit, observer, cancel)?, None));
    };
    let taps: &mut dyn Taps = &mut saturation;
    let mut result = eval::evaluate_tapped(&program, data, split, limit, taps, observer, cancel)?;
    result.simulated = saturation.target().map(str::to_owned);
    Ok((Arc::new(result), Some(saturation.account())))
}

/// Refuses, with the reason, layers that the scheme's target would not compute as asked.
pub(super) fn allowed(
    scheme: &QuantScheme,
    chosen: &BTreeMap<LayerId, Precision>,
    layers: &[LayerFacts],
) -> Result<(), RecipeError> {
    let Some(name) = &scheme.target else {
        return Ok(());
    };
    let here = || Anchor::Literal(name.clone(), 0);
    let target = target::find(name).map_err(|e| RecipeError::new(e.to_string()).at(here()))?;
    for layer in layers {
        let Some(precision) = chosen.get(&layer.id) else {
            continue;
        };
        if let Err(why) = target.takes_layer(layer.weight(), *precision, scheme) {
            return Err(RecipeError::new(format!(
                "Quantize: the target {} cannot run the layer `{}` ({}) at {}: {why}",
                target.name,
                layer.id.0,
                layer.op,
                precision.label()
            ))
            .at(here()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::{Activations, Granularity, testkit};

    fn recipe(scheme: &str) -> Result<Recipe, RecipeError> {
        let text = format!(
            "(version: 1, model: \"m\", task: \"t\", steps: [Quantize(default: set(int4),\n scheme: ({scheme}))])"
        );
        Recipe::parse(&text, Path::new("r.ron"))
    }

    fn scheme_of(recipe: &Recipe) -> &QuantScheme {
        match &recipe.steps[0] {
            Step::Quantize(quantize) => &quantize.scheme,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_target_fills_in_what_is_left_out_and_survives_writing() {
        let recipe = recipe("target: \"weight-only-int4\", samples: 7").expect("reads");
        let scheme = scheme_of(&recipe);
        assert_eq!(scheme.activations, Activations::Float);
        assert_eq!(scheme.int4_weights, Granularity::Group(32));
        assert_eq!(scheme.samples, 7);
        let text = recipe.to_ron().expect("writes");
        let again = Recipe::parse(&text, Path::new("r.ron")).expect("reads");
        assert_eq!(again, recipe);
        // What was written before targets had outputs means what it meant: none.
        let placed = self::recipe("target: \"onnxruntime-cpu\"").expect("reads");
        assert!(scheme_of(&placed).outputs.is_some());
        let mut old = placed.clone();
        if let Step::Quantize(step) = &mut old.steps[0] {
            step.scheme.outputs = None;
        }
        let text = old.to_ron().expect("writes");
        assert_eq!(
            Recipe::parse(&text, Path::new("r.ron")).expect("reads"),
            old
        );
        // Nothing is written of a target where there is none.
        let plain = self::recipe("samples: 7").expect("reads");
        assert_eq!(scheme_of(&plain).target, None);
        assert!(!plain.to_ron().expect("writes").contains("target"));
    }

    #[test]
    fn an_unknown_target_and_what_a_target_cannot_run_are_refused() {
        let error = recipe("target: \"weight-only\"")
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("r.ron:2:") && error.contains("weight-only-int4"),
            "{error}"
        );
        let layers = LayerFacts::of(&testkit::classifier(1).graph);
        let recipe = recipe("target: \"tflite-int8\"").expect("reads");
        let error = super::super::resolve(&recipe, &layers)
            .expect_err("int4 there")
            .to_string();
        assert!(
            error.contains("first") && error.contains("int8 or int7"),
            "{error}"
        );
    }
    #[test]
    fn a_description_of_ones_own_is_found_from_the_recipes_folder() {
        let place = tempfile::tempdir().expect("a folder");
        let recipes = place.path().join("recipes");
        std::fs::create_dir(&recipes).expect("made");
        let own = include_str!("../../../assets/targets/weight-only-int4.ron");
        std::fs::write(place.path().join("own.ron"), own).expect("written");
        let read = |name: &str, folder: &Path| {
            let text = format!(
                "(version: 1, model: \"m\", task: \"t\", steps: [Quantize(default: set(int4), scheme: (target: \"{name}\"))])"
            );
            Recipe::parse(&text, &folder.join("r.ron"))
        };
        let recipe = read("../own.ron", &recipes).expect("found");
        assert_eq!(scheme_of(&recipe).activations, Activations::Float);
        let target = recipe.target().expect("found").expect("one is named");
        assert_eq!(target.name, "weight-only-int4");
        // The same recipe in another place, with its target there: what it does is the same.
        let here = read("own.ron", place.path()).expect("found");
        let hash = |recipe: &Recipe| recipe.steps_sha256().expect("hashed");
        assert_eq!(hash(&recipe), hash(&here));
        let mut written = here.clone();
        written.rename_target_files(|path| crate::recipe::relative_to(path, &recipes));
        assert_eq!(scheme_of(&written).target.as_deref(), Some("../own.ron"));
        let text = written.to_ron().expect("writes");
        let again = Recipe::parse(&text, &recipes.join("r.ron")).expect("found again");
        assert_eq!(again, recipe);
        // Read complete or not, from nowhere in particular it stays what it is called.
        let said = read("own.ron", &recipes)
            .expect_err("not there")
            .to_string();
        assert!(
            said.contains("recipes") && said.contains("own.ron"),
            "{said}"
        );
    }
}
