//! The commands of the repository: benches and evidence with their tables, repository rules, goldens, tests under emulation, publishing.
//!
//! Each command is a module of this program. What it decides is a pure function over text or plain data, tested beside it; processes and files are
//! touched at the edges.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod bench;
mod charts;
mod cross;
mod evidence;
mod failure;
mod golden;
mod process;
mod publish;
mod python;
mod render;
mod results;
mod tidy;
mod verdict;

use std::process::ExitCode;

use failure::Outcome;

/// Printed when there is no command, or an unknown one.
const USAGE: &str = "\
cargo xtask COMMAND

  bench [--crate X] [--filter F] [--quick] [--peers] [--sweep] [--publish]
        measure the rows and print their tables; a run of every row with all peers writes BENCHMARKS.md, --publish without them
  bench --against REV [--crate X] [--filter F] [--quick]
        measure the working tree and a revision in turn; exit status 1 if a row is worse
  bench --render [FILE]
        render BENCHMARKS.md again, from FILE or the only machine's in bench/results, without measuring
  evidence [--quick]
        measure what techniques cost and save on the trained checkpoint, and write EVIDENCE.md; --quick prints the tables
  evidence --render
        render EVIDENCE.md again, without measuring
  tidy  check the rules of the repository
  golden [--check]
        make the golden files again and list what differs; --check leaves the committed ones alone
  cross [CARGO ARGUMENTS]
        tests of the numeric crates for aarch64 under emulation (needs root and Debian)
  publish [--execute]
        order, versions and a dry run; --execute publishes
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    run(&args)
}

/// Runs one command; exit status 1 if it failed and 2 if the arguments make no sense.
fn run(args: &[String]) -> ExitCode {
    let Some((command, rest)) = args.split_first() else {
        return usage("no command");
    };
    let outcome: Result<Outcome, String> = match command.as_str() {
        "bench" => bench::Task::parse(rest).map(|task| bench::run(&task)),
        "evidence" => evidence::Task::parse(rest).map(evidence::run),
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
            &["evidence", "--fast"],
            &["tidy", "now"],
            &["golden", "-x"],
            &["publish", "all"],
        ] {
            assert_eq!(code(args), two, "{args:?}");
        }
    }
}
