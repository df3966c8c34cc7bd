//! Recording of the planner's inputs and decisions, one JSON line each, into the file
//! `planner.record`. Written by the control loop. A write error is logged and ends the recording,
//! not the planner.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use tidegate_scheduler::planner::recording::PlanRecord;
use tidegate_scheduler::planner::{Decision, Observation, Params};
use tidegate_types::{BackendId, Moment};

/// The recording. Disabled without a file.
#[derive(Debug, Default)]
pub struct Recording {
    file: Option<BufWriter<File>>,
}

impl Recording {
    /// Starts a recording and overwrites an existing file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn begin(path: &Path, params: &Params) -> io::Result<Recording> {
        let mut recording = Recording { file: Some(BufWriter::new(File::create(path)?)) };
        recording.write(&PlanRecord::Begins(Cow::Borrowed(params)));
        Ok(recording)
    }

    /// Records an observation and the planner's decision.
    pub fn planned(&mut self, at: Moment, seen: &Observation, decision: &Decision) {
        if self.file.is_some() {
            let flips = decision.flips();
            self.write(&PlanRecord::Planned { at, seen: Cow::Borrowed(seen), flips });
        }
    }

    /// Records other parameters, in force from the next plan on.
    pub fn revised(&mut self, params: &Params) {
        self.write(&PlanRecord::Revised(Cow::Borrowed(params)));
    }

    /// Records a role change that the planner did not decide.
    pub fn flipped(&mut self, at: Moment, backend: BackendId) {
        self.write(&PlanRecord::Flipped { at, backend });
    }

    /// Flushes buffered lines to the file.
    pub fn flush(&mut self) {
        let flushed = self.file.as_mut().map_or(Ok(()), BufWriter::flush);
        self.keep(flushed);
    }

    fn write(&mut self, line: &PlanRecord<'_>) {
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_writer(&mut *file, line).map_err(io::Error::from);
        let written = written.and_then(|()| file.write_all(b"\n"));
        self.keep(written);
    }

    fn keep(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::error!("planner.record: write failed, recording ended: {error}");
            self.file = None;
        }
    }
}
