//! From stored pixels to a network's input: resize, centre crop, channel order, (pixel · scale − mean) / std, layout.

use super::{
    DataError,
    arrays::{Array, Values},
    task::{Channels, Filter, Layout, Preprocess, Resize},
};
use image::{DynamicImage, GrayImage, RgbImage, imageops::FilterType};

/// How one sample lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Geometry {
    pub height: usize,
    pub width: usize,
    /// 1 or 3.
    pub channels: usize,
    /// Channels are the last axis (else the first).
    pub channels_last: bool,
}

/// What one sample becomes.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    resize: Option<Resize>,
    filter: FilterType,
    /// Width, height.
    crop: Option<(usize, usize)>,
    channels: Option<Channels>,
    layout: Layout,
    scale: f64,
    mean: Vec<f64>,
    std: Vec<f64>,
    /// Value of every byte, for every channel of the output (one entry where all are alike).
    tables: Vec<[f32; 256]>,
}

const MAX_SIDE: u32 = 16_384;

impl Recipe {
    pub fn new(spec: &Preprocess) -> Result<Self, DataError> {
        let bad = |message: String| Err(DataError::Task(format!("`preprocess`: {message}")));
        let sides: Vec<u32> = match spec.resize {
            Some(Resize::Exact(w, h)) => vec![w, h],
            Some(Resize::Shorter(side)) => vec![side],
            None => vec![],
        };
        let crop = spec.crop.map_or(vec![], |(w, h)| vec![w, h]);
        if let Some(side) = sides
            .iter()
            .chain(&crop)
            .find(|side| !(1..=MAX_SIDE).contains(*side))
        {
            return bad(format!("a side of {side} pixels; expected 1 to {MAX_SIDE}"));
        }
        if !spec.scale.is_finite() || spec.scale == 0.0 {
            return bad(format!(
                "scale is {}; expected a finite number other than 0",
                spec.scale
            ));
        }
        for (name, values) in [("mean", &spec.mean), ("std", &spec.std)] {
            if let Some(v) = values.iter().find(|v| !v.is_finite()) {
                return bad(format!("{name} holds {v}; expected finite numbers"));
            }
            if !matches!(values.len(), 0 | 1 | 3) {
                return bad(format!(
                    "{name} has {} numbers; expected one, or one per channel",
                    values.len()
                ));
            }
        }
        if spec.std.contains(&0.0) {
            return bad("std holds 0, by which nothing can be divided".into());
        }
        let mut recipe = Self {
            resize: spec.resize,
            filter: match spec.filter {
                Filter::Nearest => FilterType::Nearest,
                Filter::Bilinear => FilterType::Triangle,
                Filter::Bicubic => FilterType::CatmullRom,
                Filter::Lanczos => FilterType::Lanczos3,
            },
            crop: spec.crop.map(|(w, h)| (w as usize, h as usize)),
            channels: spec.channels,
            layout: spec.layout,
            scale: spec.scale,
            mean: spec.mean.clone(),
            std: spec.std.clone(),
            tables: Vec::new(),
        };
        let kinds = recipe.mean.len().max(recipe.std.len()).max(1);
        recipe.tables = (0..kinds)
            .map(|channel| std::array::from_fn(|byte| recipe.value(byte as f64, channel)))
            .collect();
        Ok(recipe)
    }

    /// Computed in f64 and rounded once.
    fn value(&self, pixel: f64, channel: usize) -> f32 {
        let pick = |values: &[f64], default: f64| {
            values
                .get(if values.len() > 1 { channel } else { 0 })
                .copied()
                .unwrap_or(default)
        };
        ((pixel * self.scale - pick(&self.mean, 0.0)) / pick(&self.std, 1.0)) as f32
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// A black pixel as the network sees it.
    pub fn black(&self, channel: usize) -> f32 {
        self.value(0.0, channel)
    }

    /// Whether pixels are resampled, which is worth doing in parallel.
    pub fn resamples(&self) -> bool {
        self.resize.is_some()
    }

    fn out_channels(&self, stored: usize) -> usize {
        match self.channels {
            Some(Channels::Gray) => 1,
            Some(Channels::Rgb | Channels::Bgr) => 3,
            None => stored,
        }
    }

    /// Shape of a sample of the given geometry after everything is done. Image files have no fixed geometry (`None`).
    pub fn sample_shape(
        &self,
        stored: Option<Geometry>,
        what: &str,
    ) -> Result<Vec<usize>, DataError> {
        let resized = match (self.resize, stored) {
            (Some(Resize::Exact(w, h)), _) => Some((w as usize, h as usize)),
            (Some(Resize::Shorter(side)), Some(g)) => Some(shorter(g.width, g.height, side)),
            (None, Some(g)) => Some((g.width, g.height)),
            (_, None) => None,
        };
        let (width, height) = match (self.crop, resized) {
            (Some((w, h)), Some((rw, rh))) if w > rw || h > rh => {
                return Err(DataError::Task(format!(
                    "`preprocess`: the crop of {w}×{h} is larger than the images of {what}, which are {rw}×{rh}"
                )));
            }
            (Some(crop), _) => crop,
            (None, Some(resized)) => resized,
            (None, None) => {
                return Err(DataError::Task(format!(
                    "`preprocess`: the image files of {what} may have any size: give `crop: (width, height)` or \
                     `resize: Exact(width, height)`"
                )));
            }
        };
        let channels = self.out_channels(stored.map_or(3, |g| g.channels));
        if self.tables.len() > channels {
            return Err(DataError::Task(format!(
                "`preprocess`: mean or std has {} numbers, but the input has {channels} channel",
                self.tables.len()
            )));
        }
        Ok(match self.layout {
            Layout::Nchw => vec![channels, height, width],
            Layout::Nhwc => vec![height, width, channels],
            Layout::Nhw if channels == 1 => vec![height, width],
            Layout::Nhw => {
                return Err(DataError::Task(format!(
                    "`preprocess`: layout nhw has no axis for channels, but {what} has {channels} of them: take nchw or nhwc, \
                     or `channels: gray`"
                )));
            }
        })
    }

    /// Refuses what means nothing for samples that are no images.
    pub fn check_plain(&self, what: &str) -> Result<(), DataError> {
        if self.resize.is_some()
            || self.crop.is_some()
            || self.channels.is_some()
            || self.tables.len() > 1
        {
            return Err(DataError::Task(format!(
                "`preprocess`: {what} holds no images (their shape is not height × width with 1 or 3 channels), so only \
                 scale and a single mean and std can be used"
            )));
        }
        Ok(())
    }

    /// Samples that are no images: every number for itself.
    pub fn plain(&self, values: &Values, from: usize, out: &mut [f32]) {
        match values {
            Values::Bytes(bytes) => {
                for (out, byte) in out.iter_mut().zip(&bytes[from..]) {
                    *out = self.tables[0][usize::from(*byte)];
                }
            }
            Values::Floats(floats) => {
                for (out, v) in out.iter_mut().zip(&floats[from..]) {
                    *out = self.value(f64::from(*v), 0);
                }
            }
        }
    }

    /// Sample `row` of an array of images. `what` names it in errors.
    pub fn array_sample(
        &self,
        array: &Array,
        geometry: Geometry,
        row: usize,
        out: &mut [f32],
        what: &dyn Fn() -> String,
    ) -> Result<(), DataError> {
        let size = geometry.height * geometry.width * geometry.channels;
        let range = row * size..(row + 1) * size;
        match &array.values {
            Values::Bytes(bytes) if self.resize.is_some() => {
                self.image_sample(picture(&bytes[range], geometry, what)?, out, what)
            }
            Values::Bytes(bytes) => self.bytes(&bytes[range], geometry, out, what),
            Values::Floats(_) if self.resize.is_some() => Err(DataError::Task(format!(
                "`preprocess`: {} has float pixels, which are not resized; store unsigned bytes, or resize beforehand",
                what()
            ))),
            Values::Floats(floats) => {
                let pixels = &floats[range];
                let gray = |[r, g, b]: [usize; 3]| {
                    let [r, g, b] = [pixels[r], pixels[g], pixels[b]].map(f64::from);
                    self.value(0.299 * r + 0.587 * g + 0.114 * b, 0)
                };
                let value = |at: usize, channel| self.value(f64::from(pixels[at]), channel);
                self.lay_out(geometry, out, what, value, gray)
            }
        }
    }

    /// A decoded image: resized, and then as any other.
    pub fn image_sample(
        &self,
        image: DynamicImage,
        out: &mut [f32],
        what: &dyn Fn() -> String,
    ) -> Result<(), DataError> {
        let (width, height) = (image.width(), image.height());
        let (w, h) = match self.resize {
            None => (width, height),
            Some(Resize::Exact(w, h)) => (w, h),
            Some(Resize::Shorter(side)) => {
                let (w, h) = shorter(width as usize, height as usize, side);
                // An extremely long strip would need an image of gigabytes.
                if w.max(h) > 4 * MAX_SIDE as usize {
                    return Err(DataError::Source(format!(
                        "{} is {width}×{height} and would become {w}×{h}: too long a strip",
                        what()
                    )));
                }
                (w as u32, h as u32)
            }
        };
        let geometry = |channels| Geometry {
            height: h as usize,
            width: w as usize,
            channels,
            channels_last: true,
        };
        // Same size: resampling would be the identity.
        let same = (w, h) == (width, height);
        if image.color().has_color() {
            let mut rgb = image.into_rgb8();
            if !same {
                rgb = image::imageops::resize(&rgb, w, h, self.filter);
            }
            self.bytes(&rgb, geometry(3), out, what)
        } else {
            let mut gray = image.into_luma8();
            if !same {
                gray = image::imageops::resize(&gray, w, h, self.filter);
            }
            self.bytes(&gray, geometry(1), out, what)
        }
    }

    fn bytes(
        &self,
        pixels: &[u8],
        geometry: Geometry,
        out: &mut [f32],
        what: &dyn Fn() -> String,
    ) -> Result<(), DataError> {
        let table = |channel: usize| &self.tables[if self.tables.len() > 1 { channel } else { 0 }];
        let gray =
            |[r, g, b]: [usize; 3]| table(0)[usize::from(luma(pixels[r], pixels[g], pixels[b]))];
        let value = |at: usize, channel| table(channel)[usize::from(pixels[at])];
        self.lay_out(geometry, out, what, value, gray)
    }

    /// Crops, picks channels and writes in the network's layout. `value(index of a stored number, output channel)`;
    /// `gray(indices of red, green, blue)`.
    fn lay_out(
        &self,
        stored: Geometry,
        out: &mut [f32],
        what: &dyn Fn() -> String,
        value: impl Fn(usize, usize) -> f32,
        gray: impl Fn([usize; 3]) -> f32,
    ) -> Result<(), DataError> {
        let (width, height) = self.crop.unwrap_or((stored.width, stored.height));
        if width > stored.width || height > stored.height {
            return Err(DataError::Source(format!(
                "{} is {}×{} (width × height) after resizing, too small for the crop of {width}×{height}: give a larger \
                 `resize`",
                what(),
                stored.width,
                stored.height
            )));
        }
        let (left, top) = ((stored.width - width) / 2, (stored.height - height) / 2);
        let channels = out.len() / (width * height).max(1);
        let index = |y: usize, x: usize, channel: usize| {
            if stored.channels_last {
                (y * stored.width + x) * stored.channels + channel
            } else {
                (channel * stored.height + y) * stored.width + x
            }
        };
        let bgr = self.channels == Some(Channels::Bgr);
        let make_gray = stored.channels == 3 && channels == 1;
        for channel in 0..channels {
            let source = match (stored.channels, bgr) {
                (1, _) => 0,
                (_, true) => 2 - channel,
                (_, false) => channel,
            };
            for y in 0..height {
                for x in 0..width {
                    let (sy, sx) = (top + y, left + x);
                    let at = match self.layout {
                        // Of nhw there is one channel.
                        Layout::Nchw | Layout::Nhw => (channel * height + y) * width + x,
                        Layout::Nhwc => (y * width + x) * channels + channel,
                    };
                    out[at] = if make_gray {
                        gray([0, 1, 2].map(|c| index(sy, sx, c)))
                    } else {
                        value(index(sy, sx, source), channel)
                    };
                }
            }
        }
        Ok(())
    }
}

/// Bytes of an array as an image, channels last.
fn picture(
    pixels: &[u8],
    geometry: Geometry,
    what: &dyn Fn() -> String,
) -> Result<DynamicImage, DataError> {
    let raw: Vec<u8> = if geometry.channels_last {
        pixels.to_vec()
    } else {
        let plane = geometry.height * geometry.width;
        (0..pixels.len())
            .map(|i| pixels[(i % geometry.channels) * plane + i / geometry.channels])
            .collect()
    };
    let (w, h) = (geometry.width as u32, geometry.height as u32);
    if geometry.channels == 1 {
        GrayImage::from_raw(w, h, raw).map(DynamicImage::from)
    } else {
        RgbImage::from_raw(w, h, raw).map(DynamicImage::from)
    }
    .ok_or_else(|| DataError::Source(format!("{}: its pixels do not fill its size", what())))
}

/// Width and height after the shorter side has become `side`, the longer rounded down (as torchvision does).
fn shorter(width: usize, height: usize, side: u32) -> (usize, usize) {
    let side = side as usize;
    if width <= height {
        (side, side.saturating_mul(height) / width.max(1))
    } else {
        (side.saturating_mul(width) / height.max(1), side)
    }
}

/// ITU-R BT.601 luma in 16-bit fixed point, rounded.
fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b) + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        Recipe::new(&spec(text)).unwrap()
    }

    fn spec(text: &str) -> Preprocess {
        ron::Options::default()
            .with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME)
            .from_str(text)
            .unwrap()
    }

    fn run(text: &str, shape: &[usize], geometry: Geometry, bytes: Vec<u8>) -> Vec<f32> {
        let recipe = recipe(text);
        let array = Array {
            shape: shape.to_vec(),
            values: Values::Bytes(bytes),
        };
        let size = recipe.sample_shape(Some(geometry), "x").unwrap();
        let mut out = vec![f32::NAN; size.iter().product()];
        recipe
            .array_sample(&array, geometry, 0, &mut out, &|| "x".into())
            .unwrap();
        out
    }

    const RGB: Geometry = Geometry {
        height: 1,
        width: 2,
        channels: 3,
        channels_last: true,
    };

    #[test]
    fn scale_mean_and_std_are_per_output_channel() {
        let text = "(scale: 1.0, mean: [10.0, 20.0, 30.0], std: [1.0, 2.0, 4.0], channels: bgr)";
        let out = run(text, &[1, 1, 2, 3], RGB, vec![38, 40, 12, 30, 20, 10]);
        // planes of B, G, R
        assert_eq!(out, [2.0, 0.0, 10.0, 0.0, 2.0, 0.0]);
    }

    #[test]
    fn layouts_and_gray() {
        let bytes = vec![1, 2, 3, 4, 5, 6];
        let out = run(
            "(scale: 1.0, layout: nhwc)",
            &[1, 1, 2, 3],
            RGB,
            bytes.clone(),
        );
        assert_eq!(out, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let planes = Geometry {
            channels_last: false,
            ..RGB
        };
        let out = run("(scale: 1.0, layout: nhwc)", &[1, 3, 1, 2], planes, bytes);
        assert_eq!(out, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        let bytes = vec![255, 0, 0, 0, 255, 0];
        let out = run("(scale: 1.0, channels: gray)", &[1, 1, 2, 3], RGB, bytes);
        assert_eq!(out, [76.0, 150.0]);
        let one = Geometry { channels: 1, ..RGB };
        let out = run("(scale: 1.0, channels: rgb)", &[1, 1, 2], one, vec![7, 9]);
        assert_eq!(out, [7.0, 9.0, 7.0, 9.0, 7.0, 9.0]);
        let out = run("(scale: 2.0, layout: nhw)", &[1, 1, 2], one, vec![7, 9]);
        assert_eq!(out, [14.0, 18.0]);
    }

    #[test]
    fn the_centre_is_kept_and_resizing_averages() {
        let square = Geometry {
            height: 4,
            width: 4,
            channels: 1,
            channels_last: true,
        };
        let bytes: Vec<u8> = (0..16).collect();
        let out = run("(scale: 1.0, crop: (2, 2))", &[1, 4, 4], square, bytes);
        assert_eq!(out, [5.0, 6.0, 9.0, 10.0]);
        let text = "(scale: 1.0, resize: Exact(2, 2))";
        assert_eq!(run(text, &[1, 4, 4], square, vec![200; 16]), [200.0; 4]);
        let text = "(scale: 1.0, resize: Shorter(2))";
        assert_eq!(run(text, &[1, 4, 4], square, vec![9; 16]), [9.0; 4]);
        assert_eq!(shorter(300, 200, 100), (150, 100));
        assert_eq!(shorter(200, 301, 100), (100, 150));
    }

    #[test]
    fn a_255th_is_what_division_gives() {
        let recipe = recipe("(scale: 0.00392156862745098)");
        for byte in 0..=255u8 {
            assert_eq!(recipe.tables[0][usize::from(byte)], f32::from(byte) / 255.0);
        }
    }

    #[test]
    fn senseless_settings_are_refused() {
        for text in [
            "(scale: 0.0)",
            "(scale: inf)",
            "(scale: 1.0, std: [0.0])",
            "(scale: 1.0, mean: [1.0, 2.0])",
            "(scale: 1.0, crop: (0, 4))",
            "(scale: 1.0, resize: Shorter(100000))",
        ] {
            assert!(Recipe::new(&spec(text)).is_err(), "{text}");
        }
        assert!(recipe("(scale: 1.0)").sample_shape(None, "x").is_err());
        let large = recipe("(scale: 1.0, crop: (5, 5))");
        assert!(large.sample_shape(Some(RGB), "x").is_err());
    }
}
