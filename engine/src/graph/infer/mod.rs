//! Element types and shapes of everything a graph computes, as far as they follow from its inputs and
//! constants. Integer arithmetic on shapes (Shape → Gather → Concat → Reshape) is carried along, with symbols
//! kept as symbols. Never fails: what doesn't follow stays unknown, and sizes from a file are never allocated.

mod indexing;
mod known;
mod layout;
mod open;
#[cfg(test)]
mod tests;
mod windows;

pub(crate) use open::OpenSizes;

use super::{BinaryOp, Dim, ElementType, Graph, Node, Op, TensorData, UnaryOp, Value, VariadicOp};
use std::{collections::BTreeMap, sync::Arc};

/// Integer tensors up to this many elements are followed through shape arithmetic.
const MOST_ITEMS: usize = 1024;
/// Shapes of more axes than any real operator has are given up on.
const MOST_AXES: usize = 64;

/// What is known of one integer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Int {
    Known(i64),
    Symbol(Arc<str>),
    Unknown,
}

impl Int {
    fn known(&self) -> Option<i64> {
        match self {
            Self::Known(v) => Some(*v),
            _ => None,
        }
    }

    fn to_dim(&self) -> Dim {
        match self {
            Self::Known(v) => usize::try_from(*v).map_or(Dim::Unknown, Dim::Known),
            Self::Symbol(s) => Dim::Symbol(s.clone()),
            Self::Unknown => Dim::Unknown,
        }
    }

    fn of(dim: &Dim) -> Self {
        match dim {
            Dim::Known(n) => i64::try_from(*n).map_or(Self::Unknown, Self::Known),
            Dim::Symbol(s) => Self::Symbol(s.clone()),
            Dim::Unknown => Self::Unknown,
        }
    }
}

/// What is known of one value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Info {
    element: Option<ElementType>,
    shape: Option<Vec<Dim>>,
    /// Elements of a small integer or bool tensor, row-major.
    items: Option<Vec<Int>>,
    /// Elements of a small float constant (the scales of Resize).
    floats: Option<Vec<f32>>,
}

impl Info {
    fn new(element: Option<ElementType>, shape: Option<Vec<Dim>>) -> Self {
        Self {
            element,
            shape: shape.filter(|s| s.len() <= MOST_AXES),
            items: None,
            floats: None,
        }
    }

    fn with_items(mut self, items: Option<Vec<Int>>) -> Self {
        let fits = |items: &Vec<Int>| {
            items.len() <= MOST_ITEMS
                && self.shape.as_ref().is_none_or(|s| {
                    let n = s.iter().try_fold(1usize, |n, d| n.checked_mul(d.known()?));
                    n == Some(items.len())
                })
        };
        self.items = items.filter(fits);
        self
    }

    fn of(value: &Value) -> Self {
        let items = value.data.as_ref().and_then(|d| {
            let whole = !d.element.is_float() && d.len() <= MOST_ITEMS && d.validate().is_ok();
            whole.then(|| d.to_i64_vec().into_iter().map(Int::Known).collect())
        });
        let small = |d: &&TensorData| d.element.is_float() && d.len() <= MOST_AXES;
        Self {
            floats: value
                .data
                .as_ref()
                .filter(small)
                .map(TensorData::to_f32_vec),
            ..Self::new(value.element, value.shape.clone()).with_items(items)
        }
    }

    /// Replaces what was stated of a value where `self`, which follows from the graph, says more.
    fn settle(mut self, stated: &mut Self) {
        self.element = self.element.or(stated.element);
        self.shape = match (self.shape, stated.shape.take()) {
            (Some(f), Some(s)) if f.len() == s.len() => {
                let settle = |(f, s)| if f == Dim::Unknown { s } else { f };
                Some(f.into_iter().zip(s).map(settle).collect())
            }
            (Some(f), _) => Some(f),
            (None, s) => s,
        };
        *stated = self;
    }

    fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// All elements, where every one is known.
    fn known_items(&self) -> Option<Vec<i64>> {
        self.items.as_ref()?.iter().map(Int::known).collect()
    }
}

/// The axis as an index, negative ones counted from the end.
pub(super) fn axis_index(axis: i64, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 {
        axis.checked_add(rank_i)?
    } else {
        axis
    };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// Product of extents: known, or the one that isn't where all others are 1.
pub(super) fn product(dims: &[Dim]) -> Dim {
    let mut known = 1usize;
    let mut open: Option<&Dim> = None;
    let mut several = false;
    for d in dims {
        match d {
            Dim::Known(n) => match known.checked_mul(*n) {
                Some(n) => known = n,
                None => return Dim::Unknown,
            },
            other => several |= open.replace(other).is_some(),
        }
    }
    match open {
        None => Dim::Known(known),
        Some(_) if known == 0 => Dim::Known(0),
        Some(d) if known == 1 && !several => d.clone(),
        Some(_) => Dim::Unknown,
    }
}

/// Two statements about one extent that must agree; the more telling one.
pub(super) fn merge(a: &Dim, b: &Dim) -> Dim {
    match (a, b) {
        (Dim::Known(_), _) | (_, Dim::Unknown) => a.clone(),
        (_, Dim::Known(_)) | (Dim::Unknown, _) => b.clone(),
        (Dim::Symbol(_), Dim::Symbol(_)) => a.clone(),
    }
}

/// Shape after broadcasting; `None` where ranks are unknown or extents contradict each other.
pub(super) fn broadcast(shapes: &[Option<&Vec<Dim>>]) -> Option<Vec<Dim>> {
    let shapes: Vec<&Vec<Dim>> = shapes.iter().copied().collect::<Option<_>>()?;
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![Dim::Known(1); rank];
    for shape in shapes {
        for (slot, dim) in out[rank - shape.len()..].iter_mut().zip(shape) {
            let joined = match (&*slot, dim) {
                (Dim::Known(1), d) | (d, Dim::Known(1)) => d.clone(),
                (Dim::Known(a), Dim::Known(b)) if a != b => return None,
                (Dim::Known(a), _) | (_, Dim::Known(a)) => Dim::Known(*a),
                (a, b) if a == b => a.clone(),
                _ => Dim::Unknown,
            };
            *slot = joined;
        }
    }
    Some(out)
}

impl Graph {
    /// Fills in element types and shapes of all computed values. What follows from inputs and constants
    /// replaces what was stated before; where nothing follows, the statement stays.
    pub fn infer_shapes(&mut self) {
        let mut infos: Vec<Info> = self.values.iter().map(Info::of).collect();
        outputs_into(&self.nodes, &mut infos);
        for (value, info) in self.values.iter_mut().zip(infos) {
            if value.data.is_none() {
                value.element = info.element;
                value.shape = info.shape;
            }
        }
    }

    /// Fills in types and shapes of one node's outputs from what is known of its inputs (but not of integers
    /// that other nodes compute): for readers, which need some types before the graph is whole.
    pub(crate) fn infer_node(&mut self, index: usize) {
        let Some(node) = self.nodes.get(index) else {
            return;
        };
        let read = |id: &Option<_>| id.map_or_else(Info::default, |id| Info::of(self.value(id)));
        let inputs: Vec<Info> = node.inputs.iter().map(read).collect();
        let found = outputs(node, inputs.iter().collect());
        for (output, found) in node.outputs.clone().into_iter().zip(found) {
            let Some(id) = output else { continue };
            let value = self.value_mut(id);
            let mut stated = Info::new(value.element, value.shape.take());
            found.settle(&mut stated);
            (value.element, value.shape) = (stated.element, stated.shape);
        }
    }

    /// Gives symbols a size everywhere, then infers shapes: `("N", 1)` makes a model's shapes those of one
    /// sample. Inputs' symbols that are not named stay as they are.
    pub fn bind_symbols(&mut self, sizes: &BTreeMap<String, usize>) {
        for value in &mut self.values {
            for dim in value.shape.iter_mut().flatten() {
                if let Dim::Symbol(name) = dim
                    && let Some(&size) = sizes.get(&**name)
                {
                    *dim = Dim::Known(size);
                }
            }
        }
        self.infer_shapes();
    }

    /// Sets the first extent of every input of rank 1 or more that isn't known, with the symbol it bears
    /// wherever that occurs, and infers shapes.
    pub fn bind_batch(&mut self, batch: usize) {
        let mut sizes = BTreeMap::new();
        for &id in &self.inputs.clone() {
            if let Some(dim) = self
                .value_mut(id)
                .shape
                .as_mut()
                .and_then(|s| s.first_mut())
            {
                match dim {
                    Dim::Symbol(name) => {
                        sizes.insert(name.to_string(), batch);
                    }
                    Dim::Unknown => *dim = Dim::Known(batch),
                    Dim::Known(_) => {}
                }
            }
        }
        self.bind_symbols(&sizes);
    }
}

/// Carries what is known of inputs and constants through the nodes, in their order.
fn outputs_into(nodes: &[Node], infos: &mut [Info]) {
    for node in nodes {
        let inputs = node
            .inputs
            .iter()
            .map(|i| infos.get(i.as_ref()?.0 as usize));
        let found = outputs(node, inputs.map(|i| i.unwrap_or(NOTHING)).collect());
        for (output, found) in node.outputs.iter().zip(found) {
            if let Some(stated) = output.and_then(|id| infos.get_mut(id.0 as usize)) {
                found.settle(stated);
            }
        }
    }
}

/// What a node's rule sees.
pub(super) struct Cx<'a> {
    node: &'a Node,
    inputs: Vec<&'a Info>,
}

const NOTHING: &Info = &Info {
    element: None,
    shape: None,
    items: None,
    floats: None,
};

impl<'a> Cx<'a> {
    fn input(&self, position: usize) -> &'a Info {
        self.inputs.get(position).copied().unwrap_or(NOTHING)
    }

    fn has(&self, position: usize) -> bool {
        self.node.inputs.get(position).copied().flatten().is_some()
    }

    fn inputs(&self) -> impl Iterator<Item = &'a Info> {
        self.inputs.iter().copied()
    }

    fn element(&self) -> Option<ElementType> {
        self.input(0).element
    }

    /// Element type and shape of the first input.
    fn same(&self) -> Info {
        Info::new(self.element(), self.input(0).shape.clone())
    }
}

/// What is known of the outputs of a node.
fn outputs(node: &Node, inputs: Vec<&Info>) -> Vec<Info> {
    let cx = Cx { node, inputs };
    let count = node.outputs.len();
    let mut all = match &node.op {
        Op::Split { axis, num_outputs } => indexing::split(&cx, *axis, *num_outputs),
        Op::Dropout => {
            let mask = Info::new(Some(ElementType::Bool), cx.input(0).shape.clone());
            vec![cx.input(0).clone(), mask]
        }
        Op::DynamicQuantizeLinear => vec![
            Info::new(Some(ElementType::U8), cx.input(0).shape.clone()),
            Info::new(Some(ElementType::F32), Some(Vec::new())),
            Info::new(Some(ElementType::U8), Some(Vec::new())),
        ],
        _ => vec![first(&cx)],
    };
    all.resize_with(count, Info::default);
    all
}

fn first(cx: &Cx<'_>) -> Info {
    let integer = Some(ElementType::I64);
    match &cx.node.op {
        Op::Conv { .. }
        | Op::ConvTranspose { .. }
        | Op::MaxPool { .. }
        | Op::AveragePool { .. }
        | Op::GlobalAveragePool
        | Op::GlobalMaxPool => windows::windowed(cx),
        Op::Resize { axes, .. } => windows::resize(cx, axes.as_deref()),
        Op::Gemm {
            trans_a, trans_b, ..
        } => layout::gemm(cx, *trans_a, *trans_b),
        Op::MatMul => layout::matmul(cx),
        Op::BatchNormalization { .. }
        | Op::InstanceNormalization { .. }
        | Op::LayerNormalization { .. }
        | Op::LeakyRelu { .. }
        | Op::Elu { .. }
        | Op::Celu { .. }
        | Op::Selu { .. }
        | Op::ThresholdedRelu { .. }
        | Op::HardSigmoid { .. }
        | Op::Gelu { .. }
        | Op::Clip
        | Op::Softmax { .. }
        | Op::LogSoftmax { .. } => cx.same(),
        Op::Unary(op) => unary(cx, *op),
        Op::Binary(op) => binary(cx, *op),
        Op::Variadic(op) => variadic(cx, *op),
        Op::Where => select(cx),
        Op::Concat { axis } => layout::concat(cx, *axis),
        Op::Slice => indexing::slice(cx),
        Op::Gather { axis } => indexing::gather(cx, *axis),
        Op::Reshape { allow_zero } => layout::reshape(cx, *allow_zero),
        Op::Flatten { axis } => layout::flatten(cx, *axis),
        Op::Transpose { perm } => layout::transpose(cx, perm.as_deref()),
        Op::Squeeze => layout::squeeze(cx),
        Op::Unsqueeze => layout::unsqueeze(cx),
        Op::Expand => layout::expand(cx),
        Op::Tile => layout::tile(cx),
        Op::Pad { .. } => layout::pad(cx),
        Op::Reduce {
            op,
            keep_dims,
            noop_with_empty_axes,
        } => indexing::reduce(cx, *op, *keep_dims, *noop_with_empty_axes),
        Op::ArgMax {
            axis, keep_dims, ..
        }
        | Op::ArgMin {
            axis, keep_dims, ..
        } => {
            let shape = indexing::reduced(cx.input(0), Some(&[*axis]), *keep_dims);
            Info::new(integer, shape)
        }
        Op::Cast { to } => {
            let items = cx.input(0).items.clone().filter(|_| to.is_integer());
            Info::new(Some(*to), cx.input(0).shape.clone()).with_items(items)
        }
        Op::Shape { start, end } => indexing::shape(cx, *start, *end),
        Op::Size => {
            let size = cx
                .input(0)
                .shape
                .as_ref()
                .map(|s| vec![Int::of(&product(s))]);
            Info::new(integer, Some(vec![])).with_items(size)
        }
        Op::ConstantOfShape { value } => indexing::constant_of_shape(cx, value),
        Op::Range => indexing::range(cx),
        Op::Identity | Op::Dropout => cx.input(0).clone(),
        Op::QuantizeLinear { to, .. } => Info::new(Some(*to), cx.input(0).shape.clone()),
        Op::DequantizeLinear { .. } => Info::new(cx.input(1).element, cx.input(0).shape.clone()),
        Op::Split { .. } | Op::DynamicQuantizeLinear | Op::Unsupported { .. } => Info::default(),
    }
}

fn unary(cx: &Cx<'_>, op: UnaryOp) -> Info {
    let x = cx.input(0);
    let logical = matches!(op, UnaryOp::Not | UnaryOp::IsNaN);
    let element = if logical {
        Some(ElementType::Bool)
    } else {
        x.element
    };
    let apply = |v: i64| match op {
        UnaryOp::Neg => v.checked_neg(),
        UnaryOp::Abs => v.checked_abs(),
        UnaryOp::Sign => Some(v.signum()),
        UnaryOp::Not => Some(i64::from(v == 0)),
        UnaryOp::Relu => Some(v.max(0)),
        _ => None,
    };
    let items = x.items.as_ref().map(|items| {
        items
            .iter()
            .map(|i| i.known().and_then(apply).map_or(Int::Unknown, Int::Known))
            .collect()
    });
    Info::new(element, x.shape.clone()).with_items(items)
}

fn binary(cx: &Cx<'_>, op: BinaryOp) -> Info {
    let (a, b) = (cx.input(0), cx.input(1));
    let element = match op {
        _ if op.is_logical() => Some(ElementType::Bool),
        BinaryOp::Pow => a.element,
        _ => a.element.or(b.element),
    };
    let shape = match op {
        BinaryOp::PRelu => a.shape.clone(),
        _ => broadcast(&[a.shape.as_ref(), b.shape.as_ref()]),
    };
    let items = zip_items(&[a, b], |v| match v {
        [a, b] => arithmetic(op, a, b),
        _ => Int::Unknown,
    });
    Info::new(element, shape).with_items(items)
}

/// Applies `f` element by element to tensors of which each has either one element or as many as the largest.
fn zip_items(inputs: &[&Info], f: impl Fn(&[&Int]) -> Int) -> Option<Vec<Int>> {
    let items: Vec<&Vec<Int>> = inputs
        .iter()
        .map(|i| i.items.as_ref())
        .collect::<Option<_>>()?;
    // Broadcasting of equal numbers of elements in unequal shapes ([3,1] with [3]) would mix them up.
    if inputs.iter().any(|i| i.rank().is_none_or(|r| r > 1)) {
        return None;
    }
    let len = if items.iter().any(|i| i.is_empty()) {
        0
    } else {
        items.iter().map(|i| i.len()).max()?
    };
    if items.iter().any(|i| i.len() != 1 && i.len() != len) {
        return None;
    }
    Some(
        (0..len)
            .map(|at| {
                let row: Vec<&Int> = items
                    .iter()
                    .map(|i| if i.len() == 1 { &i[0] } else { &i[at] })
                    .collect();
                f(&row)
            })
            .collect(),
    )
}

fn arithmetic(op: BinaryOp, a: &Int, b: &Int) -> Int {
    use Int::{Known, Symbol};
    if let (Known(a), Known(b)) = (a, b) {
        let (a, b) = (*a, *b);
        let result = match op {
            BinaryOp::Add => a.checked_add(b),
            BinaryOp::Sub => a.checked_sub(b),
            BinaryOp::Mul => a.checked_mul(b),
            // Integer division of ONNX truncates, as Rust's does.
            BinaryOp::Div => a.checked_div(b),
            BinaryOp::Mod { fmod: true } => a.checked_rem(b),
            BinaryOp::Mod { fmod: false } => a.checked_rem(b).and_then(|r| {
                if r != 0 && (r < 0) != (b < 0) {
                    r.checked_add(b)
                } else {
                    Some(r)
                }
            }),
            BinaryOp::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            BinaryOp::Equal => Some(i64::from(a == b)),
            BinaryOp::Less => Some(i64::from(a < b)),
            BinaryOp::LessOrEqual => Some(i64::from(a <= b)),
            BinaryOp::Greater => Some(i64::from(a > b)),
            BinaryOp::GreaterOrEqual => Some(i64::from(a >= b)),
            BinaryOp::And => Some(i64::from(a != 0 && b != 0)),
            BinaryOp::Or => Some(i64::from(a != 0 || b != 0)),
            BinaryOp::Xor => Some(i64::from((a != 0) != (b != 0))),
            BinaryOp::PRelu => None,
        };
        return result.map_or(Int::Unknown, Known);
    }
    match (op, a, b) {
        (BinaryOp::Add, Symbol(_), Known(0))
        | (BinaryOp::Sub, Symbol(_), Known(0))
        | (BinaryOp::Mul, Symbol(_), Known(1))
        | (BinaryOp::Div, Symbol(_), Known(1)) => a.clone(),
        (BinaryOp::Add, Known(0), Symbol(_)) | (BinaryOp::Mul, Known(1), Symbol(_)) => b.clone(),
        (BinaryOp::Div, Symbol(x), Symbol(y)) if x == y => Known(1),
        (BinaryOp::Sub, Symbol(x), Symbol(y)) if x == y => Known(0),
        (BinaryOp::Equal, Symbol(x), Symbol(y)) if x == y => Known(1),
        // A symbol stands for an extent, and extents are not negative: `where(shape == -1, …)`.
        (BinaryOp::Equal, Symbol(_), Known(n)) | (BinaryOp::Equal, Known(n), Symbol(_))
            if *n < 0 =>
        {
            Known(0)
        }
        _ => Int::Unknown,
    }
}

fn variadic(cx: &Cx<'_>, op: VariadicOp) -> Info {
    let inputs: Vec<&Info> = cx.inputs().collect();
    let shapes: Vec<_> = inputs.iter().map(|i| i.shape.as_ref()).collect();
    let items = zip_items(&inputs, |row| {
        let known: Option<Vec<i64>> = row.iter().map(|i| i.known()).collect();
        let result = known.and_then(|v| match op {
            VariadicOp::Min => v.into_iter().min(),
            VariadicOp::Max => v.into_iter().max(),
            VariadicOp::Sum => v.into_iter().try_fold(0i64, i64::checked_add),
            VariadicOp::Mean => None,
        });
        match (result, row) {
            (Some(v), _) => Int::Known(v),
            (None, [one]) => (*one).clone(),
            _ => Int::Unknown,
        }
    });
    Info::new(cx.element(), broadcast(&shapes)).with_items(items)
}

fn select(cx: &Cx<'_>) -> Info {
    let inputs = [cx.input(0), cx.input(1), cx.input(2)];
    let shapes: Vec<_> = inputs.iter().map(|i| i.shape.as_ref()).collect();
    let items = zip_items(&inputs, |row| match row {
        [Int::Known(0), _, no] => (*no).clone(),
        [Int::Known(_), yes, _] => (*yes).clone(),
        [_, yes, no] if yes == no => (*yes).clone(),
        _ => Int::Unknown,
    });
    Info::new(inputs[1].element.or(inputs[2].element), broadcast(&shapes)).with_items(items)
}
