//! `cargo xtask bench`: build the benches, run probe and suites in turn, and render the tables.
//!
//! Each launch round starts every bench executable once, then the peer programs if asked for, then the probe again; so peers and ours
//! see the same minutes of the machine. Every round has a criterion folder of its own below `target/squish-bench/`, emptied first, so
//! that nothing stale is read.
//!
//! Only a complete run writes `bench/results/<machine>.json` and BENCHMARKS.md. With `--quick`, `--crate`, `--filter` or `--sweep` the
//! tables are printed and kept in `target/squish-bench/partial.json`: a committed file is always one whole run.

pub mod build;
pub mod gather;
pub mod launch;
pub mod peers;
pub mod samples;

use std::time::Instant;

use crate::{
    failure::{Failure, Outcome, read, write},
    process::{root, target_dir},
    render::render,
    results::{Machine, Probe, Results, RowResult, SeedRow, parse_seed, slug},
};
use build::{Executable, Profile};
use launch::Round;

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only benches of this package.
    pub package: Option<String>,
    /// Only rows whose id contains this.
    pub filter: Option<String>,
    /// One launch instead of three, and a shorter probe.
    pub quick: bool,
    /// Run the peer programs as well.
    pub peers: bool,
    /// Run the grids that stand in no table, and nothing else.
    pub sweep: bool,
}

impl Options {
    /// Reads the arguments after `bench`.
    ///
    /// # Errors
    ///
    /// A sentence about the first argument that makes no sense.
    pub fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().cloned().ok_or_else(|| format!("`{arg}` needs a value"));
            match arg.as_str() {
                "--crate" => options.package = Some(value()?),
                "--filter" => options.filter = Some(value()?),
                "--quick" => options.quick = true,
                "--peers" => options.peers = true,
                "--sweep" => options.sweep = true,
                other => return Err(format!("unknown argument `{other}`")),
            }
        }
        Ok(options)
    }

    /// Whether the run covers every row, so that its results may be published.
    fn is_complete(&self) -> bool {
        self.package.is_none() && self.filter.is_none() && !self.quick && !self.sweep
    }

    fn launches(&self) -> usize {
        if self.quick { 1 } else { crate::verdict::FEWEST_LAUNCHES }
    }
}

/// Runs the command.
///
/// # Errors
///
/// If something does not build or run, or if rows and measurements do not match.
pub fn run(options: &Options) -> Outcome {
    let seed = parse_seed(&read(&root().join("bench/seed/rows.csv"))?).map_err(Failure::new)?;
    let executables = build::benches(options, Profile::Bench)?;
    let (probe, suites) = split_probe(executables)?;
    if suites.is_empty() {
        return Err(Failure::new("no bench executable to run"));
    }
    let clock = Instant::now();
    let say = |what: &str| println!("[{:>4} s] {what}", clock.elapsed().as_secs());

    let mut peer_programs = if options.peers {
        peers::prepare(options, &mut |line| say(line))
    } else {
        peers::none_asked()
    };
    let mut probes = Vec::new();
    let mut take_probe = |when: &str| -> Outcome {
        say(&format!("probe {when}"));
        probes.push(launch::probe(&probe, options.quick)?);
        Ok(())
    };
    take_probe("before")?;

    let mut rounds = Vec::new();
    for launch in 0..options.launches() {
        let round = Round::new(&format!("round-{launch}"))?;
        for (i, suite) in suites.iter().enumerate() {
            if suite.is_fixture() && (launch > 0 || !fixture_wanted(options)) {
                continue;
            }
            say(&format!(
                "launch {} of {}, suite {} of {}: {}",
                launch + 1,
                options.launches(),
                i + 1,
                suites.len(),
                suite.name()
            ));
            round.run(suite, options, Profile::Bench)?;
        }
        peer_programs.run(&mut |line| say(line));
        rounds.push(round.read()?);
        take_probe(if launch + 1 < options.launches() { "between" } else { "after" })?;
    }
    let fixture = rounds.iter_mut().find_map(|round| round.fixture.take());
    let rows = gather::rows(rounds, &seed).map_err(Failure::new)?;

    let release =
        if options.sweep { Vec::new() } else { release_rows(options, &rows, &seed, &say)? };
    let results = Results {
        machine: machine(&probes, options.launches())?,
        probes,
        seed,
        rows,
        peers: peer_programs.merged(),
        missing_peers: peer_programs.missing,
        release,
        fixture,
    };
    for line in gather::strangers(&results) {
        println!("{line}");
    }
    say("done");
    publish(options, &results)
}

/// The probe's executable and the others.
fn split_probe(executables: Vec<Executable>) -> Outcome<(Executable, Vec<Executable>)> {
    let (mut probes, suites): (Vec<_>, Vec<_>) =
        executables.into_iter().partition(Executable::is_probe);
    let probe =
        probes.pop().ok_or_else(|| Failure::new("squish-bench has no bench called `probe`"))?;
    Ok((probe, suites))
}

/// The fixture runs the whole model, so short runs leave it out unless it is what they ask for.
fn fixture_wanted(options: &Options) -> bool {
    match &options.filter {
        Some(filter) => "fixture".contains(filter.as_str()),
        None => !options.quick && !options.sweep,
    }
}

/// Measures the rows that say so once more, built as a user's `cargo build --release` would.
fn release_rows(
    options: &Options,
    rows: &[RowResult],
    seed: &[SeedRow],
    say: &dyn Fn(&str),
) -> Outcome<Vec<RowResult>> {
    if options.quick || !rows.iter().any(|row| row.row.release_profile) {
        return Ok(Vec::new());
    }
    say("building at the default release profile");
    let suites = build::benches(options, Profile::Release)?;
    let mut rounds = Vec::new();
    for launch in 0..options.launches() {
        let round = Round::new(&format!("release-{launch}"))?;
        for suite in suites.iter().filter(|suite| !suite.is_probe() && !suite.is_fixture()) {
            say(&format!(
                "default release profile, launch {} of {}: {}",
                launch + 1,
                options.launches(),
                suite.name()
            ));
            round.run(suite, options, Profile::Release)?;
        }
        rounds.push(round.read()?);
    }
    gather::rows(rounds, seed).map_err(Failure::new)
}

fn machine(probes: &[Probe], launches: usize) -> Outcome<Machine> {
    let first = probes.first().ok_or_else(|| Failure::new("no probe ran"))?;
    Ok(Machine {
        cpu: first.cpu.clone(),
        isa: first.isa.clone(),
        cores: first.cores,
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        rustc: build::rustc_version()?,
        commit: build::commit(),
        date: build::today(),
        launches,
    })
}

/// Writes or prints the results.
fn publish(options: &Options, results: &Results) -> Outcome {
    let json = serde_json::to_string_pretty(results)
        .map_err(|error| Failure::new(error.to_string()))?
        + "\n";
    let text = render(results);
    if options.is_complete() {
        let file = root()
            .join("bench/results")
            .join(slug(&results.machine.cpu, results.machine.cores) + ".json");
        write(&file, json)?;
        write(&root().join("BENCHMARKS.md"), text)?;
        println!("wrote {} and BENCHMARKS.md", file.display());
    } else {
        let file = target_dir().join("squish-bench/partial.json");
        write(&file, json)?;
        println!(
            "{text}\na partial run: results are in {}, BENCHMARKS.md is as it was",
            file.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        Options::parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn only_a_run_of_everything_is_published() {
        assert!(parse(&[]).unwrap().is_complete() && parse(&["--peers"]).unwrap().is_complete());
        for partial in
            [&["--quick"][..], &["--sweep"], &["--crate", "squish-quant"], &["--filter", "fp8"]]
        {
            assert!(!parse(partial).unwrap().is_complete(), "{partial:?}");
        }
    }

    #[test]
    fn a_flag_without_value_or_an_unknown_one_is_refused() {
        assert_eq!(parse(&["--crate"]).unwrap_err(), "`--crate` needs a value");
        assert_eq!(parse(&["--crates", "x"]).unwrap_err(), "unknown argument `--crates`");
    }

    #[test]
    fn the_fixture_runs_in_complete_runs_and_where_it_is_asked_for() {
        for (args, wanted) in [
            (&[][..], true),
            (&["--quick"][..], false),
            (&["--filter", "fp8"][..], false),
            (&["--quick", "--filter", "fixture"][..], true),
            (&["--sweep"][..], false),
        ] {
            assert_eq!(fixture_wanted(&parse(args).unwrap()), wanted, "{args:?}");
        }
    }
}
