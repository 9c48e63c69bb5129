//! Pictures of the window, drawn by a small software rasteriser: no GPU, no driver, no display, the same on every machine.
//! After a wanted change: `LIMBECK_BLESS=1 cargo test -p limbeck_app --test pictures`, look at the PNGs, commit them.

#[path = "pictures/raster.rs"]
mod raster;

use egui::{Context, RawInput, Rect, TextureId, Vec2, vec2};
use image::{
    Rgb, RgbImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use limbeck_app::{
    app::dialogs::Dialogs,
    panels,
    state::{ColourBy, Dialog, PointId, State, Tab, fixture},
    theme,
};
use limbeck_engine::{
    compress::{Attention, Codebooks, Criterion},
    recipe::{Choice, ClusterStep, PruneBlocksStep},
    train::DistilSettings,
};
use raster::{Canvas, Textures};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A channel that differs by more than this makes a pixel differ…
const CHANNEL: u8 = 24;
/// …and more than this share of such pixels makes a picture differ.
const SHARE: f64 = 0.002;

fn draw(state: &State, size: Vec2, look: egui::Theme) -> RgbImage {
    let ctx = Context::default();
    theme::install(&ctx);
    ctx.set_theme(look);
    let mut textures = Textures::default();
    let mut sent = Vec::new();
    let mut dialogs = Dialogs::default();
    let mut last = None;
    // Sizes settle in the second pass; hover and focus fade in within the others.
    for frame in 0..4 {
        let input = RawInput {
            screen_rect: Some(Rect::from_min_size(egui::Pos2::ZERO, size)),
            time: Some(f64::from(frame)),
            ..Default::default()
        };
        let mut output = ctx.run_ui(input, |ui| {
            panels::workbench(ui, state, &mut sent);
            dialogs.show(ui.ctx(), state, &mut sent);
        });
        textures.take(&output.textures_delta);
        output.textures_delta.clear();
        last = Some((output.shapes, output.pixels_per_point));
    }
    assert_eq!(sent, [], "drawing sends nothing");
    let (shapes, scale) = last.expect("four passes were run");
    let mut canvas = Canvas::new(size.x as usize, size.y as usize);
    for primitive in ctx.tessellate(shapes, scale) {
        if let egui::epaint::Primitive::Mesh(mesh) = &primitive.primitive {
            canvas.mesh(mesh, primitive.clip_rect, textures.get(mesh.texture_id));
        }
    }
    canvas.image()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots")
}

/// Pictures live in the repository: they are packed as tightly as PNG can.
fn save_small(picture: &RgbImage, path: &Path) {
    let file = std::fs::File::create(path).expect("the snapshots' folder can be written");
    let encoder = PngEncoder::new_with_quality(file, CompressionType::Best, FilterType::Adaptive);
    picture
        .write_with_encoder(encoder)
        .expect("the picture can be written");
}

fn compare(name: &str, state: &State, size: Vec2, look: egui::Theme) {
    let drawn = draw(state, size, look);
    let path = folder().join(format!("{name}.png"));
    if std::env::var_os("LIMBECK_BLESS").is_some() {
        save_small(&drawn, &path);
        return;
    }
    let blessed = image::open(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; bless it first", path.display()))
        .to_rgb8();
    let differing = if blessed.dimensions() == drawn.dimensions() {
        let far = |a: &Rgb<u8>, b: &Rgb<u8>| (0..3).any(|i| a[i].abs_diff(b[i]) > CHANNEL);
        let count = blessed
            .pixels()
            .zip(drawn.pixels())
            .filter(|(a, b)| far(a, b))
            .count();
        count as f64 / f64::from(drawn.width() * drawn.height())
    } else {
        1.0
    };
    if differing > SHARE {
        let new = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        drawn.save(&new).expect("the target folder can be written");
        panic!(
            "{name}: {:.2} % of the pixels differ from {}; the new picture is {}",
            differing * 100.0,
            path.display(),
            new.display()
        );
    }
}

const SMALL: Vec2 = vec2(1280.0, 800.0);

#[test]
fn dark() {
    compare("dark-1280", &fixture::demo(), SMALL, egui::Theme::Dark);
}

#[test]
fn light_with_a_selected_point() {
    let mut state = fixture::demo();
    state.view.selected_point = Some(PointId(3));
    compare("light-1280", &state, SMALL, egui::Theme::Light);
}

#[test]
fn large() {
    compare(
        "dark-1920",
        &fixture::demo(),
        vec2(1920.0, 1080.0),
        egui::Theme::Dark,
    );
}

#[test]
fn training_coloured_by_size() {
    let mut state = fixture::demo();
    state.view.tab = Tab::Training;
    state.view.colour_by = ColourBy::Size;
    state.refresh();
    compare("light-training", &state, SMALL, egui::Theme::Light);
}

#[test]
fn weights_only() {
    let mut state = fixture::opened();
    let mut model = (**state.model().expect("the fixture has a model")).clone();
    model.data = None;
    model.task_path = None;
    state.mirror.model = Some(Arc::new(model));
    state.view.focus = Some(state.layers()[3].id.clone());
    state.refresh();
    compare("dark-weights-only", &state, SMALL, egui::Theme::Dark);
}

#[test]
fn pruning_channels_and_blocks() {
    let mut state = fixture::demo();
    state.document.channels = true;
    let shrinking = &mut state.document.shrinking;
    shrinking.channels.criterion = Criterion::Taylor;
    shrinking.channels.round_to = 8;
    shrinking.channels.attention = Attention::Heads;
    shrinking.blocks = Some(PruneBlocksStep {
        count: Some(2),
        ..PruneBlocksStep::default()
    });
    shrinking.cluster = Some(ClusterStep {
        default: Choice::Set(16),
        layers: Vec::new(),
        codebooks: Codebooks::PerLayer,
    });
    state.view.dialog = Some(Dialog::Shrink);
    state.refresh();
    compare("dark-pruning", &state, SMALL, egui::Theme::Dark);
}

#[test]
fn distilling_with_everything_that_is_under_advanced() {
    let mut state = fixture::demo();
    state.document.distil = Some(DistilSettings {
        clip_norm: Some(1.0),
        average: Some(0.99),
        feature_weight: 0.5,
        patience: Some(3),
        ..DistilSettings::default()
    });
    state.view.dialog = Some(Dialog::Distil);
    state.refresh();
    compare(
        "light-distil",
        &state,
        vec2(1920.0, 1080.0),
        egui::Theme::Light,
    );
}

/// The rasteriser itself: edges that triangles share are drawn once, colours blend as egui wants them.
#[test]
fn the_rasteriser_draws_what_it_is_given() {
    let mut mesh = egui::Mesh::default();
    mesh.add_colored_rect(
        Rect::from_min_max(egui::pos2(2.0, 2.0), egui::pos2(8.0, 6.0)),
        egui::Color32::from_rgba_premultiplied(128, 0, 0, 128),
    );
    let mut canvas = Canvas::new(10, 8);
    let all = Rect::from_min_max(egui::Pos2::ZERO, egui::pos2(10.0, 5.0));
    canvas.mesh(&mesh, all, Textures::default().get(TextureId::default()));
    let picture = canvas.image();
    let red = picture.pixels().filter(|p| p.0 == [128, 0, 0]).count();
    assert_eq!(
        red,
        6 * 3,
        "six wide, three high inside the clip, none drawn twice"
    );
}
