//! Notices and interrupted distillations over the window's lower right corner, until they are dismissed.

use super::{Commands, interrupted};
use crate::{
    commands::Command,
    state::{NoticeKind, State},
    theme,
    widgets::{self, icons::Icon},
};
use egui::{
    Align, Align2, Area, CornerRadius, Frame, Id, Layout, Margin, Order, Pos2, RichText, Stroke,
    Ui, vec2,
};

/// `corner`: the lower right corner they stand in.
pub fn show(ui: &mut Ui, corner: Pos2, state: &State, out: &mut Commands) {
    if state.notices.is_empty() && state.mirror.interrupted.is_empty() {
        return;
    }
    let t = theme::of(ui);
    let frame_style = ui.visuals().popup_shadow;
    Area::new(Id::unique("notices"))
        .order(Order::Foreground)
        .fixed_pos(corner - vec2(16.0, 16.0))
        .pivot(Align2::RIGHT_BOTTOM)
        .show(ui.ctx(), |ui| {
            ui.set_width(380.0);
            ui.spacing_mut().item_spacing.y = 8.0;
            interrupted::show(ui, state, out);
            for notice in &state.notices {
                let (edge, word) = match notice.kind {
                    NoticeKind::Info => (t.measured, "Note"),
                    NoticeKind::Warning => (t.warning, "Warning"),
                    NoticeKind::Error => (t.fail, "Error"),
                };
                Frame::new()
                    .fill(t.raised)
                    .stroke(Stroke::new(1.0, theme::mix(t.line, edge, 0.5)))
                    .corner_radius(CornerRadius::same(theme::RADIUS))
                    .shadow(frame_style)
                    .inner_margin(Margin::symmetric(12, 8))
                    .show(ui, |ui| {
                        ui.with_layout(Layout::right_to_left(Align::Min), |ui| {
                            let name = format!("Dismiss: {}", notice.text);
                            if widgets::icon_button(ui, Icon::Close, &name, "Dismiss", None) {
                                out.push(Command::DismissNotice(notice.id));
                            }
                            ui.with_layout(Layout::top_down(Align::Min), |ui| {
                                if notice.kind != NoticeKind::Info {
                                    ui.label(RichText::new(word).font(theme::strong()).color(edge));
                                }
                                ui.add(
                                    egui::Label::new(
                                        RichText::new(&notice.text)
                                            .font(theme::sans())
                                            .color(t.text),
                                    )
                                    .wrap(),
                                );
                            });
                        });
                    });
            }
        });
}
