//! Draws egui's meshes into an image: textured triangles, premultiplied blending in gamma space, clipping.

use egui::{
    Color32, ColorImage, ImageData, Rect, TextureId, TextureOptions, TextureWrapMode,
    TexturesDelta,
    epaint::{Mesh, Vertex},
};
use image::RgbImage;
use std::collections::HashMap;

/// A texture as egui uploads it.
#[derive(Clone)]
pub struct Texture {
    image: ColorImage,
    options: TextureOptions,
}

impl Texture {
    fn texel(&self, x: i64, y: i64) -> [f32; 4] {
        let [width, height] = self.image.size;
        let place = |v: i64, n: usize| -> usize {
            let n = n as i64;
            match self.options.wrap_mode {
                TextureWrapMode::Repeat => v.rem_euclid(n) as usize,
                _ => v.clamp(0, n - 1) as usize,
            }
        };
        let colour = self.image.pixels[place(y, height) * width + place(x, width)];
        colour.to_array().map(f32::from)
    }

    /// Bilinear, texel centres at halves.
    fn sample(&self, u: f32, v: f32) -> [f32; 4] {
        let x = u * self.image.size[0] as f32 - 0.5;
        let y = v * self.image.size[1] as f32 - 0.5;
        let (x0, y0) = (x.floor(), y.floor());
        let (fx, fy) = (x - x0, y - y0);
        let (x0, y0) = (x0 as i64, y0 as i64);
        let mut out = [0.0; 4];
        for (dx, dy, weight) in [
            (0, 0, (1.0 - fx) * (1.0 - fy)),
            (1, 0, fx * (1.0 - fy)),
            (0, 1, (1.0 - fx) * fy),
            (1, 1, fx * fy),
        ] {
            if weight > 0.0 {
                let texel = self.texel(x0 + dx, y0 + dy);
                for (o, t) in out.iter_mut().zip(texel) {
                    *o += weight * t;
                }
            }
        }
        out
    }
}

/// All textures uploaded so far.
#[derive(Default)]
pub struct Textures(HashMap<TextureId, Texture>);

impl Textures {
    pub fn take(&mut self, delta: &TexturesDelta) {
        for (id, changes) in &delta.set {
            for change in changes {
                let ImageData::Color(image) = &change.image;
                match (change.pos, self.0.get_mut(id)) {
                    (Some([left, top]), Some(texture)) => {
                        let width = texture.image.size[0];
                        for y in 0..image.size[1] {
                            for x in 0..image.size[0] {
                                texture.image.pixels[(top + y) * width + left + x] =
                                    image.pixels[y * image.size[0] + x];
                            }
                        }
                    }
                    _ => {
                        self.0.insert(
                            *id,
                            Texture {
                                image: (**image).clone(),
                                options: change.options,
                            },
                        );
                    }
                }
            }
        }
    }

    /// A texture; plain white where it was never uploaded.
    pub fn get(&self, id: TextureId) -> Texture {
        self.0.get(&id).cloned().unwrap_or_else(|| Texture {
            image: ColorImage::filled([1, 1], Color32::WHITE),
            options: TextureOptions::LINEAR,
        })
    }
}

/// Sub-pixel steps of a vertex: positions are rounded to them so that edges are exact.
const STEPS: f32 = 256.0;

/// The picture being drawn.
pub struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<[f32; 3]>,
}

impl Canvas {
    pub fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            pixels: vec![[0.0; 3]; width * height],
        }
    }

    pub fn mesh(&mut self, mesh: &Mesh, clip: Rect, texture: Texture) {
        let x = (
            clip.min.x.round().max(0.0) as i64,
            clip.max.x.round().clamp(0.0, self.width as f32) as i64,
        );
        let y = (
            clip.min.y.round().max(0.0) as i64,
            clip.max.y.round().clamp(0.0, self.height as f32) as i64,
        );
        for corner in mesh.indices.chunks_exact(3) {
            let vertices = [corner[0], corner[1], corner[2]].map(|i| mesh.vertices[i as usize]);
            self.triangle(vertices, x, y, &texture);
        }
    }

    fn triangle(&mut self, mut v: [Vertex; 3], x: (i64, i64), y: (i64, i64), texture: &Texture) {
        let fixed = |v: &Vertex| [v.pos.x, v.pos.y].map(|c| (c * STEPS).round() as i64);
        let mut p = [fixed(&v[0]), fixed(&v[1]), fixed(&v[2])];
        let cross = |a: [i64; 2], b: [i64; 2], c: [i64; 2]| {
            (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        };
        let mut area = cross(p[0], p[1], p[2]);
        if area == 0 {
            return;
        }
        if area < 0 {
            v.swap(1, 2);
            p.swap(1, 2);
            area = -area;
        }
        let step = STEPS as i64;
        let low = |i: usize| p.iter().map(|q| q[i]).min().unwrap_or(0).div_euclid(step);
        let high = |i: usize| p.iter().map(|q| q[i]).max().unwrap_or(0).div_euclid(step) + 1;
        // A pixel on an edge belongs to the triangle whose top or left edge it is.
        let owns = |a: [i64; 2], b: [i64; 2]| (a[1] == b[1] && b[0] > a[0]) || b[1] < a[1];
        let bias = [
            i64::from(!owns(p[1], p[2])),
            i64::from(!owns(p[2], p[0])),
            i64::from(!owns(p[0], p[1])),
        ];
        for row in low(1).max(y.0)..high(1).min(y.1) {
            for column in low(0).max(x.0)..high(0).min(x.1) {
                let centre = [column * step + step / 2, row * step + step / 2];
                let w = [
                    cross(p[1], p[2], centre),
                    cross(p[2], p[0], centre),
                    cross(p[0], p[1], centre),
                ];
                if (0..3).any(|i| w[i] < bias[i]) {
                    continue;
                }
                let share = w.map(|w| w as f32 / area as f32);
                self.blend(column as usize, row as usize, shade(&v, share, texture));
            }
        }
    }

    fn blend(&mut self, x: usize, y: usize, source: [f32; 4]) {
        let pixel = &mut self.pixels[y * self.width + x];
        for (p, s) in pixel.iter_mut().zip(source) {
            *p = s + *p * (1.0 - source[3] / 255.0);
        }
    }

    pub fn image(&self) -> RgbImage {
        RgbImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            let pixel = self.pixels[y as usize * self.width + x as usize];
            image::Rgb(pixel.map(|c| c.round().clamp(0.0, 255.0) as u8))
        })
    }
}

/// Colour of the vertices times that of the texture, both premultiplied.
fn shade(v: &[Vertex; 3], share: [f32; 3], texture: &Texture) -> [f32; 4] {
    let mix =
        |f: &dyn Fn(&Vertex) -> f32| -> f32 { v.iter().zip(share).map(|(v, s)| f(v) * s).sum() };
    let texel = texture.sample(mix(&|v| v.uv.x), mix(&|v| v.uv.y));
    std::array::from_fn(|i| mix(&|v| f32::from(v.color.to_array()[i])) * texel[i] / 255.0)
}
