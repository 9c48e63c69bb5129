//! One layer: its weights as codes and codebooks, what they take, and the edit of the graph.

use super::k_means::{k_means, nearest};
use crate::{
    compress::{
        Model,
        wiring::{Names, WeightForm, Wiring, add_constant, add_value, float_weight, weight_form},
    },
    exec::CancelToken,
    graph::{BinaryOp, ElementType, Layer, Node, Op, TensorData},
    measure::{coded_bytes, entropy_bits},
};

/// A layer's weights as codes into lists of values.
pub(super) struct Shared {
    codes: Vec<u8>,
    /// One list behind the other; each ascending but for a zero, which comes first.
    codebook: Vec<f32>,
    /// Where each channel's list begins; empty for one list.
    begins: Vec<i64>,
    /// Weights that are zero.
    zeros: usize,
    /// Squared error as a share of the weights' squares.
    error: f64,
}

/// Bytes of a layer's weights.
pub(super) struct Sizes {
    float: u64,
    /// Codes at their width, codebooks and their beginnings.
    stored: u64,
    /// The same with the codes entropy-coded.
    coded: u64,
    runtime: u64,
}

impl Sizes {
    pub fn all(&self) -> [u64; 4] {
        [self.float, self.stored, self.coded, self.runtime]
    }
}

impl Shared {
    /// Values of the longest list.
    fn longest(&self) -> usize {
        let ends = self.begins.iter().skip(1).copied();
        let ends = ends.chain([self.codebook.len() as i64]);
        let lengths = self.begins.iter().zip(ends).map(|(a, b)| (b - a) as usize);
        lengths.max().unwrap_or(self.codebook.len())
    }

    fn element(&self) -> ElementType {
        match self.longest() {
            ..=16 => ElementType::U4,
            _ => ElementType::U8,
        }
    }

    fn stored(&self) -> u64 {
        let codes = (self.codes.len() * self.element().bits()).div_ceil(8);
        (codes + 4 * (self.codebook.len() + self.begins.len())) as u64
    }

    /// Looks for the entropy-coded size, which takes a pass over the codes.
    pub fn sizes(&self) -> Sizes {
        let float = 4 * self.codes.len() as u64;
        let lists = 4 * (self.codebook.len() + self.begins.len()) as u64;
        Sizes {
            float,
            stored: self.stored(),
            coded: coded_bytes(&self.codes) + lists,
            runtime: float + lists,
        }
    }

    pub fn words(&self, sizes: &Sizes) -> String {
        let zero = match self.zeros {
            0 => String::new(),
            zeros => format!(", one of them 0 for the {zeros} weights that are"),
        };
        let lists = match self.begins.len() {
            0 => String::new(),
            channels => format!(
                " in each of {channels} channels ({} in all)",
                self.codebook.len()
            ),
        };
        format!(
            "{} values{lists} for {} weights{zero}; squared error {:.3} % of their power; {} bytes as float32 → {} stored ({}-bit codes \
             and codebook), {} with the codes entropy-coded (entropy {:.2} bits a weight), {} in memory while running",
            self.longest(),
            self.codes.len(),
            self.error * 100.0,
            sizes.float,
            sizes.stored,
            self.element().bits(),
            sizes.coded,
            entropy_bits(&self.codes),
            sizes.runtime,
        )
    }
}

/// Which values a layer's weights are to share.
pub(super) struct Values<'a> {
    /// Of a list, its zero included.
    pub most: usize,
    /// A list for each output channel.
    pub by_channel: bool,
    pub seed: u64,
    pub cancel: &'a CancelToken,
}

/// Clusters a layer's weights, or says why not; once cancelled, into fewer values.
pub(super) fn share(
    model: &Model,
    wiring: &Wiring,
    layers: &[Layer],
    layer: &Layer,
    asked: &Values<'_>,
) -> Result<Shared, String> {
    let &Values {
        most,
        by_channel,
        seed,
        cancel,
    } = asked;
    let graph = &model.graph;
    let shares = graph
        .shared_values()
        .iter()
        .any(|shared| shared.codes == layer.weight);
    match weight_form(graph, wiring, layer) {
        (1, WeightForm::Float) => {}
        (1, WeightForm::Quantized { .. } | WeightForm::Half) => {
            return Err("its weight is quantised already".to_owned());
        }
        _ if shares => return Err("its weights share values already".to_owned()),
        _ => return Err("its weight is computed from other values".to_owned()),
    }
    let weights = float_weight(graph, layer)?;
    if weights.iter().any(|w| !w.is_finite()) {
        return Err("its weights hold NaN or infinite values".to_owned());
    }
    if !wiring.has_own_weight(layers, layer) {
        return Err("its weight is used in several places".to_owned());
    }
    let zeros = weights.iter().filter(|w| **w == 0.0).count();
    let own = most - usize::from(zeros > 0);
    // How many elements lie behind one step of the channel's axis.
    let inner: usize = layer.weight_shape[layer.channel_axis + 1..]
        .iter()
        .product();
    let channels = match by_channel {
        true => layer.weight_shape[layer.channel_axis],
        false => 1,
    };
    let channel_of = |i: usize| if by_channel { i / inner % channels } else { 0 };
    let mut split: Vec<Vec<f32>> = vec![Vec::new(); channels];
    for (i, w) in weights.iter().enumerate() {
        split[channel_of(i)].push(*w);
    }
    let lists: Vec<Vec<f32>> = split
        .into_iter()
        .enumerate()
        .map(|(channel, weights)| {
            let seed = seed.wrapping_add(channel as u64);
            let found = k_means(weights.into_iter(), own, seed, cancel);
            let zero = (zeros > 0).then_some(0.0);
            zero.into_iter().chain(found).collect()
        })
        .collect();
    let first = usize::from(zeros > 0);
    let mut error = 0.0;
    let codes = weights.iter().enumerate().map(|(i, w)| {
        let list = &lists[channel_of(i)];
        let code = match w {
            0.0 => 0,
            w => first + nearest(&list[first..], *w),
        };
        error += (f64::from(*w) - f64::from(list[code])).powi(2);
        code as u8
    });
    let codes: Vec<u8> = codes.collect();
    let power: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
    let begins = lists.iter().scan(0, |at, list| {
        let begin = *at;
        *at += list.len() as i64;
        Some(begin)
    });
    let shared = Shared {
        begins: if by_channel {
            begins.collect()
        } else {
            Vec::new()
        },
        error: error / power.max(f64::MIN_POSITIVE),
        codes,
        codebook: lists.concat(),
        zeros,
    };
    let float = 4 * weights.len() as u64;
    if shared.stored() >= float {
        return Err(format!(
            "codes and codebook would take {} bytes, its {} weights take {float}",
            shared.stored(),
            weights.len(),
        ));
    }
    Ok(shared)
}

/// The weight becomes what a Gather computes; gives the nodes that come before its layer.
pub(super) fn write(
    model: &mut Model,
    layer: &Layer,
    shared: Shared,
    names: &mut Names,
) -> Vec<Node> {
    let graph = &mut model.graph;
    let weight = graph.value(layer.weight).name.clone();
    let mut constant = |suffix: &str, data: TensorData| {
        add_constant(graph, names.unique(format!("{weight}.{suffix}")), data)
    };
    let codes: Vec<i64> = shared.codes.iter().map(|c| i64::from(*c)).collect();
    let codes = TensorData::from_i64_as(shared.element(), &layer.weight_shape, &codes);
    let codes = constant("codes", codes);
    let values = TensorData::from_f32(&[shared.codebook.len()], &shared.codebook);
    let codebook = constant("codebook", values);
    let begins = (!shared.begins.is_empty()).then(|| {
        let mut shape = vec![1; layer.weight_shape.len()];
        shape[layer.channel_axis] = shared.begins.len();
        constant(
            "begins",
            TensorData::from_i64_as(ElementType::I32, &shape, &shared.begins),
        )
    });
    graph.value_mut(layer.weight).data = None;
    model.masks.remove(&weight);
    model.originals.remove(&weight);
    if shared.zeros > 0 {
        // Training leaves the zeros where they are.
        let zero = |at: usize| at == 0 || shared.begins.contains(&(at as i64));
        let kept = (0..shared.codebook.len()).map(|at| !zero(at)).collect();
        model.masks.insert(graph.value(codebook).name.clone(), kept);
    }
    let mut nodes = Vec::with_capacity(3);
    let mut node = |suffix: &str, op, inputs, output| {
        nodes.push(Node {
            name: names.unique(format!("{weight}.{suffix}")),
            op,
            inputs,
            outputs: vec![Some(output)],
        });
    };
    let mut value = |suffix: &str| {
        let name = format!("{}.{suffix}", graph.value(codes).name);
        add_value(graph, name, ElementType::I32, layer.weight)
    };
    let mut indices = value("int32");
    let cast = Op::Cast {
        to: ElementType::I32,
    };
    node("cast", cast, vec![Some(codes)], indices);
    if let Some(begins) = begins {
        let places = value("places");
        let add = Op::Binary(BinaryOp::Add);
        node("begin", add, vec![Some(indices), Some(begins)], places);
        indices = places;
    }
    let inputs = vec![Some(codebook), Some(indices)];
    node("share", Op::Gather { axis: 0 }, inputs, layer.weight);
    nodes
}
