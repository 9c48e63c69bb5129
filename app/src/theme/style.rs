//! egui's `Style` made from the tokens, so that its own widgets (text fields, menus, scroll bars) match ours.

use super::{RADIUS, RADIUS_PANEL, Tokens, fonts};
use egui::{
    Color32, CornerRadius, Margin, Shadow, Stroke, Style, TextStyle, Visuals,
    style::{HandleShape, ScrollStyle, Selection, WidgetVisuals, Widgets},
    vec2,
};

pub(super) fn style(t: &Tokens, dark: bool) -> Style {
    let mut style = Style {
        visuals: visuals(t, dark),
        animation_time: 0.08,
        ..Default::default()
    };
    style.text_styles = [
        (TextStyle::Small, fonts::small()),
        (TextStyle::Body, fonts::sans()),
        (TextStyle::Button, fonts::sans()),
        (TextStyle::Monospace, fonts::mono()),
        (TextStyle::Heading, fonts::title()),
    ]
    .into();
    let s = &mut style.spacing;
    s.item_spacing = vec2(8.0, 4.0);
    s.window_margin = Margin::same(16);
    s.menu_margin = Margin::same(4);
    s.button_padding = vec2(10.0, 2.0);
    s.interact_size = vec2(26.0, 26.0);
    s.indent = 16.0;
    s.slider_width = 96.0;
    s.slider_rail_height = 3.0;
    s.text_edit_width = 240.0;
    s.icon_width = 14.0;
    s.icon_width_inner = 8.0;
    s.combo_height = 320.0;
    s.tooltip_width = 420.0;
    s.scroll = ScrollStyle {
        floating: true,
        bar_width: 8.0,
        floating_width: 3.0,
        floating_allocated_width: 0.0,
        handle_min_length: 24.0,
        foreground_color: true,
        dormant_handle_opacity: 0.25,
        active_handle_opacity: 0.5,
        interact_handle_opacity: 0.8,
        ..ScrollStyle::floating()
    };
    style.interaction.tooltip_delay = 0.35;
    style.interaction.selectable_labels = false;
    style.interaction.resize_grab_radius_side = 4.0;
    style
}

fn visuals(t: &Tokens, dark: bool) -> Visuals {
    let base = if dark {
        Visuals::dark()
    } else {
        Visuals::light()
    };
    let radius = CornerRadius::same(RADIUS);
    let widget = |ground: Color32, edge: Color32, text: Color32| WidgetVisuals {
        bg_fill: ground,
        weak_bg_fill: ground,
        bg_stroke: Stroke::new(1.0, edge),
        corner_radius: radius,
        fg_stroke: Stroke::new(1.0, text),
        expansion: 0.0,
    };
    let lifted = super::mix(t.raised, t.text, 0.06);
    let shadow = Shadow {
        offset: [0, 6],
        blur: 20,
        spread: 0,
        color: Color32::from_black_alpha(if dark { 110 } else { 40 }),
    };
    Visuals {
        dark_mode: dark,
        override_text_color: None,
        weak_text_color: Some(t.muted),
        widgets: Widgets {
            noninteractive: widget(t.panel, t.line, t.text),
            inactive: widget(t.raised, t.line, t.text),
            hovered: widget(lifted, super::mix(t.line, t.text, 0.25), t.text),
            active: widget(t.selected, t.accent, t.text),
            open: widget(t.selected, t.line, t.text),
        },
        selection: Selection {
            bg_fill: super::mix(t.panel, t.accent, if dark { 0.35 } else { 0.25 }),
            stroke: Stroke::new(1.0, t.text),
        },
        hyperlink_color: t.measured,
        faint_bg_color: t.raised,
        extreme_bg_color: t.background,
        text_edit_bg_color: Some(t.raised),
        code_bg_color: t.raised,
        warn_fg_color: t.warning,
        error_fg_color: t.fail,
        window_corner_radius: CornerRadius::same(RADIUS_PANEL),
        window_shadow: shadow,
        window_fill: t.panel,
        window_stroke: Stroke::new(1.0, t.line),
        menu_corner_radius: CornerRadius::same(RADIUS),
        panel_fill: t.background,
        popup_shadow: shadow,
        striped: false,
        slider_trailing_fill: true,
        handle_shape: HandleShape::Circle,
        button_frame: true,
        disabled_alpha: 0.55,
        ..base
    }
}
