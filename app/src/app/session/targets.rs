//! Descriptions of deployment targets of one's own: read off the window's thread, as soon as a scheme names one.

use super::{Session, Then};
use crate::{
    app::files,
    state::{JobKind, is_target_file},
};
use limbeck_engine::{
    jobs::{Command as Job, JobId},
    target::Target,
};
use std::path::Path;

impl Session {
    /// Reads the description that the plan's scheme names, unless it is known or under way.
    pub(super) fn read_own_target(&mut self) {
        let Some(name) = self.state.document.scheme.target.as_ref() else {
            return;
        };
        let under_way = |then: &Then| matches!(then, Then::ReadTarget(other) if other == name);
        if is_target_file(name)
            && !self.state.mirror.targets.contains_key(name)
            && !self.then.values().any(under_way)
        {
            self.read_target(name.clone());
        }
    }

    pub(super) fn read_target(&mut self, name: String) {
        let path = files::absolute(name.as_str().into());
        self.state.mirror.forget_target(&name);
        let job = self.job(JobKind::File, "Read target", Then::ReadTarget(name));
        self.send(Job::ReadText { job, path });
    }

    /// A description was read; the plan that waited for it is measured.
    pub(super) fn target_read(&mut self, name: String, text: &str) {
        let target = Target::parse(text, Path::new(&name)).map_err(|e| e.to_string());
        self.target_known(name, target);
    }

    /// Whether the job was to read a description: then `why` stands where it was chosen.
    pub(super) fn target_failed(&mut self, job: JobId, why: &str) -> bool {
        let Some(Then::ReadTarget(name)) = self.then.get(&job) else {
            return false;
        };
        let name = name.clone();
        self.then.remove(&job);
        self.target_known(name, Err(why.to_owned()));
        true
    }

    fn target_known(&mut self, name: String, target: Result<Target, String>) {
        let ours = self.state.document.scheme.target.as_deref() == Some(&*name);
        self.state.mirror.set_target(name, target);
        if ours {
            self.measure_edit();
        }
    }
}
