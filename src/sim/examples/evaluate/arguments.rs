//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use tidegate_sim::{Policy, TidegateParams};

pub const USAGE: &str = "\
evaluate [SECTION…] [OPTION…]

Sections (default: all)
  cells          attainment, goodput and latency of every policy on every cell
  ablation       tidegate with one override at a time, against the parameters in force
  disturbances   tidegate and the best fixed split under each disturbance
  headline       rate at 90 % attainment and fewest engines, beside the best fixed split
  classes        loads of several service classes, with the classes known to the scheduler or not

Options
  --short              3 seeds, chunk 2,048 only, the ablation on the tuning cells only: five
                       minutes on two cores
  --seeds N            draws of each trace; 0 is the trace itself (default 20; ablation, disturbances
                       and headline: half of it)
  --only NAME          cells whose name contains NAME
  --set-of NAME        tuning, held-out or reuse: the cells of one set
  --policies P[,P…]    instead of all policies; tidegate always runs
  --set NAME=X[+…]     parameters of tidegate in every section, for example prefill_backlog_max=0.15
  --ablate NAME=X[+…]  instead of the ablation's rows; may be repeated
  --traces DIR         every .csv and .jsonl file of a folder as a held-out cell
  --save FILE          write the attainment of each draw in `cells`
  --against FILE       compare with a saved file: paired differences between two builds
  --write              write the tables into docs/evaluation.md, between their markers, unless
                       an option narrows or changes the run
";

/// Parts of the evaluation, in the order of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvaluationSection {
    Cells,
    Ablation,
    Disturbances,
    Headline,
    Classes,
}

impl EvaluationSection {
    pub const ALL: [EvaluationSection; 5] = [
        EvaluationSection::Cells,
        EvaluationSection::Ablation,
        EvaluationSection::Disturbances,
        EvaluationSection::Headline,
        EvaluationSection::Classes,
    ];

    /// Name on the command line and in the markers of the page.
    pub fn as_str(self) -> &'static str {
        match self {
            EvaluationSection::Cells => "cells",
            EvaluationSection::Ablation => "ablation",
            EvaluationSection::Disturbances => "disturbances",
            EvaluationSection::Headline => "headline",
            EvaluationSection::Classes => "classes",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Args {
    pub sections: Vec<EvaluationSection>,
    pub short: bool,
    pub seeds: u64,
    pub only: String,
    pub set_of: String,
    /// Empty: all policies of a cell.
    pub policies: Vec<String>,
    pub params: TidegateParams,
    /// Empty: the rows of `ablation.rs`.
    pub ablate: Vec<String>,
    pub traces: Option<PathBuf>,
    pub save: Option<PathBuf>,
    pub against: Option<PathBuf>,
    pub write: bool,
    /// The arguments as given, for the page.
    pub command: String,
}

impl Args {
    /// Whether the page may take the tables: they have every cell and policy, with the parameters in
    /// force.
    pub fn writes(&self) -> bool {
        let whole = self.only.is_empty() && self.set_of.is_empty() && self.policies.is_empty();
        let in_force = self.params == TidegateParams::default() && self.ablate.is_empty();
        self.write && whole && in_force && self.against.is_none()
    }

    /// Seeds of the sections that run many configurations.
    pub fn fewer_seeds(&self) -> u64 {
        if self.short { self.seeds } else { self.seeds.div_ceil(2) }
    }

    pub fn parse(arguments: &[String]) -> Result<Args, String> {
        let mut args = Args {
            sections: Vec::new(),
            short: false,
            seeds: 0,
            only: String::new(),
            set_of: String::new(),
            policies: Vec::new(),
            params: TidegateParams::default(),
            ablate: Vec::new(),
            traces: None,
            save: None,
            against: None,
            write: false,
            command: arguments
                .iter()
                .filter(|argument| *argument != "--write")
                .map(String::as_str)
                .collect::<Vec<&str>>()
                .join(" "),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            args.argument(argument, || {
                arguments.next().ok_or(format!("{argument} needs a value\n\n{USAGE}"))
            })?;
        }
        if args.sections.is_empty() {
            args.sections = EvaluationSection::ALL.to_vec();
        }
        if args.seeds == 0 {
            args.seeds = if args.short { 3 } else { 20 };
        }
        Ok(args)
    }

    fn argument<'a>(
        &mut self,
        argument: &str,
        value: impl FnOnce() -> Result<&'a String, String>,
    ) -> Result<(), String> {
        if let Some(section) =
            EvaluationSection::ALL.into_iter().find(|section| section.as_str() == argument)
        {
            self.sections.push(section);
            return Ok(());
        }
        match argument {
            "--short" => self.short = true,
            "--write" => self.write = true,
            "--seeds" => {
                let seeds = value()?.parse().ok().filter(|seeds| (1..=1000).contains(seeds));
                self.seeds = seeds.ok_or("--seeds takes 1 to 1000")?;
            }
            "--only" => self.only.clone_from(value()?),
            "--set-of" => self.set_of.clone_from(value()?),
            "--policies" => {
                self.policies = value()?.split(',').map(str::to_owned).collect();
                for policy in &self.policies {
                    if policy != super::contest::BEST_CONDITIONAL {
                        Policy::from_str(policy).map_err(|error| error.to_string())?;
                    }
                }
            }
            "--set" => self.params = self.params.with(value()?).map_err(|e| e.to_string())?,
            "--ablate" => {
                let row = value()?;
                self.params.with(row).map_err(|error| error.to_string())?;
                self.ablate.push(row.clone());
            }
            "--traces" => self.traces = Some(value()?.into()),
            "--save" => self.save = Some(value()?.into()),
            "--against" => self.against = Some(value()?.into()),
            _ => return Err(format!("unknown argument {argument:?}\n\n{USAGE}")),
        }
        Ok(())
    }
}
