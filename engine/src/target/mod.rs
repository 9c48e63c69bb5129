//! Deployment targets: which schemes and operators a runtime computes in integers, how it adds up, what it fuses. Descriptions are RON,
//! those of `assets/targets/` built in. Uses `graph`, `exec`, `compress`.

mod execution;
mod foresee;
mod fusion;
mod saturation;
mod scheme;
#[cfg(test)]
mod tests;

pub use execution::{Executed, Execution};
pub use foresee::foresee;
pub use fusion::integer_layers;
pub use saturation::{LayerSaturation, Saturation, SaturationCount};
pub use scheme::SchemeText;

use crate::{
    compress::{
        Activations, Granularity, IntegerOp, Precision, QuantScheme, ScaleLayout, Symmetry,
    },
    data::{describe_ron_error, did_you_mean},
};
use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

/// The schema of target descriptions that this engine reads.
pub const TARGET_VERSION: u32 = 1;

/// Operators of layers, as descriptions name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Operator {
    Conv,
    ConvTranspose,
    Gemm,
    MatMul,
}

impl Operator {
    /// The operator of a [`crate::graph::Layer`].
    pub fn of(op: &str) -> Option<Self> {
        Some(match op {
            "Conv" => Self::Conv,
            "ConvTranspose" => Self::ConvTranspose,
            "Gemm" => Self::Gemm,
            "MatMul" => Self::MatMul,
            _ => return None,
        })
    }
}

/// How many weights share a scale, without the size of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    PerTensor,
    PerChannel,
    Group,
}

impl Sharing {
    fn of(granularity: Granularity) -> Self {
        match granularity {
            Granularity::PerTensor => Self::PerTensor,
            Granularity::PerChannel => Self::PerChannel,
            Granularity::Group(_) => Self::Group,
        }
    }
}

/// A combination that the target computes as it is quantised. A layer must fit one of a target's rules in everything.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub operators: Vec<Operator>,
    pub precisions: Vec<Precision>,
    pub weights: Vec<Sharing>,
    pub weight_symmetry: Vec<Symmetry>,
    pub activations: Vec<Activations>,
    /// Of activations; asymmetric ones are unsigned, symmetric ones signed.
    pub symmetry: Vec<Symmetry>,
    /// Whether groups of weights must share out a layer's inputs evenly.
    #[serde(default)]
    pub whole_groups: bool,
}

/// How products are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Products {
    /// In 32 bits: nothing is lost.
    #[default]
    Exact,
    /// The sum of two neighbouring products of an unsigned 8-bit activation and a signed 8-bit weight is cut off at 16 bits (`vpmaddubsw`
    /// of SSSE3, AVX2 and AVX-512BW) before it is added in 32. Neighbours along kernel positions and, within one, input channels.
    SaturatingPairs,
}

/// What the target joins, and what has to be quantised for that.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fusion {
    /// Activation functions that vanish where the range of the quantisation behind them implies them.
    pub absorbed: Vec<Activation>,
    /// Operators that a quantisation moves across, towards the layer before them.
    pub passed: Vec<Passing>,
    /// Layers that stay float where nothing quantises their output; of Gemm only those with a bias.
    pub output_needed: Vec<Operator>,
    /// Operators without weights that it computes in integers where all that they read and what they give is quantised.
    pub joins: Vec<IntegerOp>,
}

impl Fusion {
    /// Operators whose results have to be quantised for the target to compute them in integers.
    fn outputs(&self) -> Vec<IntegerOp> {
        let layers = self.output_needed.iter().map(|operator| match operator {
            Operator::Conv => IntegerOp::Conv,
            Operator::ConvTranspose => IntegerOp::ConvTranspose,
            Operator::Gemm => IntegerOp::Gemm,
            Operator::MatMul => IntegerOp::MatMul,
        });
        layers.chain(self.joins.iter().copied()).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Activation {
    Relu,
    Clip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Passing {
    MaxPool,
    Reshape,
    Transpose,
    Squeeze,
    Unsqueeze,
}

/// A target's description.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// [`TARGET_VERSION`].
    pub version: u32,
    pub name: String,
    /// For people, in a line.
    pub title: String,
    #[serde(default)]
    pub notes: String,
    /// What a scheme is where a recipe says nothing else; keys as in a recipe's `scheme`.
    #[serde(default)]
    pub scheme: SchemeText,
    /// What it computes as it is quantised.
    pub runs: Vec<Rule>,
    /// Floating types that it stores weights in; it computes in float.
    #[serde(default)]
    pub stores: Vec<Precision>,
    /// Integers that it stores weights in whatever else the scheme says; where no rule fits it turns them back and computes in float.
    #[serde(default)]
    pub unpacks: Vec<Precision>,
    #[serde(default)]
    pub products: Products,
    #[serde(default)]
    pub fusion: Fusion,
}

/// Why a description could not be read: file, line, key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TargetError(String);

const BUILT_IN: [(&str, &str); 5] = [
    (
        "onnxruntime-cpu",
        include_str!("../../../assets/targets/onnxruntime-cpu.ron"),
    ),
    (
        "onnxruntime-avx2",
        include_str!("../../../assets/targets/onnxruntime-avx2.ron"),
    ),
    (
        "openvino",
        include_str!("../../../assets/targets/openvino.ron"),
    ),
    (
        "tflite-int8",
        include_str!("../../../assets/targets/tflite-int8.ron"),
    ),
    (
        "weight-only-int4",
        include_str!("../../../assets/targets/weight-only-int4.ron"),
    ),
];

/// The dialect of all our RON files: no `Some(…)`, no doubled parentheses.
fn options() -> ron::Options {
    use ron::extensions::Extensions;
    ron::Options::default().with_default_extension(
        Extensions::IMPLICIT_SOME
            | Extensions::UNWRAP_NEWTYPES
            | Extensions::UNWRAP_VARIANT_NEWTYPES,
    )
}

/// The targets that come with Limbeck.
pub fn built_in() -> &'static [Arc<Target>] {
    static TARGETS: OnceLock<Vec<Arc<Target>>> = OnceLock::new();
    TARGETS.get_or_init(|| {
        BUILT_IN
            .iter()
            // A test reads every one of them.
            .filter_map(|(name, text)| Target::parse(text, Path::new(name)).ok())
            .map(Arc::new)
            .collect()
    })
}

/// Whether a target's name is the path of a description of one's own.
pub fn is_file(name: &str) -> bool {
    name.ends_with(".ron")
}

/// The built-in target of this name; a name that ends in `.ron` is the path of a description of one's own, as seen from the folder that
/// the program runs in: reading a recipe makes it that of a path seen from the recipe's folder.
///
/// # Errors
/// No such target (names those there are), a description that cannot be read.
pub fn find(name: &str) -> Result<Arc<Target>, TargetError> {
    if is_file(name) {
        let path = Path::new(name);
        let text = std::fs::read_to_string(path)
            .map_err(|e| TargetError(format!("the target {name} cannot be read: {e}")))?;
        return Target::parse(&text, path).map(Arc::new);
    }
    let known = || built_in().iter().map(|t| t.name.as_str());
    let found = built_in().iter().find(|t| t.name == name);
    found.cloned().ok_or_else(|| {
        let suggestion = did_you_mean(name, known());
        TargetError(format!(
            "there is no target `{name}`{suggestion}; known are {}",
            known().collect::<Vec<_>>().join(", ")
        ))
    })
}

impl Target {
    /// Reads a description strictly. `path` is for messages, which say line, column and key.
    ///
    /// # Errors
    /// Unknown keys or values, another version, a name or rules that are missing.
    pub fn parse(text: &str, path: &Path) -> Result<Self, TargetError> {
        let target: Self = options()
            .from_str(text)
            .map_err(|e| TargetError(describe_ron_error(path, &e)))?;
        let refuse = |why: String| Err(TargetError(format!("{}: {why}", path.display())));
        if target.version != TARGET_VERSION {
            return refuse(format!(
                "version: {} is not known; this engine reads {TARGET_VERSION}",
                target.version
            ));
        }
        if target.name.trim().is_empty() {
            return refuse("name: a name was expected".to_owned());
        }
        if target.runs.is_empty() && target.stores.is_empty() {
            return refuse("runs: at least one rule was expected, or `stores`".to_owned());
        }
        if let Some(float) = target.stores.iter().find(|p| p.is_integer()) {
            return refuse(format!(
                "stores: {} is no floating type; integers stand in `runs`",
                float.label()
            ));
        }
        if let Some(float) = target.unpacks.iter().find(|p| !p.is_integer()) {
            return refuse(format!(
                "unpacks: {} is no integer; floating types stand in `stores`",
                float.label()
            ));
        }
        if let Some(layer) = target.fusion.joins.iter().find(|op| op.is_layer()) {
            return refuse(format!(
                "fusion: joins: {} has weights; layers stand in `runs` and `output_needed`",
                word(layer)
            ));
        }
        target
            .defaults()
            .check()
            .map_err(|e| TargetError(format!("{}: scheme: {e}", path.display())))?;
        Ok(target)
    }

    /// The scheme that a recipe gets where it says nothing else.
    pub fn defaults(&self) -> QuantScheme {
        let outputs = self.fusion.outputs();
        let base = QuantScheme {
            outputs: (!outputs.is_empty()).then_some(outputs),
            ..QuantScheme::default()
        };
        self.scheme.clone().over(base)
    }

    /// Whether the target computes a layer so quantised, of this operator, with a weight of this shape and axis of output channels; if not, why, and
    /// what it takes instead.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn takes_layer(
        &self,
        (op, weight_shape, channel_axis): (&str, &[usize], usize),
        precision: Precision,
        scheme: &QuantScheme,
    ) -> Result<(), String> {
        let rules = self.fitting(op, precision, scheme)?;
        let Some(Granularity::Group(group)) = scheme.granularity(precision) else {
            return Ok(());
        };
        let layout = ScaleLayout::of(op, weight_shape, channel_axis, Granularity::Group(group));
        let inputs = weight_shape.get(layout.axis).copied().unwrap_or(0);
        let even = layout.block == 0 || inputs.is_multiple_of(layout.block);
        if even || rules.is_empty() || rules.iter().any(|r| !r.whole_groups) {
            return Ok(());
        }
        Err(format!(
            "it takes groups that share out the inputs evenly, and {inputs} are no multiple of {group}: make the groups smaller"
        ))
    }

    /// The same of any layer of an operator, as far as its weight's shape does not matter.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn takes(
        &self,
        op: &str,
        precision: Precision,
        scheme: &QuantScheme,
    ) -> Result<(), String> {
        self.fitting(op, precision, scheme).map(|_| ())
    }

    /// The rules by which it computes such a layer; none where it needs none.
    fn fitting(
        &self,
        op: &str,
        precision: Precision,
        scheme: &QuantScheme,
    ) -> Result<Vec<&Rule>, String> {
        let label = precision.label();
        let Some(granularity) = scheme.granularity(precision) else {
            return match precision {
                Precision::Fp32 => Ok(Vec::new()),
                other if self.stores.contains(&other) => Ok(Vec::new()),
                _ => Err(format!("it stores no weights in {label}")),
            };
        };
        if self.unpacks.contains(&precision) {
            return Ok(Vec::new());
        }
        let operator = Operator::of(op);
        let rules: Vec<&Rule> = self
            .runs
            .iter()
            .filter(|r| operator.is_some_and(|o| r.operators.contains(&o)))
            .collect();
        if rules.is_empty() {
            return Err(format!(
                "it computes {op} in float only; leave the layer alone (`keep`)"
            ));
        }
        let rules = narrow(&rules, |r| &r.precisions, &precision, |p| p.label().into())
            .map_err(|known| format!("it computes {op} with weights of {known}, not of {label}"))?;
        let sharing = Sharing::of(granularity);
        let key = match precision.bits() {
            Some(..=4) => "int4_weights",
            _ => "int8_weights",
        };
        let rules = narrow(&rules, |r| &r.weights, &sharing, word)
            .map_err(|known| format!("`{key}` must be {known} there, not {}", word(&sharing)))?;
        let symmetry = &scheme.weight_symmetry;
        let rules = narrow(&rules, |r| &r.weight_symmetry, symmetry, word).map_err(|known| {
            format!(
                "`weight_symmetry` must be {known} there, not {}",
                word(symmetry)
            )
        })?;
        let activations = &scheme.activations;
        let rules = narrow(&rules, |r| &r.activations, activations, word).map_err(|known| {
            format!(
                "`activations` must be {known} there, not {}",
                word(activations)
            )
        })?;
        if scheme.activations.calibrated_bits().is_none() {
            return Ok(rules);
        }
        narrow(&rules, |r| &r.symmetry, &scheme.symmetry, word).map_err(|known| {
            format!(
                "`symmetry` must be {known} there, not {}",
                word(&scheme.symmetry)
            )
        })
    }
}

/// A value as descriptions and recipes write it.
fn word<T: serde::Serialize>(value: &T) -> String {
    ron::to_string(value).unwrap_or_default()
}

/// The rules that know `wanted`, or what they know instead.
fn narrow<'r, T: PartialEq + Clone>(
    rules: &[&'r Rule],
    of: impl Fn(&Rule) -> &Vec<T>,
    wanted: &T,
    word: impl Fn(&T) -> String,
) -> Result<Vec<&'r Rule>, String> {
    let fitting: Vec<&Rule> = rules
        .iter()
        .copied()
        .filter(|r| of(r).contains(wanted))
        .collect();
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    let mut known: Vec<String> = Vec::new();
    for value in rules.iter().flat_map(|r| of(r)).map(word) {
        if !known.contains(&value) {
            known.push(value);
        }
    }
    Err(known.join(" or "))
}
