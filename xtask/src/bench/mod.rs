//! `cargo xtask bench`: build the benches, run probe and suites in turn, and render the tables.
//!
//! Each launch round starts every bench executable once, then the peer programs if asked for, then the probe again; so peers and ours
//! see the same minutes of the machine. Every round has a criterion folder of its own below `target/squish-bench/`, emptied first, so
//! that nothing stale is read. `--against REV` measures no limits and no peers, but another revision: see `against`.
//!
//! Only a run of every row and of all peers writes `bench/results/<machine>.json` and BENCHMARKS.md; `--publish` writes them without
//! peers, too. After any other run the tables are printed, and the results kept in `target/squish-bench/partial.json`: a committed file
//! is always one whole run. `--render` renders BENCHMARKS.md from a committed file again and measures nothing.

mod against;
pub(crate) mod build;
pub(crate) mod gather;
pub(crate) mod launch;
pub(crate) mod peers;
pub(crate) mod samples;
pub(crate) mod whole_model;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    evidence,
    failure::{Failure, Outcome, read, write},
    process::{root, target_dir},
    render::{charts, render},
    results::{Machine, Probe, Results, RowResult, parse_seed, slug},
};
use build::{Executable, Profile};
use launch::Round;

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Only benches of this package.
    pub(crate) package: Option<String>,
    /// Only rows whose id contains this.
    pub(crate) filter: Option<String>,
    /// One launch instead of three, a shorter probe, and samples of less than half the time.
    pub(crate) quick: bool,
    /// Run the peer programs as well.
    pub(crate) peers: bool,
    /// Run the grids that stand in no table, and nothing else.
    pub(crate) sweep: bool,
    /// When a run of every row is written.
    pub(crate) publish: Publish,
}

/// When the results of a run of every row go into the repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Publish {
    /// If all peers were measured.
    #[default]
    WithPeers,
    /// Without peers, too.
    Always,
}

/// What `bench` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Measure.
    Measure(Options),
    /// Render BENCHMARKS.md from a file of results: the one named, or the only one that there is.
    Render(Option<PathBuf>),
    /// Compare the working tree with a revision.
    Against(String, Options),
}

impl Task {
    /// Reads the arguments after `bench`.
    ///
    /// # Errors
    ///
    /// A sentence about the first argument that makes no sense.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        match args {
            [flag] if flag == "--render" => Ok(Self::Render(None)),
            [flag, file] if flag == "--render" => Ok(Self::Render(Some(PathBuf::from(file)))),
            [flag, revision, rest @ ..] if flag == "--against" => {
                let options = Options::parse(rest)?;
                if options.peers || options.sweep || options.publish == Publish::Always {
                    return Err("`--against` goes with `--crate`, `--filter` and `--quick`".into());
                }
                Ok(Self::Against(revision.clone(), options))
            }
            _ => Options::parse(args).map(Self::Measure),
        }
    }
}

impl Options {
    /// Reads the arguments after `bench`.
    ///
    /// # Errors
    ///
    /// A sentence about the first argument that makes no sense.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
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
                "--publish" => options.publish = Publish::Always,
                "--render" => {
                    return Err("`--render` measures nothing and goes with a file at most".into());
                }
                other => return Err(format!("unknown argument `{other}`")),
            }
        }
        if options.publish == Publish::Always && !options.is_complete() {
            return Err("`--publish` needs a run of every row".to_owned());
        }
        Ok(options)
    }

    /// Whether the run covers every row.
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
/// If something does not build or run, if rows and measurements do not match, or if there are no results to render.
pub(crate) fn run(task: &Task) -> Outcome {
    match task {
        Task::Measure(options) => measure(options),
        Task::Render(file) => render_again(file.as_deref()),
        Task::Against(revision, options) => against::run(revision, options),
    }
}

fn measure(options: &Options) -> Outcome {
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
    let rows = gather::rows(rounds, &seed).map_err(Failure::new)?;

    let mut results = Results {
        machine: machine(&probes, options.launches())?,
        probes,
        seed,
        rows,
        peers: peer_programs.merged(),
        missing_peers: peer_programs.missing,
        release: Vec::new(),
    };
    // What took a quarter of an hour is on disk before anything else is built.
    keep(&results)?;
    if !options.sweep {
        results.release = release_rows(options, &results, &say)?;
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

/// Measures the rows that say so once more, built as a user's `cargo build --release` would.
fn release_rows(
    options: &Options,
    results: &Results,
    say: &dyn Fn(&str),
) -> Outcome<Vec<RowResult>> {
    if options.quick || !results.rows.iter().any(|row| row.row.release_profile) {
        return Ok(Vec::new());
    }
    say("building at the default release profile");
    let suites = build::benches(options, Profile::Release)?;
    let mut rounds = Vec::new();
    for launch in 0..options.launches() {
        let round = Round::new(&format!("release-{launch}"))?;
        for suite in suites.iter().filter(|suite| !suite.is_probe()) {
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
    gather::rows(rounds, &results.seed).map_err(Failure::new)
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

/// The results as they are written.
fn json(results: &Results) -> Outcome<String> {
    let text = serde_json::to_string_pretty(results);
    Ok(text.map_err(|error| Failure::new(error.to_string()))? + "\n")
}

/// Writes the results where those of the latest run are, whatever becomes of them, and returns the file.
fn keep(results: &Results) -> Outcome<PathBuf> {
    let file = target_dir().join("squish-bench/partial.json");
    write(&file, json(results)?)?;
    Ok(file)
}

/// Writes the results to the repository, or prints them and says why they are not written.
fn publish(options: &Options, results: &Results) -> Outcome {
    let faults = gather::faults(results);
    let mut why_not = faults.clone();
    why_not.extend(reason_not_to_publish(options, results));
    if why_not.is_empty() {
        let file =
            results_folder().join(slug(&results.machine.cpu, results.machine.cores) + ".json");
        write(&file, json(results)?)?;
        println!("wrote {}", file.display());
        return write_tables(results);
    }
    let file = keep(results)?;
    println!(
        "{}\nnot published:\n{}\nresults are in {}, BENCHMARKS.md is as it was",
        render(results),
        why_not.join("\n"),
        file.display()
    );
    if options.is_complete() && !faults.is_empty() {
        return Err(Failure::new(format!("{} faults in a run of every row", faults.len())));
    }
    Ok(())
}

/// Why a run without faults is not for BENCHMARKS.md, if so.
fn reason_not_to_publish(options: &Options, results: &Results) -> Option<String> {
    if !options.is_complete() {
        return Some("a run of some rows".to_owned());
    }
    let has_peers = options.peers && results.missing_peers.is_empty();
    if has_peers || options.publish == Publish::Always {
        return None;
    }
    let missing = results.missing_peers.join("\n");
    Some(format!("without all peers (`--publish` writes the tables all the same):\n{missing}"))
}

/// Renders BENCHMARKS.md from `file`, or from the only file of results.
fn render_again(file: Option<&Path>) -> Outcome {
    let file = match file {
        Some(file) => file.to_path_buf(),
        None => only_file(&results_folder())?,
    };
    let results: Results = serde_json::from_str(&read(&file)?)
        .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    write_tables(&results)
}

/// The only file of a folder that holds the results of a machine.
fn only_file(folder: &Path) -> Outcome<PathBuf> {
    let entries = fs::read_dir(folder).map_err(|error| Failure::at(folder, &error))?;
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .filter(|path| !path.as_ref().is_ok_and(|path| path.ends_with(evidence::RESULTS)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::at(folder, &error))?;
    match files.as_mut_slice() {
        [file] => Ok(std::mem::take(file)),
        files => Err(Failure::new(format!(
            "{} holds results of {} machines: `--render FILE` says which",
            folder.display(),
            files.len()
        ))),
    }
}

fn results_folder() -> PathBuf {
    root().join("bench/results")
}

fn write_tables(results: &Results) -> Outcome {
    for chart in charts(results) {
        chart.write()?;
    }
    write(&root().join("BENCHMARKS.md"), render(results))?;
    println!("wrote BENCHMARKS.md, the tables of {}", results.machine.cpu);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        Options::parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn only_a_run_of_everything_with_all_peers_is_published_unless_asked_for() {
        let complete = crate::verdict::tests::results(Vec::new(), Vec::new());
        let mut without = complete.clone();
        without.missing_peers.push("Python peers: no python3".to_owned());
        let is_published = |args: &[&str], results: &Results| {
            reason_not_to_publish(&parse(args).unwrap(), results).is_none()
        };
        assert!(is_published(&["--peers"], &complete));
        assert!(is_published(&["--publish"], &without));
        assert!(is_published(&["--peers", "--publish"], &without));
        assert!(!is_published(&["--peers"], &without));
        assert!(!is_published(&[], &without));
        for partial in
            [&["--quick"][..], &["--sweep"], &["--crate", "squish-quant"], &["--filter", "fp8"]]
        {
            assert!(!is_published(&[partial, &["--peers"]].concat(), &complete), "{partial:?}");
            let refusal = parse(&[partial, &["--publish"]].concat()).unwrap_err();
            assert_eq!(refusal, "`--publish` needs a run of every row");
        }
    }

    #[test]
    fn rendering_goes_with_a_file_and_nothing_else() {
        let task =
            |args: &[&str]| Task::parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(task(&["--render"]), Ok(Task::Render(None)));
        assert_eq!(task(&["--render", "m.json"]), Ok(Task::Render(Some("m.json".into()))));
        assert_eq!(task(&["--quick"]), Ok(Task::Measure(parse(&["--quick"]).unwrap())));
        assert!(task(&["--quick", "--render"]).unwrap_err().contains("measures nothing"));
        let quick = parse(&["--quick"]).unwrap();
        assert_eq!(
            task(&["--against", "HEAD~1", "--quick"]),
            Ok(Task::Against("HEAD~1".to_owned(), quick))
        );
        assert!(task(&["--against", "HEAD", "--peers"]).unwrap_err().contains("goes with"));
        assert_eq!(task(&["--against"]).unwrap_err(), "unknown argument `--against`");
    }

    #[test]
    fn without_a_name_there_must_be_one_file_of_results() {
        let refusal = only_file(&root().join("bench/seed")).unwrap_err().to_string();
        assert!(refusal.contains("machines"), "{refusal}");
    }

    #[test]
    fn a_flag_without_value_or_an_unknown_one_is_refused() {
        assert_eq!(parse(&["--crate"]).unwrap_err(), "`--crate` needs a value");
        assert_eq!(parse(&["--crates", "x"]).unwrap_err(), "unknown argument `--crates`");
    }
}
