//! The eframe application: `logic` drains engine events and runs commands, `ui` only draws.

use super::{
    Request, Session,
    dialogs::{self, Dialogs},
    files,
    palette::Palette,
    picker::Picker,
    shortcuts,
};
use crate::{
    commands::Command,
    panels,
    state::{NoticeKind, State, ThemeChoice, View},
    theme,
};
use egui::{Context, ViewportCommand};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Name under which the window system and the settings folder know the application.
pub const APP_ID: &str = "limbeck-workbench";

/// Wake-ups by the engine are gathered to about so many a second.
const WAKE_EVERY: Duration = Duration::from_millis(66);

/// How long information and warnings stay on the window (the log keeps them).
const NOTICE_STAYS: Duration = Duration::from_secs(8);

/// What to open at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Model, project or recipe; the sample if none is given.
    pub path: Option<PathBuf>,
    pub task: Option<PathBuf>,
}

/// The window's application.
pub struct Window {
    pub session: Session,
    dialogs: Dialogs,
    palette: Palette,
    picker: Picker,
    /// Sent while drawing, carried out in the next `logic`.
    commands: Vec<Command>,
    theme: Option<ThemeChoice>,
    title: String,
    /// The user has agreed to close.
    closing: bool,
}

impl Window {
    /// Sets up the look, starts the engine and opens what was asked for.
    pub fn new(creation: &eframe::CreationContext<'_>, start: Start) -> Self {
        let view = creation
            .storage
            .and_then(|storage| eframe::get_value::<View>(storage, eframe::APP_KEY))
            .unwrap_or_default();
        let mut window = Self::with_view(&creation.egui_ctx, start, view);
        window.session.runs = eframe::storage_dir(APP_ID).map(|folder| folder.join("runs"));
        // Else they are looked for as soon as the model is open.
        if window.session.is_idle() {
            window.session.find_runs();
        }
        window
    }

    /// As [`Window::new`], with a view instead of the stored one.
    pub fn with_view(ctx: &Context, start: Start, view: View) -> Self {
        let waking = ctx.clone();
        let session = Session::start(Arc::new(move || {
            waking.request_repaint_after(WAKE_EVERY);
        }));
        let mut window = Self::with_session(ctx, session);
        let session = &mut window.session;
        session.state.view = view;
        session.run(match start {
            Start {
                path: Some(model),
                task: Some(task),
            } => Command::OpenModel {
                model,
                task: Some(task),
            },
            Start {
                path: Some(path), ..
            } => Command::Open(path),
            Start { path: None, .. } if files::sample().is_some() => Command::OpenSample,
            // The welcome text says what to do.
            Start { path: None, .. } => Command::CloseDialog,
        });
        window
    }

    /// The window of a session that runs already.
    pub fn with_session(ctx: &Context, session: Session) -> Self {
        theme::install(ctx);
        Self {
            session,
            dialogs: Dialogs::default(),
            palette: Palette::default(),
            picker: Picker::default(),
            commands: Vec::new(),
            theme: None,
            title: String::new(),
            closing: false,
        }
    }

    fn run_commands(&mut self, ctx: &Context) {
        for command in std::mem::take(&mut self.commands) {
            self.session.run(command);
        }
        for request in self.session.take_requests() {
            match request {
                Request::Quit => self.close(ctx),
                Request::Browse(dialog) => {
                    let name = dialogs::suggested_name(&dialog, &self.session.state);
                    if let Err(error) = self.picker.browse(dialog, name, ctx) {
                        self.session.state.notify(
                            NoticeKind::Warning,
                            format!("The file picker could not be started ({error}); type the path instead"),
                        );
                    }
                }
            }
        }
    }

    /// Closes, once a distillation at work has kept where it stands; asked again, at once.
    fn close(&mut self, ctx: &Context) {
        if self.closing || !self.session.end() {
            self.closing = true;
            ctx.send_viewport_cmd(ViewportCommand::Close);
        }
    }

    /// What `logic` does: events in, commands carried out.
    pub fn step(&mut self, ctx: &Context) {
        self.session.drain();
        if let Some((dialog, path)) = self.picker.picked() {
            match path {
                Some(path) => self.dialogs.picked(&dialog, path),
                None => self.session.state.mirror.log(
                    false,
                    "No file chosen (or no dialog service here: type the path)",
                ),
            }
        }
        let dropped: Vec<PathBuf> = ctx.input(|input| {
            input
                .raw
                .dropped_files
                .iter()
                .map(|file| file.path().to_owned())
                .collect()
        });
        self.commands.extend(opening(dropped));
        if ctx.input(|input| input.viewport().close_requested()) && !self.closing {
            ctx.send_viewport_cmd(ViewportCommand::CancelClose);
            self.commands.push(Command::Quit);
        }
        self.run_commands(ctx);
    }

    /// What `ui` does: draws, and gathers commands.
    pub fn draw(&mut self, ui: &mut egui::Ui) {
        let ctx = ui.ctx().clone();
        let choice = self.session.state.view.theme;
        if self.theme != Some(choice) {
            self.theme = Some(choice);
            ctx.set_theme(match choice {
                ThemeChoice::Dark => egui::Theme::Dark,
                ThemeChoice::Light => egui::Theme::Light,
            });
        }
        let mut out = Vec::new();
        let state = &self.session.state;
        shortcuts::read(&ctx, state, &mut out);
        panels::workbench(ui, state, &mut out);
        self.palette.show(&ctx, state, &mut out);
        self.dialogs.show(&ctx, state, &mut out);
        fade(&ctx, state, &mut out);
        let title = title(state);
        if self.title != title {
            ctx.send_viewport_cmd(ViewportCommand::Title(title.clone()));
            self.title = title;
        }
        if !out.is_empty() {
            self.commands = out;
            // Carried out here and shown in the very next frame, so that a slider never lags.
            self.run_commands(&ctx);
            ctx.request_repaint();
        }
    }
}

impl eframe::App for Window {
    fn logic(&mut self, ctx: &Context, _frame: &mut eframe::Frame) {
        self.step(ctx);
    }

    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.draw(ui);
    }

    fn save(&mut self, storage: &mut dyn eframe::Storage) {
        eframe::set_value(storage, eframe::APP_KEY, &self.session.state.view);
    }
}

/// The window's title: what is open, and a star while changes are unsaved.
fn title(state: &State) -> String {
    match state.model() {
        Some(model) => {
            let dirty = if state.is_dirty() { "*" } else { "" };
            format!("{}{dirty} – Limbeck", model.name)
        }
        None => "Limbeck".into(),
    }
}

/// Information and warnings leave by themselves; errors stay until they are dismissed.
fn fade(ctx: &Context, state: &State, out: &mut Vec<Command>) {
    for notice in &state.notices {
        if notice.kind != NoticeKind::Error {
            let age = notice.since.elapsed();
            if age >= NOTICE_STAYS {
                out.push(Command::DismissNotice(notice.id));
            } else {
                ctx.request_repaint_after(NOTICE_STAYS - age);
            }
        }
    }
}

/// Several files dropped at once: a model with a task belongs together.
pub fn opening(dropped: Vec<PathBuf>) -> Vec<Command> {
    let of = |kind| {
        dropped
            .iter()
            .find(|path| files::kind(path) == kind)
            .cloned()
    };
    if let (Some(model), Some(task)) = (of(files::FileKind::Model), of(files::FileKind::Task)) {
        return vec![Command::OpenModel {
            model,
            task: Some(task),
        }];
    }
    dropped.into_iter().take(1).map(Command::Open).collect()
}
