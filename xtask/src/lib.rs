//! The commands of the repository: benches and their tables, repository rules, goldens, tests under emulation, publishing.
//!
//! Each command is a module. What it decides is a pure function over text or plain data, tested beside it; processes and files are
//! touched at the edges.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

pub mod bench;
pub mod cross;
pub mod failure;
pub mod golden;
pub mod process;
pub mod publish;
pub mod python;
pub mod render;
pub mod results;
pub mod tidy;
pub mod verdict;

use std::process::ExitCode;

use failure::Outcome;

/// Printed when there is no command, or an unknown one.
pub const USAGE: &str = "\
cargo xtask COMMAND

  bench [--crate X] [--filter F] [--quick] [--peers] [--sweep]
        measure the rows and render BENCHMARKS.md; a partial run is printed and kept under target/
  tidy  check the rules of the repository
  golden [--check]
        make the golden files again and list what differs; --check leaves the committed ones alone
  cross [CARGO ARGUMENTS]
        tests of the numeric crates for aarch64 under emulation (needs root and Debian)
  publish [--execute]
        order, versions and a dry run; --execute publishes
";

/// Runs one command; exit status 1 if it failed and 2 if the arguments make no sense.
#[must_use]
pub fn run(args: &[String]) -> ExitCode {
    let Some((command, rest)) = args.split_first() else {
        return usage("no command");
    };
    let outcome: Result<Outcome, String> = match command.as_str() {
        "bench" => bench::Options::parse(rest).map(|options| bench::run(&options)),
        "tidy" => no_arguments(rest).map(|()| tidy::run()),
        "golden" => golden::Mode::parse(rest).map(golden::run),
        "cross" => Ok(cross::run(rest)),
        "publish" => publish::Mode::parse(rest).map(publish::run),
        other => Err(format!("unknown command `{other}`")),
    };
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
        Err(mistake) => usage(&mistake),
    }
}

fn usage(mistake: &str) -> ExitCode {
    eprintln!("{mistake}\n\n{USAGE}");
    ExitCode::from(2)
}

fn no_arguments(rest: &[String]) -> Result<(), String> {
    rest.first().map_or(Ok(()), |extra| Err(format!("unknown argument `{extra}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(args: &[&str]) -> String {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        format!("{:?}", run(&args))
    }

    #[test]
    fn no_command_or_an_unknown_one_or_an_unknown_argument_exits_with_2() {
        let two = format!("{:?}", ExitCode::from(2));
        for args in [
            &[][..],
            &["frobnicate"],
            &["bench", "--fast"],
            &["tidy", "now"],
            &["golden", "-x"],
            &["publish", "all"],
        ] {
            assert_eq!(code(args), two, "{args:?}");
        }
    }
}
