//! Changes of training images that leave what they show as it is: flips, shifts, mixtures. What a task allows stands in its `augment`;
//! the same seed and step give the same bits.

use super::{Batch, DataError, preprocess::Recipe, task::Layout};
use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// `augment` of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Augment {
    /// Left and right may be exchanged.
    pub flip: bool,
    /// Pixels that an image may be moved by, up, down, left and right; what comes into view is black.
    pub shift: usize,
    /// α of the Beta distribution that the shares of two mixed images are drawn from (Zhang et al. 2018); 0: none are mixed.
    pub mixup: f64,
}

/// Least and highest α but 0.
const MIXUP: std::ops::RangeInclusive<f64> = 0.05..=1.0;

/// What may be done to a task's images.
#[derive(Clone, Debug)]
pub struct Augmentation {
    spec: Augment,
    /// Height, width, channels of a sample; all 1 but the last where it is no image.
    extents: (usize, usize, usize),
    channels_last: bool,
    /// A black pixel as the network sees it, by channel.
    black: Vec<f32>,
}

/// A changed batch: `batch.labels` hold for `share` of it, `others` for the rest.
pub struct Augmented {
    pub batch: Batch,
    /// Empty where nothing was mixed.
    pub others: Vec<u32>,
    pub share: f32,
}

impl Augmentation {
    /// For samples of `shape`, without the batch axis; `None` where nothing is to be done.
    ///
    /// # Errors
    /// Numbers out of range, samples that are no images.
    pub(super) fn new(
        spec: Augment,
        shape: &[usize],
        recipe: &Recipe,
    ) -> Result<Option<Self>, DataError> {
        let bad = |message: String| Err(DataError::Task(format!("`augment`: {message}")));
        if spec == Augment::default() {
            return Ok(None);
        }
        if spec.mixup != 0.0 && !MIXUP.contains(&spec.mixup) {
            return bad(format!(
                "mixup is {}; expected 0 (none), or {} to {}",
                spec.mixup,
                MIXUP.start(),
                MIXUP.end()
            ));
        }
        let channels_last = recipe.layout() == Layout::Nhwc;
        let extents = match (shape, channels_last) {
            (&[channels, height, width], false) => (height, width, channels),
            (&[height, width, channels], true) => (height, width, channels),
            (&[height, width], _) if recipe.layout() == Layout::Nhw => (height, width, 1),
            _ if spec.flip || spec.shift > 0 => {
                return bad(format!(
                    "samples of shape {shape:?} are no images: they cannot be flipped or shifted"
                ));
            }
            _ => (1, 1, shape.iter().product()),
        };
        if spec.shift >= extents.0.min(extents.1) && spec.shift > 0 {
            return bad(format!(
                "shift is {}, but images are {} × {} pixels",
                spec.shift, extents.1, extents.0
            ));
        }
        Ok(Some(Self {
            spec,
            extents,
            channels_last,
            black: (0..extents.2)
                .map(|channel| recipe.black(channel))
                .collect(),
        }))
    }

    /// Changes the images of step `step` of a training.
    ///
    /// # Errors
    /// Images of another shape than the task's.
    pub fn apply(&self, batch: Batch, seed: u64, step: u64) -> Result<Augmented, DataError> {
        let wrong = |e: candle_core::Error| DataError::Source(format!("an augmented batch: {e}"));
        let (height, width, channels) = self.extents;
        let size = height * width * channels;
        let mut values = batch
            .images
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(wrong)?;
        let samples = batch.images.dims().first().copied().unwrap_or(0);
        if values.len() != size * samples || size == 0 {
            return Err(DataError::Source(format!(
                "a batch of {} numbers for {samples} samples of {size}",
                values.len()
            )));
        }
        // A sequence of its own for every step: nothing has to be remembered between them.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step + 1);
        if self.spec.flip || self.spec.shift > 0 {
            let mut moved = vec![0.0; size];
            for image in values.chunks_exact_mut(size) {
                let flip = self.spec.flip && rng.random::<bool>();
                let mut shift = || match self.spec.shift as i64 {
                    0 => 0,
                    most => rng.random_range(-most..=most),
                };
                let (down, right) = (shift(), shift());
                self.moved(image, flip, down, right, &mut moved);
                image.copy_from_slice(&moved);
            }
        }
        let (mut others, mut share) = (Vec::new(), 1.0);
        if self.spec.mixup > 0.0 {
            let mut partners: Vec<usize> = (0..samples).collect();
            partners.shuffle(&mut rng);
            share = beta(self.spec.mixup, &mut rng) as f32;
            let plain = values.clone();
            for (image, partner) in values.chunks_exact_mut(size).zip(&partners) {
                let other = &plain[partner * size..][..size];
                for (v, o) in image.iter_mut().zip(other) {
                    *v = share * *v + (1.0 - share) * o;
                }
            }
            let label = |p: &usize| batch.labels.get(*p).copied();
            others = partners.iter().filter_map(label).collect();
        }
        let images = Tensor::from_vec(values, batch.images.shape(), &Device::Cpu).map_err(wrong)?;
        Ok(Augmented {
            batch: Batch {
                images,
                labels: batch.labels,
            },
            others,
            share,
        })
    }

    fn moved(&self, image: &[f32], flip: bool, down: i64, right: i64, out: &mut [f32]) {
        let (height, width, channels) = self.extents;
        for y in 0..height {
            for x in 0..width {
                let from_y = y as i64 - down;
                let from_x = x as i64 - right;
                let seen =
                    (0..height as i64).contains(&from_y) && (0..width as i64).contains(&from_x);
                let from_x = if flip {
                    width as i64 - 1 - from_x
                } else {
                    from_x
                };
                for c in 0..channels {
                    let at = |y: usize, x: usize| {
                        if self.channels_last {
                            (y * width + x) * channels + c
                        } else {
                            (c * height + y) * width + x
                        }
                    };
                    out[at(y, x)] = if seen {
                        image[at(from_y as usize, from_x as usize)]
                    } else {
                        self.black[c]
                    };
                }
            }
        }
    }
}

/// Beta(α, α) for α up to 1 (Jöhnk 1964), by logarithms so that small α do not fall to 0.
fn beta(alpha: f64, rng: &mut ChaCha8Rng) -> f64 {
    loop {
        let mut log = || libm::log(1.0 - rng.random::<f64>()) / alpha;
        let (a, b) = (log(), log());
        if libm::exp(a) + libm::exp(b) <= 1.0 {
            return 1.0 / (1.0 + libm::exp(b - a));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn augmentation(spec: Augment, channels_last: bool) -> Augmentation {
        Augmentation {
            spec,
            extents: (2, 3, 2),
            channels_last,
            black: vec![-1.0, -2.0],
        }
    }

    #[test]
    fn pixels_move_together_and_black_comes_into_view() {
        let a = augmentation(Augment::default(), false);
        // Two channels of 2 × 3 pixels.
        let image: Vec<f32> = (0..12u8).map(f32::from).collect();
        let mut out = vec![0.0; 12];
        a.moved(&image, false, 1, -1, &mut out);
        assert_eq!(
            out,
            [-1., -1., -1., 1., 2., -1., -2., -2., -2., 7., 8., -2.]
        );
        a.moved(&image, true, 0, 0, &mut out);
        assert_eq!(out, [2., 1., 0., 5., 4., 3., 8., 7., 6., 11., 10., 9.]);
        // Flipped, then moved.
        a.moved(&image, true, 0, 1, &mut out);
        assert_eq!(out[..6], [-1., 2., 1., -1., 5., 4.]);
        let last = augmentation(Augment::default(), true);
        last.moved(&image, true, 0, 0, &mut out);
        assert_eq!(out[..6], [4., 5., 2., 3., 0., 1.]);
    }

    #[test]
    fn a_step_gives_the_same_bits_again_and_mixtures_keep_their_labels() {
        let spec = Augment {
            flip: true,
            shift: 1,
            mixup: 0.4,
        };
        let a = augmentation(spec, false);
        let batch = || Batch {
            images: Tensor::arange(0f32, 96.0, &Device::Cpu)
                .unwrap()
                .reshape((8, 2, 2, 3))
                .unwrap(),
            labels: (0..8).collect(),
        };
        let bits = |seed, step| {
            let done = a.apply(batch(), seed, step).unwrap();
            let values = done.batch.images.flatten_all().unwrap();
            (values.to_vec1::<f32>().unwrap(), done.others, done.share)
        };
        assert_eq!(bits(3, 5), bits(3, 5));
        assert_ne!(bits(3, 5).0, bits(3, 6).0);
        assert_ne!(bits(3, 5).0, bits(4, 5).0);
        let mut sorted = bits(3, 5).1;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..8).collect::<Vec<_>>());
        // Without moves, a mixture is what its share says.
        let mixed = augmentation(
            Augment {
                mixup: 1.0,
                ..Augment::default()
            },
            false,
        );
        let done = mixed.apply(batch(), 1, 1).unwrap();
        let values = done
            .batch
            .images
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        for (i, other) in done.others.iter().enumerate() {
            let expected = done.share * (i * 12) as f32 + (1.0 - done.share) * (other * 12) as f32;
            assert!((values[i * 12] - expected).abs() < 1e-3);
        }
    }

    /// Mean 1/2 and variance 1/(4(2α + 1)) of Beta(α, α).
    #[test]
    fn shares_are_beta_distributed() {
        for alpha in [0.05, 0.2, 1.0] {
            let mut rng = ChaCha8Rng::seed_from_u64(9);
            let n = 20_000;
            let drawn: Vec<f64> = (0..n).map(|_| beta(alpha, &mut rng)).collect();
            assert!(drawn.iter().all(|v| (0.0..=1.0).contains(v)));
            let mean = drawn.iter().sum::<f64>() / n as f64;
            let variance = drawn.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.02, "{alpha}: {mean}");
            assert!((variance - expected).abs() < 0.01, "{alpha}: {variance}");
        }
    }
}
