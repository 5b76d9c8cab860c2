//! `squish`: generate with, evaluate, quantize and inspect Llama-type checkpoints on CPUs.
//!
//! Errors are one line on the terminal's error stream, with exit code 2. Results go to the output stream, as a table or, with `--json`, as
//! one JSON object; progress goes to the error stream, and only to a terminal.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod error;
mod load;
mod output;
mod texts;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    args::{Args, Command},
    error::Error,
};

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Generate(args) => commands::generate(&args),
        Command::Eval(args) => commands::eval(&args),
        Command::Quantize(args) => commands::quantize(&args),
        Command::Inspect(args) => commands::inspect(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough: `squish … | head`.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::complain(&error);
            ExitCode::from(2)
        }
    }
}
