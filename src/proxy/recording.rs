//! All that the planner sees and decides, a line each, into a file if the settings name one. Written by
//! the control loop alone. It must never hold the planner up: a disk that fails ends the recording,
//! and the log says so.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use tidegate_scheduler::planner::recording::Line;
use tidegate_scheduler::planner::{Decision, Observation, Params};
use tidegate_types::{BackendId, Moment};

/// Where the lines go; nowhere unless it was asked for.
#[derive(Debug, Default)]
pub struct Recording {
    file: Option<BufWriter<File>>,
}

impl Recording {
    /// Begin a recording; one that is there already is overwritten.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn begin(path: &Path, params: &Params) -> io::Result<Recording> {
        let mut recording = Recording { file: Some(BufWriter::new(File::create(path)?)) };
        recording.write(&Line::Begins(Cow::Borrowed(params)));
        Ok(recording)
    }

    /// The planner saw this and decided that.
    pub fn planned(&mut self, at: Moment, seen: &Observation, decision: &Decision) {
        if self.file.is_some() {
            let flips = decision.flips();
            self.write(&Line::Planned { at, seen: Cow::Borrowed(seen), flips });
        }
    }

    /// A role changed otherwise.
    pub fn flipped(&mut self, at: Moment, backend: BackendId) {
        self.write(&Line::Flipped { at, backend });
    }

    /// Bring what was written to the disk.
    pub fn flush(&mut self) {
        let flushed = self.file.as_mut().map_or(Ok(()), BufWriter::flush);
        self.keep(flushed);
    }

    fn write(&mut self, line: &Line<'_>) {
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_writer(&mut *file, line).map_err(io::Error::from);
        let written = written.and_then(|()| file.write_all(b"\n"));
        self.keep(written);
    }

    fn keep(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::error!("the planner's recording ends here: {error}");
            self.file = None;
        }
    }
}
