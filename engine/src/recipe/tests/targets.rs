//! Schemes that name a target.

use super::*;
use crate::compress::Activations;

fn quantized(scheme: &str) -> Result<Recipe, RecipeError> {
    let text = format!(
        "(version: 1, name: \"r\", model: \"m.onnx\", task: \"t.ron\", \
         steps: [Quantize(default: set(int8), scheme: (target: \"/nowhere/mine.ron\", {scheme}))])"
    );
    Recipe::parse(&text, Path::new("r.ron"))
}

/// Points and projects hold whole schemes: they open where the description is gone. What a target would have to fill in cannot be.
#[test]
fn a_whole_scheme_is_read_without_its_targets_description() {
    let whole = "int8_weights: per_channel, int4_weights: per_channel, activations: int16, symmetry: symmetric, calibration: mse, samples: 64";
    let recipe = quantized(whole).expect("reads");
    let [Step::Quantize(step)] = recipe.steps.as_slice() else {
        panic!("{recipe:?}");
    };
    assert_eq!(step.scheme.target.as_deref(), Some("/nowhere/mine.ron"));
    assert_eq!(
        (step.scheme.activations, step.scheme.samples),
        (Activations::Int16, 64)
    );
    let error = recipe.target().expect_err("not there").to_string();
    assert!(error.contains("/nowhere/mine.ron"), "{error}");
    let error = quantized("samples: 64")
        .expect_err("half of it")
        .to_string();
    assert!(error.contains("/nowhere/mine.ron"), "{error}");
}
