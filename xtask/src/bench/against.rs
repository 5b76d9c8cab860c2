//! `cargo xtask bench --against REV`: the benches of the working tree and those of another revision, in turn on one machine.
//!
//! ```text
//! for each suite: new, old, old, new      twice, or once with `--quick`
//! ```
//!
//! A machine that gets faster or slower meanwhile treats both alike. A row is *worse* if the slowest start of the old one was faster than the
//! fastest of the new one by more than [`MARGIN`], *better* the other way around, and *inconclusive* else: either nothing has changed, or
//! the machine is not quiet enough to tell.

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf, process::Command, time::Instant};

use super::{
    Options,
    build::{self, Executable, Profile},
    launch::{Round, RoundResult},
};
use crate::{
    failure::{Failure, Outcome},
    process::{capture, root, target_dir},
};

/// By how much starts have to differ beyond their own scatter.
const MARGIN: f64 = 0.03;

/// The order of starts; `true` is the new revision.
const TURNS: [bool; 4] = [true, false, false, true];

/// Id and shape of a row.
type Key = (String, String);

/// The fastest sample of each start, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
struct Starts {
    new: Vec<f64>,
    old: Vec<f64>,
}

/// What the starts of a row say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Worse,
    Better,
    Inconclusive,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::Better => "better",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl Starts {
    /// The fastest of all new starts over the fastest of all old ones.
    fn ratio(&self) -> f64 {
        least(&self.new) / least(&self.old)
    }

    fn verdict(&self) -> Verdict {
        if least(&self.new) > (1.0 + MARGIN) * most(&self.old) {
            Verdict::Worse
        } else if least(&self.old) > (1.0 + MARGIN) * most(&self.new) {
            Verdict::Better
        } else {
            Verdict::Inconclusive
        }
    }
}

fn least(ns: &[f64]) -> f64 {
    ns.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(ns: &[f64]) -> f64 {
    ns.iter().copied().fold(0.0, f64::max)
}

/// Runs both, and prints what has changed.
///
/// # Errors
///
/// If one of both does not build or run, they have no row in common, or a row is worse.
pub(crate) fn run(revision: &str, options: &Options) -> Outcome {
    let clock = Instant::now();
    let say = |what: &str| println!("[{:>4} s] {what}", clock.elapsed().as_secs());
    let tree = Tree::of(revision)?;
    say(&format!("building {}", tree.commit));
    let old = suites(build::benches_of(&tree.folder, Some(&tree.target), options, Profile::Bench)?);
    say("building the working tree");
    let new = suites(build::benches(options, Profile::Bench)?);

    let mut starts = BTreeMap::<Key, Starts>::new();
    for suite in new.keys().filter(|name| !old.contains_key(*name)) {
        say(&format!("{suite} is not in {}", tree.commit));
    }
    let n_turns = if options.quick { TURNS.len() } else { 2 * TURNS.len() };
    for (name, new) in &new {
        let Some(old) = old.get(name) else { continue };
        for (turn, is_new) in TURNS.into_iter().cycle().take(n_turns).enumerate() {
            let (which, suite) = if is_new { ("new", new) } else { ("old", old) };
            say(&format!("{name}, start {} of {n_turns}: {which}", turn + 1));
            let round = Round::new("against")?;
            round.run(suite, options, Profile::Bench)?;
            for (key, ns) in fastest(round.read()?) {
                let of_row = starts.entry(key).or_default();
                if is_new { of_row.new.push(ns) } else { of_row.old.push(ns) }
            }
        }
    }
    starts.retain(|_, starts| !starts.new.is_empty() && !starts.old.is_empty());
    if starts.is_empty() {
        return Err(Failure::new(format!("no row of both, the working tree and {}", tree.commit)));
    }
    println!("{}", table(&starts));
    let n_worse = starts.values().filter(|row| row.verdict() == Verdict::Worse).count();
    if n_worse == 0 { Ok(()) } else { Err(Failure::new(format!("{n_worse} rows are worse"))) }
}

/// Another revision, checked out.
struct Tree {
    commit: String,
    folder: PathBuf,
    /// Where it is built: apart from the working tree, whose artifacts it would replace.
    target: PathBuf,
}

impl Tree {
    fn of(revision: &str) -> Outcome<Self> {
        let git = |args: &[&str]| capture(Command::new("git").args(args).current_dir(root()));
        let commit = format!("{revision}^{{commit}}");
        let commit = git(&["rev-parse", "--verify", "--short=12", "--end-of-options", &commit])?;
        let commit = commit.trim().to_owned();
        let parent = target_dir().join("squish-bench/against-tree");
        let folder = parent.join(&commit);
        if !folder.exists() {
            fs::create_dir_all(&parent).map_err(|error| Failure::at(&parent, &error))?;
            // One whose folder was removed by hand is still registered.
            git(&["worktree", "prune"])?;
            let path = folder.to_string_lossy();
            git(&["worktree", "add", "--detach", &path, &commit])?;
        }
        Ok(Self { commit, folder, target: target_dir().join("against") })
    }
}

/// The suites by name, without the probe.
fn suites(executables: Vec<Executable>) -> BTreeMap<String, Executable> {
    let suites = executables.into_iter().filter(|executable| !executable.is_probe());
    suites.map(|suite| (suite.name(), suite)).collect()
}

/// The fastest sample of each row's `ours`.
fn fastest(round: RoundResult) -> Vec<(Key, f64)> {
    let by_criterion = round.measured.into_iter().filter(|measured| measured.variant == "ours");
    let mut out: Vec<(Key, f64)> = by_criterion.map(|m| ((m.id, m.shape), least(&m.ns))).collect();
    for described in round.described {
        let in_turn = described.variants.into_iter().find(|v| v.name == "ours" && !v.ns.is_empty());
        if let Some(ours) = in_turn {
            out.push(((described.row.id, described.row.shape), least(&ours.ns)));
        }
    }
    out
}

/// What has changed, in full; of the other rows how many there are.
fn table(starts: &BTreeMap<Key, Starts>) -> String {
    let mut rows: Vec<_> = starts.iter().collect();
    rows.sort_by(|(_, a), (_, b)| {
        (a.verdict().cmp(&b.verdict())).then(b.ratio().total_cmp(&a.ratio()))
    });
    let mut out = String::new();
    let width = rows.iter().map(|((id, shape), _)| id.len() + shape.len() + 1).max().unwrap_or(0);
    let _ = writeln!(out, "{:<width$}  {:>12}  {:>12}  new/old", "row", "old, µs", "new, µs");
    for ((id, shape), row) in &rows {
        let [old, new] = [&row.old, &row.new].map(|ns| least(ns) / 1e3);
        let verdict = row.verdict().name();
        let name = format!("{id} {shape}");
        let _ = writeln!(
            out,
            "{name:<width$}  {old:>12.3}  {new:>12.3}  {:>7.3}  {verdict}",
            row.ratio()
        );
    }
    let count = |verdict| rows.iter().filter(|(_, row)| row.verdict() == verdict).count();
    let _ = write!(
        out,
        "{} better, {} worse, {} inconclusive (starts differ by less than {} %, or overlap)",
        count(Verdict::Better),
        count(Verdict::Worse),
        count(Verdict::Inconclusive),
        100.0 * MARGIN
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        launch::{Described, DescribedVariant},
        samples::Measured,
    };
    use crate::verdict::tests::row;

    fn starts(new: &[f64], old: &[f64]) -> Starts {
        Starts { new: new.to_vec(), old: old.to_vec() }
    }

    #[test]
    fn a_change_is_one_that_no_start_contradicts() {
        for (new, old, verdict) in [
            ([110.0, 111.0], [100.0, 101.0], Verdict::Worse),
            ([100.0, 101.0], [110.0, 111.0], Verdict::Better),
            // Less than the margin beyond the scatter.
            ([103.0, 104.0], [100.0, 101.0], Verdict::Inconclusive),
            ([100.0, 101.0], [103.0, 104.0], Verdict::Inconclusive),
            // One start contradicts.
            ([150.0, 100.5], [100.0, 101.0], Verdict::Inconclusive),
            ([150.0, 151.0], [100.0, 149.0], Verdict::Inconclusive),
            ([100.0, 100.0], [100.0, 100.0], Verdict::Inconclusive),
        ] {
            assert_eq!(starts(&new, &old).verdict(), verdict, "{new:?} {old:?}");
        }
        assert!((starts(&[110.0, 120.0], &[105.0, 100.0]).ratio() - 1.1).abs() < 1e-12);
    }

    #[test]
    fn a_start_is_its_fastest_sample_of_ours_however_it_was_taken() {
        let row = row(Vec::new()).row;
        let measured = |variant: &str, ns: &[f64]| Measured {
            id: "a/b".to_owned(),
            variant: variant.to_owned(),
            shape: "4".to_owned(),
            ns: ns.to_vec(),
        };
        let variant = |name: &str, ns: &[f64]| DescribedVariant {
            name: name.to_owned(),
            bytes: 1,
            ns: ns.to_vec(),
        };
        let in_turn = vec![variant("ours", &[7.0, 5.0]), variant("probe-read", &[1.0, 1.0])];
        let round = RoundResult {
            described: vec![Described { row: row.clone(), variants: in_turn }],
            measured: vec![measured("ours", &[3.0, 2.0]), measured("avx2", &[1.0])],
        };
        let want = [(("a/b".to_owned(), "4".to_owned()), 2.0), ((row.id, row.shape), 5.0)];
        assert_eq!(fastest(round), want);
    }

    #[test]
    fn what_is_worse_stands_first() {
        let key = |id: &str| (id.to_owned(), "1".to_owned());
        let rows = BTreeMap::from([
            (key("a/same"), starts(&[1e3, 1e3], &[1e3, 1e3])),
            (key("b/better"), starts(&[1e3, 1e3], &[2e3, 2e3])),
            (key("c/worse"), starts(&[2e3, 2e3], &[1e3, 1e3])),
        ]);
        let table = table(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].starts_with("c/worse 1") && lines[1].ends_with("2.000  worse"), "{table}");
        assert!(lines[2].starts_with("b/better 1") && lines[2].ends_with("0.500  better"));
        assert!(lines[4].starts_with("1 better, 1 worse, 1 inconclusive"));
    }

    #[test]
    fn a_revision_that_is_none_is_named() {
        let refusal = Tree::of("no-such-revision").err().map(|failure| failure.to_string());
        assert!(refusal.is_some_and(|refusal| refusal.contains("no-such-revision")));
    }
}
