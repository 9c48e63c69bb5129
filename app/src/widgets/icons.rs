//! Icons drawn by the painter: no icon font, no missing glyph. The flask is Limbeck's mark; the application's icon is
//! rasterised from the same outline.

use crate::theme;
use egui::{Color32, Painter, Pos2, Shape, Stroke, Vec2, pos2, vec2};

/// What can be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icon {
    Flask,
    Undo,
    Redo,
    Search,
    Close,
    Up,
    Down,
    Menu,
    Diamond,
    /// A triangle with an exclamation mark.
    Warning,
}

/// The flask's outline in a unit square: lip, neck, shoulders, rounded body.
const FLASK: [(f32, f32); 16] = [
    (0.36, 0.10),
    (0.36, 0.38),
    (0.30, 0.49),
    (0.21, 0.64),
    (0.17, 0.74),
    (0.18, 0.83),
    (0.23, 0.89),
    (0.32, 0.91),
    (0.68, 0.91),
    (0.77, 0.89),
    (0.82, 0.83),
    (0.83, 0.74),
    (0.79, 0.64),
    (0.70, 0.49),
    (0.64, 0.38),
    (0.64, 0.10),
];
const LIP: [(f32, f32); 2] = [(0.28, 0.10), (0.72, 0.10)];
/// The liquid's surface: a gentle wave inside the body.
const SURFACE: [(f32, f32); 5] = [
    (0.22, 0.65),
    (0.36, 0.61),
    (0.50, 0.65),
    (0.64, 0.69),
    (0.78, 0.65),
];

/// Draws `icon` centred at `centre`, `size` points large.
pub fn paint(painter: &Painter, icon: Icon, centre: Pos2, size: f32, colour: Color32) {
    let at = |x: f32, y: f32| centre + vec2(x - 0.5, y - 0.5) * size;
    let stroke = Stroke::new((size / 12.0).clamp(1.2, 2.4), colour);
    let path = |points: &[(f32, f32)]| {
        Shape::line(points.iter().map(|(x, y)| at(*x, *y)).collect(), stroke)
    };
    match icon {
        Icon::Flask => {
            painter.add(path(&FLASK));
            painter.add(path(&LIP));
            painter.add(path(&SURFACE));
        }
        Icon::Undo | Icon::Redo => {
            let flip = |x: f32| if icon == Icon::Undo { x } else { 1.0 - x };
            let arc: Vec<Pos2> = (0..=16)
                .map(|i| {
                    let a = -std::f32::consts::FRAC_PI_2 + std::f32::consts::PI * i as f32 / 16.0;
                    at(flip(0.62 + 0.26 * a.cos()), 0.56 + 0.24 * a.sin())
                })
                .collect();
            let mut points = vec![at(flip(0.14), 0.32)];
            points.extend(arc);
            points.push(at(flip(0.36), 0.80));
            painter.add(Shape::line(points, stroke));
            painter.add(Shape::line(
                vec![
                    at(flip(0.32), 0.12),
                    at(flip(0.13), 0.32),
                    at(flip(0.32), 0.52),
                ],
                stroke,
            ));
        }
        Icon::Search => {
            painter.circle_stroke(at(0.42, 0.42), size * 0.28, stroke);
            painter.line_segment([at(0.63, 0.63), at(0.88, 0.88)], stroke);
        }
        Icon::Close => {
            painter.line_segment([at(0.22, 0.22), at(0.78, 0.78)], stroke);
            painter.line_segment([at(0.78, 0.22), at(0.22, 0.78)], stroke);
        }
        Icon::Up => {
            painter.add(path(&[(0.2, 0.64), (0.5, 0.34), (0.8, 0.64)]));
        }
        Icon::Down => {
            painter.add(path(&[(0.2, 0.36), (0.5, 0.66), (0.8, 0.36)]));
        }
        Icon::Menu => {
            for y in [0.25, 0.5, 0.75] {
                painter.line_segment([at(0.12, y), at(0.88, y)], stroke);
            }
        }
        Icon::Warning => {
            let points = [(0.5, 0.08), (0.98, 0.92), (0.02, 0.92)];
            let points = points.iter().map(|(x, y)| at(*x, *y)).collect();
            painter.add(Shape::convex_polygon(points, Color32::TRANSPARENT, stroke));
            painter.line_segment([at(0.5, 0.38), at(0.5, 0.62)], stroke);
            painter.circle_filled(at(0.5, 0.78), stroke.width * 0.6, colour);
        }
        Icon::Diamond => {
            let points = [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)];
            let points = points.iter().map(|(x, y)| at(*x, *y)).collect();
            painter.add(Shape::convex_polygon(points, Color32::TRANSPARENT, stroke));
        }
    }
}

fn distance(p: Vec2, a: Vec2, b: Vec2) -> f32 {
    let ab = b - a;
    let t = ((p - a).dot(ab) / ab.dot(ab)).clamp(0.0, 1.0);
    (p - a - ab * t).length()
}

fn inside(p: Vec2, polygon: &[Vec2]) -> bool {
    let mut odd = false;
    let mut before = polygon.len() - 1;
    for i in 0..polygon.len() {
        let (a, b) = (polygon[i], polygon[before]);
        if (a.y > p.y) != (b.y > p.y) && p.x < (b.x - a.x) * (p.y - a.y) / (b.y - a.y) + a.x {
            odd = !odd;
        }
        before = i;
    }
    odd
}

/// The flask in copper on the dark ground, `size`×`size` pixels, RGBA.
pub fn app_icon(size: usize) -> egui::IconData {
    let t = theme::tokens(true);
    let unit =
        |list: &[(f32, f32)]| -> Vec<Vec2> { list.iter().map(|(x, y)| vec2(*x, *y)).collect() };
    // The mark takes the middle three quarters of the icon.
    let scale = |v: Vec2| (v - vec2(0.5, 0.5)) / 0.76 + vec2(0.5, 0.5);
    let (flask, lip, surface) = (unit(&FLASK), unit(&LIP), unit(&SURFACE));
    let near = |p: Vec2, line: &[Vec2]| line.windows(2).any(|s| distance(p, s[0], s[1]) < 0.042);
    let sample = |p: Vec2| -> Option<Color32> {
        let corner = 0.22;
        let from_edge = (p - vec2(0.5, 0.5)).abs() - vec2(0.5 - corner, 0.5 - corner);
        if from_edge.max(Vec2::ZERO).length() > corner {
            return None;
        }
        let q = scale(p);
        if near(q, &flask) || near(q, &lip) {
            return Some(t.accent);
        }
        let wave = 0.65 - 0.04 * ((q.x - 0.22) / 0.56 * std::f32::consts::TAU).sin();
        if inside(q, &flask) && q.y > wave {
            return Some(theme::mix(t.panel, t.accent, 0.75));
        }
        if near(q, &surface) && inside(q, &flask) {
            return Some(t.accent);
        }
        Some(t.panel)
    };
    const SUB: usize = 3;
    let mut rgba = Vec::with_capacity(size * size * 4);
    for y in 0..size {
        for x in 0..size {
            let (mut sum, mut hits) = ([0_u32; 3], 0_u32);
            for k in 0..SUB * SUB {
                let offset = pos2((k % SUB) as f32 + 0.5, (k / SUB) as f32 + 0.5) / SUB as f32;
                let p = vec2(x as f32 + offset.x, y as f32 + offset.y) / size as f32;
                if let Some(c) = sample(p) {
                    hits += 1;
                    for (s, v) in sum.iter_mut().zip([c.r(), c.g(), c.b()]) {
                        *s += u32::from(v);
                    }
                }
            }
            for s in sum {
                rgba.push((s / hits.max(1)) as u8);
            }
            rgba.push((hits * 255 / (SUB * SUB) as u32) as u8);
        }
    }
    egui::IconData {
        rgba,
        width: size as u32,
        height: size as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_icon_has_round_corners_and_a_copper_flask() {
        let icon = app_icon(64);
        assert_eq!(icon.rgba.len(), 64 * 64 * 4);
        assert_eq!(icon.rgba[3], 0, "the corner is clear");
        let copper = theme::tokens(true).accent;
        let hits = icon
            .rgba
            .chunks(4)
            .filter(|p| p[..3] == [copper.r(), copper.g(), copper.b()])
            .count();
        assert!(hits > 100, "{hits}");
    }
}
