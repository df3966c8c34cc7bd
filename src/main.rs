//! The command line: one line a subcommand, one file beside this one each. Exit codes are decided
//! here: 0 done, 1 it did not work, 2 the command line was wrong (clap's).
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the command line reads files and asks a running proxy"
)]

mod check;
mod demo;
mod emulate;
mod operate;
mod replay;
mod serve;
mod simulate;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
    /// Check a configuration: every error on a line of its own
    Check(check::Args),
    /// An emulated fleet, the proxy and a load, in one command
    Demo(demo::Args),
    /// Emulated engines over HTTP
    Emulate(emulate::Args),
    /// Policies against each other on a trace, in virtual time
    Simulate(simulate::Args),
    /// Open-loop load on a running server
    Replay(replay::Args),
    /// Backends, roles and loads of a running proxy
    Status(operate::StatusArgs),
    /// Change a backend's role for a time; then the planner decides again
    Flip(operate::FlipArgs),
    /// Change a backend's role and keep the planner away from it until unpin
    Pin(operate::RoleArgs),
    /// End a flip or a pin: the planner decides from now on
    Unpin(operate::BackendArgs),
}

fn main() -> ExitCode {
    let done: Result<(), Box<dyn std::error::Error>> = match CommandLine::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => return check::run(&args),
        Command::Demo(args) => demo::run(args).map_err(Into::into),
        Command::Emulate(args) => emulate::run(args).map_err(Into::into),
        Command::Simulate(args) => simulate::run(args).map_err(Into::into),
        Command::Replay(args) => replay::run(args).map_err(Into::into),
        Command::Status(args) => operate::status(&args).map_err(Into::into),
        Command::Flip(args) => operate::flip(&args).map_err(Into::into),
        Command::Pin(args) => operate::pin(&args).map_err(Into::into),
        Command::Unpin(args) => operate::unpin(&args).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error}");
            ExitCode::FAILURE
        }
    }
}
