//! The command line. Each subcommand has its own file beside this one. Exit codes: 0 success,
//! 1 failure, 2 usage error (set by clap).
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the command line reads files and queries a running proxy"
)]

mod ask;
mod backends;
mod check;
mod demo;
mod discover;
mod doctor;
mod emulate;
mod explain;
mod init;
mod manual;
mod operate;
mod replay;
mod screen;
mod serve;
mod sidecar;
mod simulate;
mod terminal;
mod top;
mod what_if;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A reverse proxy that moves LLM engines between prefill and decode work while traffic flows.
#[derive(Parser)]
#[command(name = "tidegate", version, propagate_version = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy
    Serve(serve::Args),
    /// Write a configuration for running engines
    Init(init::Args),
    /// Run the proxy beside one engine, in place of llm-d's pd-sidecar
    Sidecar(Box<sidecar::Args>),
    /// Check a configuration and print each error on its own line
    Check(check::Args),
    /// Check engines, hand-offs and this machine, with advice for each failed check
    Doctor(doctor::Args),
    /// Run an emulated fleet, the proxy and a load in one process
    Demo(demo::Args),
    /// Serve emulated engines over HTTP
    Emulate(emulate::Args),
    /// Compare scheduling policies on a trace in a discrete-event simulation
    Simulate(simulate::Args),
    /// Send an open-loop load to a running server
    Replay(replay::Args),
    /// Show backends, roles and loads of a running proxy
    Status(operate::StatusArgs),
    /// Show the fleet of a running proxy, live
    Top(top::Args),
    /// Show where a request spent its time, and how it was placed
    Explain(explain::Args),
    /// Set a backend's role temporarily; the planner resumes control afterwards
    Flip(operate::FlipArgs),
    /// Set a backend's role and exclude it from planning until unpin
    Pin(operate::RoleArgs),
    /// End a flip or a pin and return the backend to the planner
    Unpin(operate::BackendArgs),
    /// List, add and remove backends of a running proxy
    Backends(backends::Args),
    /// Print shell completions
    Completions(manual::CompletionsArgs),
    /// Write manual pages
    Man(manual::ManArgs),
}

fn main() -> ExitCode {
    let done: Result<(), Box<dyn std::error::Error>> = match CommandLine::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Sidecar(args) => sidecar::run(&args),
        Command::Check(args) => return check::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Demo(args) => demo::run(args).map_err(Into::into),
        Command::Emulate(args) => emulate::run(args).map_err(Into::into),
        Command::Simulate(args) => simulate::run(args).map_err(Into::into),
        Command::Replay(args) => replay::run(args).map_err(Into::into),
        Command::Status(args) => operate::status(&args).map_err(Into::into),
        Command::Top(args) => top::run(&args).map_err(Into::into),
        Command::Explain(args) => explain::run(&args).map_err(Into::into),
        Command::Flip(args) => operate::flip(&args).map_err(Into::into),
        Command::Pin(args) => operate::pin(&args).map_err(Into::into),
        Command::Unpin(args) => operate::unpin(&args).map_err(Into::into),
        Command::Backends(args) => backends::run(&args).map_err(Into::into),
        Command::Completions(args) => {
            manual::completions(&args, CommandLine::command()).map_err(Into::into)
        }
        Command::Man(args) => manual::man(&args, CommandLine::command()).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error}");
            ExitCode::FAILURE
        }
    }
}
