//! Convolution and transposed convolution as candle operators.

use super::{
    Conv2dGeometry, conv,
    host::{elements, output, read, read2, tensor_like},
    window::ConvShape,
};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

type Gradients = (Option<Tensor>, Option<Tensor>);

struct Conv2d(Conv2dGeometry);

impl Conv2d {
    const NAME: &'static str = "conv2d";

    fn run(
        &self,
        (x, xl): (&CpuStorage, &Layout),
        (w, wl): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = ConvShape::forward(Self::NAME, xl.dims(), wl.dims(), &self.0)?;
        let bias = match bias {
            Some((b, bl)) => Some(bias_elements(Self::NAME, b, bl, shape.o)?),
            None => None,
        };
        let result = conv::forward(
            &shape,
            &elements(x, xl, Self::NAME)?,
            &elements(w, wl, Self::NAME)?,
            bias.as_deref(),
        );
        output(result, (shape.n, shape.o, shape.ho, shape.wo))
    }

    fn gradients(&self, x: &Tensor, w: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        let shape = ConvShape::forward(Self::NAME, x.dims(), w.dims(), &self.0)?;
        let of_input = if x.track_op() {
            let data = read2(gradient, w, Self::NAME, |g, w| {
                Ok(conv::input_gradient(&shape, g, w))
            })?;
            Some(tensor_like(data, x)?)
        } else {
            None
        };
        let of_weight = if w.track_op() {
            let data = read2(x, gradient, Self::NAME, |x, g| {
                Ok(conv::weight_gradient(&shape, x, g))
            })?;
            Some(tensor_like(data, w)?)
        } else {
            None
        };
        Ok((of_input, of_weight))
    }
}

fn bias_elements<'a>(
    op: &str,
    bias: &'a CpuStorage,
    layout: &Layout,
    channels: usize,
) -> Result<std::borrow::Cow<'a, [f32]>> {
    if layout.dims() != [channels] {
        bail!(
            "{op}: the bias has shape {:?}, expected [{channels}]",
            layout.dims()
        )
    }
    elements(bias, layout, op)
}

fn bias_gradient(op: &str, bias: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
    if !bias.track_op() {
        return Ok(None);
    }
    let (_, channels, height, width) = gradient.dims4()?;
    let sums = read(gradient, op, |g| {
        Ok(conv::channel_sums(g, channels, height * width))
    })?;
    Ok(Some(tensor_like(sums, bias)?))
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, xl), (w, wl), None)
    }
    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        self.gradients(x, w, gradient)
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, xl), (w, wl), Some((b, bl)))
    }
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_input, of_weight) = self.gradients(x, w, gradient)?;
        Ok((of_input, of_weight, bias_gradient(Self::NAME, b, gradient)?))
    }
}

/// `x` N×C×H×W, `weight` O×(C/groups)×kH×kW, `bias` O → N×O×H'×W'. Dense, grouped, depthwise; differentiable in all three.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Conv2d(geometry)),
        None => x.apply_op2(&weight, Conv2d(geometry)),
    }
}

/// The gradient of a convolution by its input, used forwards.
struct ConvTranspose2d {
    geometry: Conv2dGeometry,
    output_padding: (usize, usize),
}

impl ConvTranspose2d {
    const NAME: &'static str = "conv_transpose2d";

    fn shape(&self, x: &[usize], weight: &[usize]) -> Result<ConvShape> {
        ConvShape::transposed(Self::NAME, x, weight, &self.geometry, self.output_padding)
    }

    fn run(
        &self,
        (x, xl): (&CpuStorage, &Layout),
        (w, wl): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = self.shape(xl.dims(), wl.dims())?;
        let mut result = conv::input_gradient(
            &shape,
            &elements(x, xl, Self::NAME)?,
            &elements(w, wl, Self::NAME)?,
        );
        if let Some((b, bl)) = bias {
            let bias = bias_elements(Self::NAME, b, bl, shape.c)?;
            conv::add_bias(&mut result, &bias, shape.h * shape.w);
        }
        output(result, (shape.n, shape.c, shape.h, shape.w))
    }

    fn gradients(&self, x: &Tensor, w: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        let shape = self.shape(x.dims(), w.dims())?;
        let of_input = if x.track_op() {
            let data = read2(gradient, w, Self::NAME, |g, w| {
                Ok(conv::forward(&shape, g, w, None))
            })?;
            Some(tensor_like(data, x)?)
        } else {
            None
        };
        let of_weight = if w.track_op() {
            let data = read2(gradient, x, Self::NAME, |g, x| {
                Ok(conv::weight_gradient(&shape, g, x))
            })?;
            Some(tensor_like(data, w)?)
        } else {
            None
        };
        Ok((of_input, of_weight))
    }
}

impl CustomOp2 for ConvTranspose2d {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, xl), (w, wl), None)
    }
    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        self.gradients(x, w, gradient)
    }
}

impl CustomOp3 for ConvTranspose2d {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, xl), (w, wl), Some((b, bl)))
    }
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_input, of_weight) = self.gradients(x, w, gradient)?;
        Ok((of_input, of_weight, bias_gradient(Self::NAME, b, gradient)?))
    }
}

/// `x` N×C×H×W, `weight` C×(O/groups)×kH×kW (ONNX order) → N×O×H'×W', H' = (H−1)·s + d·(k−1) + 1 + output_padding − pads.
/// Differentiable in all three.
pub fn conv_transpose2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
    output_padding: (usize, usize),
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let op = ConvTranspose2d {
        geometry,
        output_padding,
    };
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op),
        None => x.apply_op2(&weight, op),
    }
}
