//! Drawing parts without domain knowledge. Each takes plain values, draws itself with the theme's tokens, carries an
//! accessible name, and says what happened; none knows what a layer or a plan is.

mod bars;
mod button;
mod card;
mod cell;
mod histogram;
pub mod icons;
pub mod number;
mod segmented;
mod slider;
mod text;

pub use bars::{Scale, legend, progress, share_bar, status_dot};
pub use button::{Button, Kind, chip, icon_button, tab};
pub use card::{empty_state, head, key_value, note_card, panel_frame, popup_frame};
pub use cell::{CellLook, hatch_texture, heat_cell};
pub use histogram::{Histogram, channel_ranges};
pub use segmented::{SegmentStyle, segmented, segmented_at};
pub use slider::{SliderEvent, ratio_slider};
pub use text::{
    draw, draw_elided, draw_elided_middle, draw_name, mono_label, muted_label, text_width,
};
