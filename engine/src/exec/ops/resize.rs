//! Resize: nearest as an index map, linear and cubic as one small matrix per axis, so that gradients come for free.

use super::{R, axis_of, need, optional, shape::transpose};
use crate::{
    exec::{
        Fail,
        elementwise::{Bin, binary},
        index::{IndexMap, take},
        pool::on_pool,
        value::{Val, count, tensor_f32},
    },
    graph::{CoordinateMode, NearestMode, Op, ResizeMode},
};

/// One axis to resize.
struct Axis {
    index: usize,
    input: usize,
    output: usize,
    scale: f64,
    roi: (f64, f64),
}

impl Axis {
    /// Where output position `o` lies in the input; `None`: outside, to be filled with the extrapolation value.
    fn source(&self, o: usize, mode: CoordinateMode) -> Option<f64> {
        let (o, input) = (o as f64, self.input as f64);
        // The unrounded output extent, as the standard has it.
        let output = self.scale * input;
        let x = match mode {
            CoordinateMode::HalfPixel => (o + 0.5) / self.scale - 0.5,
            CoordinateMode::HalfPixelSymmetric => {
                let adjustment = self.output as f64 / output;
                input / 2.0 * (1.0 - adjustment) + (o + 0.5) / self.scale - 0.5
            }
            // With one output pixel the standard's (o + 0.5)/scale − 0.5 is replaced by −0.5, clamped to 0.
            CoordinateMode::PytorchHalfPixel if output == 1.0 => -0.5,
            CoordinateMode::PytorchHalfPixel => (o + 0.5) / self.scale - 0.5,
            CoordinateMode::AlignCorners if output == 1.0 => 0.0,
            CoordinateMode::AlignCorners => o * (input - 1.0) / (output - 1.0),
            CoordinateMode::Asymmetric => o / self.scale,
            CoordinateMode::TfCropAndResize => {
                let (a, b) = self.roi;
                let x = if output == 1.0 {
                    a * (input - 1.0) + (b - a) * (input - 1.0) / 2.0
                } else {
                    a * (input - 1.0) + o * (b - a) * (input - 1.0) / (output - 1.0)
                };
                if x < 0.0 || x > input - 1.0 {
                    return None;
                }
                x
            }
        };
        Some(x)
    }

    fn identity(&self) -> bool {
        self.input == self.output && (self.scale - 1.0).abs() < 1e-9 && self.roi == (0.0, 1.0)
    }

    fn nearest(&self, o: usize, mode: CoordinateMode, nearest: NearestMode) -> Option<usize> {
        if self.input == 0 {
            return None;
        }
        let x = self.source(o, mode)?;
        let i = match nearest {
            NearestMode::RoundPreferFloor => (x - 0.5).ceil(),
            NearestMode::RoundPreferCeil => (x + 0.5).floor(),
            NearestMode::Floor => x.floor(),
            NearestMode::Ceil => x.ceil(),
        };
        Some(i.clamp(0.0, self.input as f64 - 1.0) as usize)
    }

    /// Weights of the input positions for every output position (output×input), and which outputs are outside.
    fn weights(&self, k: &Kernel) -> (Vec<f32>, Vec<bool>) {
        let mut w = vec![0f32; self.output * self.input];
        let mut outside = vec![false; self.output];
        // Antialiasing stretches the kernel when shrinking.
        let squeeze = if k.antialias {
            self.scale.min(1.0)
        } else {
            1.0
        };
        let reach = k.support() / squeeze;
        let last = self.input as i64 - 1;
        for o in 0..self.output {
            let Some(x) = self.source(o, k.coordinates) else {
                outside[o] = true;
                continue;
            };
            let around = (x - reach).floor() as i64..=(x + reach).ceil() as i64;
            let taps: Vec<(i64, f64)> = around
                .map(|i| (i, k.at((i as f64 - x) * squeeze)))
                .filter(|&(i, v)| v != 0.0 && (!k.exclude_outside || (0..=last).contains(&i)))
                .collect();
            let total: f64 = taps.iter().map(|t| t.1).sum();
            let total = if total == 0.0 { 1.0 } else { total };
            for (i, v) in taps {
                w[o * self.input + i.clamp(0, last) as usize] += (v / total) as f32;
            }
        }
        (w, outside)
    }
}

struct Kernel {
    cubic: Option<f64>,
    coordinates: CoordinateMode,
    exclude_outside: bool,
    antialias: bool,
}

impl Kernel {
    fn support(&self) -> f64 {
        if self.cubic.is_some() { 2.0 } else { 1.0 }
    }
    /// The kernel at distance `d`: a triangle, or Keys' cubic with parameter `a`.
    fn at(&self, d: f64) -> f64 {
        let d = d.abs();
        match self.cubic {
            None => (1.0 - d).max(0.0),
            Some(a) if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            Some(a) if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
            Some(_) => 0.0,
        }
    }
}

pub fn resize(op: &Op, inputs: &[Option<Val>]) -> R<Val> {
    let Op::Resize {
        mode,
        coordinates,
        nearest,
        cubic_coeff,
        exclude_outside,
        extrapolation,
        antialias,
        axes,
        keep_aspect,
    } = op
    else {
        return Err(Fail("not a Resize".into()));
    };
    let x = need(inputs, 0)?;
    let plan = plan(
        x,
        inputs,
        axes.as_deref(),
        keep_aspect.as_deref(),
        *coordinates,
    )?;
    let mut shape = x.shape().to_vec();
    for a in &plan {
        shape[a.index] = a.output;
    }
    let n = count(&shape)?;
    if n > 0 && x.len() == 0 {
        return Err(Fail("an empty input has nothing to resize".into()));
    }
    if n == 0 || *mode == ResizeMode::Nearest {
        let mut map: Vec<Vec<Option<usize>>> = x
            .shape()
            .iter()
            .map(|&d| (0..d).map(Some).collect())
            .collect();
        for a in plan.iter().filter(|a| !a.identity()) {
            map[a.index] = (0..a.output)
                .map(|o| a.nearest(o, *coordinates, *nearest))
                .collect();
        }
        return take(
            x,
            IndexMap::per_axis(x.shape(), &map)?,
            f64::from(*extrapolation),
        );
    }
    let kernel = Kernel {
        cubic: (*mode == ResizeMode::Cubic).then_some(f64::from(*cubic_coeff)),
        coordinates: *coordinates,
        exclude_outside: *exclude_outside,
        antialias: *antialias,
    };
    let mut y = x.clone();
    for a in plan.iter().filter(|a| !a.identity()) {
        y = along(&y, a, &kernel, f64::from(*extrapolation))?;
    }
    super::float_out(y.tensor()?.clone(), x.element())
}

/// Interpolates along one axis: rows×input times input×output.
fn along(x: &Val, a: &Axis, kernel: &Kernel, extrapolation: f64) -> R<Val> {
    count(&[a.input, a.output])?;
    let (w, outside) = a.weights(kernel);
    let w = tensor_f32(w, &[a.output, a.input])?.t()?;
    let rank = x.rank();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(a.index, rank - 1);
    let moved = transpose(x, Some(&perm))?;
    let mut shape = moved.shape().to_vec();
    let rows = moved.len() / a.input.max(1);
    let m = moved.tensor()?.reshape((rows, a.input))?;
    let mut y = on_pool(|| m.matmul(&w))?;
    if outside.contains(&true) {
        let fill = outside
            .iter()
            .map(|&o| if o { extrapolation as f32 } else { 0.0 })
            .collect();
        y = binary(&y, &tensor_f32(fill, &[a.output])?, Bin::Add)?;
    }
    shape[rank - 1] = a.output;
    let y = Val::f32(y.reshape(shape)?);
    transpose(&y, Some(&perm))
}

fn plan(
    x: &Val,
    inputs: &[Option<Val>],
    axes: Option<&[i64]>,
    keep_aspect: Option<&str>,
    coordinates: CoordinateMode,
) -> R<Vec<Axis>> {
    let rank = x.rank();
    let axes: Vec<usize> = match axes {
        Some(a) => a.iter().map(|&a| axis_of(a, rank)).collect::<R<_>>()?,
        None => (0..rank).collect(),
    };
    let given = |i: usize| optional(inputs, i).filter(|v| v.len() > 0);
    let check = |n: usize, what: &str| {
        if n == axes.len() {
            Ok(())
        } else {
            Err(Fail(format!("{n} {what} for {} axes", axes.len())))
        }
    };
    let dims: Vec<usize> = axes.iter().map(|&a| x.shape()[a]).collect();
    let (scales, outputs): (Vec<f64>, Vec<usize>) = match (given(2), given(3)) {
        (Some(s), _) => {
            let s = s.to_f32s()?;
            check(s.len(), "scales")?;
            if s.iter().any(|&s| !(s > 0.0 && s.is_finite())) {
                return Err(Fail(format!("scales {s:?} must be positive")));
            }
            let out = s
                .iter()
                .zip(&dims)
                .map(|(&s, &d)| (s * d as f32).floor() as usize)
                .collect();
            (s.iter().map(|&s| f64::from(s)).collect(), out)
        }
        (None, Some(z)) => {
            let z = z.to_ints()?;
            check(z.len(), "sizes")?;
            let z = z
                .iter()
                .map(|&v| usize::try_from(v).map_err(|_| Fail(format!("sizes {z:?}"))))
                .collect::<R<Vec<_>>>()?;
            let scales: Vec<f64> = z
                .iter()
                .zip(&dims)
                .map(|(&o, &d)| o as f64 / d.max(1) as f64)
                .collect();
            let common = match keep_aspect {
                Some("not_larger") => scales.iter().copied().reduce(f64::min),
                Some("not_smaller") => scales.iter().copied().reduce(f64::max),
                _ => None,
            };
            match common {
                Some(s) => (
                    vec![s; dims.len()],
                    dims.iter()
                        .map(|&d| (s * d as f64 + 0.5).floor() as usize)
                        .collect(),
                ),
                None => (scales, z),
            }
        }
        (None, None) => return Err(Fail("neither scales nor sizes are given".into())),
    };
    let roi = match given(1) {
        Some(v) if coordinates == CoordinateMode::TfCropAndResize => {
            let v = v.to_f64s()?;
            check(v.len() / 2, "regions of interest")?;
            v
        }
        _ if coordinates == CoordinateMode::TfCropAndResize => {
            return Err(Fail("tf_crop_and_resize needs a region of interest".into()));
        }
        _ => [vec![0.0; axes.len()], vec![1.0; axes.len()]].concat(),
    };
    let n = axes.len();
    Ok((0..n)
        .map(|i| Axis {
            index: axes[i],
            input: dims[i],
            output: outputs[i],
            scale: scales[i],
            roi: (roi[i], roi[n + i]),
        })
        .collect())
}
