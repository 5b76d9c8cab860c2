//! `cargo xtask evidence`: what techniques cost and save on the trained checkpoint, measured and rendered as EVIDENCE.md.
//!
//! The numbers come from the bench `evidence` of squish-model, which times nothing; so one run is enough, on a busy machine, too. A whole
//! run writes `bench/results/evidence.json` and EVIDENCE.md; `--quick` prints its tables and keeps them in
//! `target/squish-bench/evidence.json`. `--render` renders EVIDENCE.md from the committed file and measures nothing.

use std::{env::consts, fmt::Write, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    bench::build,
    charts::{Axis, Chart, Content, Group, Point, Scale},
    failure::{Failure, Outcome, read, write},
    process::{cargo, pass, root, target_dir},
};

/// The committed results, by their path from the root.
pub(crate) const RESULTS: &str = "bench/results/evidence.json";

/// What is rendered from them.
pub(crate) const RENDERED: &str = "EVIDENCE.md";

/// What `evidence` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Measure everything, for the repository.
    Full,
    /// Measure with few texts, for the terminal.
    Quick,
    /// Render the committed results again.
    Render,
}

impl Task {
    /// Reads the arguments after `evidence`.
    ///
    /// # Errors
    ///
    /// A sentence about an argument that makes no sense.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        match args {
            [] => Ok(Self::Full),
            [flag] if flag == "--quick" => Ok(Self::Quick),
            [flag] if flag == "--render" => Ok(Self::Render),
            [_, other, ..] | [other] => Err(format!("unknown argument `{other}`")),
        }
    }
}

/// Runs the command.
///
/// # Errors
///
/// If the bench does not build or run, or files cannot be read or written.
pub(crate) fn run(task: Task) -> Outcome {
    match task {
        Task::Full => {
            let results = measure(task)?;
            write(&root().join(RESULTS), json(&results)?)?;
            write_tables(&results)
        }
        Task::Quick => {
            let results = measure(task)?;
            let file = target_dir().join("squish-bench/evidence.json");
            write(&file, json(&results)?)?;
            println!(
                "{}\nresults are in {}, {RENDERED} is as it was",
                render(&results),
                file.display()
            );
            Ok(())
        }
        Task::Render => write_tables(&parse(&read(&root().join(RESULTS))?)?),
    }
}

/// Results and where they were made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// What was built.
    pub(crate) build: Build,
    /// What it measured.
    #[serde(flatten)]
    pub(crate) evidence: Evidence,
}

/// Compiler, commit and day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// Operating system and architecture.
    pub(crate) os: String,
    /// First line of `rustc --version`.
    pub(crate) rustc: String,
    /// Commit, with `+changes` if the tree had uncommitted ones.
    pub(crate) commit: String,
    /// Day of the run, UTC.
    pub(crate) date: String,
}

/// The tables; `squish_bench::Evidence` as read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// Name of the processor.
    pub(crate) cpu: String,
    /// SIMD level and extensions.
    pub(crate) isa: String,
    /// In the order of printing.
    pub(crate) sections: Vec<Section>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Section {
    /// A word that names it.
    pub(crate) id: String,
    /// Its heading.
    pub(crate) title: String,
    /// What was measured, on what, and how.
    pub(crate) note: String,
    /// Its columns.
    pub(crate) columns: Vec<Column>,
    /// Its rows.
    pub(crate) rows: Vec<Vec<Cell>>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Column {
    /// Its head.
    pub(crate) name: String,
    /// How its numbers are printed.
    pub(crate) format: Format,
}

/// How a number is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    /// The column holds words.
    Text,
    /// As a whole number.
    Count,
    /// With so many decimals.
    Fixed(usize),
    /// With a sign and so many decimals.
    Signed(usize),
    /// Times a hundred, with so many decimals.
    Percent(usize),
    /// With three digits and an exponent.
    Scientific,
}

/// What stands in a row under a column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    /// Nothing.
    Empty,
    /// Words.
    Text(String),
    /// A number.
    Number(f64),
    /// A number and its standard error.
    Estimate {
        /// The number.
        value: f64,
        /// Its error.
        std_err: f64,
    },
}

/// The results in a committed file.
///
/// # Errors
///
/// What of it cannot be read.
pub(crate) fn parse(text: &str) -> Outcome<Results> {
    serde_json::from_str(text).map_err(|error| Failure::new(format!("{RESULTS}: {error}")))
}

/// The whole of EVIDENCE.md.
#[must_use]
pub(crate) fn render(results: &Results) -> String {
    let Results { build, evidence } = results;
    let mut out = format!(
        "# Evidence\n\n\
         Generated by `cargo xtask evidence` from one run; edit the bench `evidence` of squish-model, not this file.\n\n\
         What techniques cost and save on the trained checkpoint in `fixtures/` (Llama, 4.75 million parameters, trained for 512 \
         positions) and its held-out texts. Nothing here is timed: the numbers are the same on a busy machine and for any number of \
         threads, and differ in their last digits between SIMD levels. How fast things are is in [BENCHMARKS.md](BENCHMARKS.md). A small \
         model says how formats and methods compare with each other, not what they do to a large one.\n\n\
         | | |\n|---|---|\n\
         | CPU | {}, {} |\n\
         | SIMD level | {} |\n\
         | Compiler | {}, bench profile |\n\
         | Commit | {} |\n\
         | Date | {} |\n\
         | Again | `cargo xtask evidence`; shorter, to the terminal: `cargo xtask evidence --quick` |\n",
        evidence.cpu, build.os, evidence.isa, build.rustc, build.commit, build.date
    );
    for section in &evidence.sections {
        table(&mut out, section);
        if let Some(chart) = chart(section) {
            let _ = writeln!(out, "\n{}.\n\n{}", chart.title, chart.markdown());
        }
    }
    out
}

/// Perplexity against bits, of the section that has both for each format.
fn chart(section: &Section) -> Option<Chart> {
    let column = |name: &str| section.columns.iter().position(|column| column.name == name);
    let (name, bits, ppl) =
        (column("format")?, column("bits per weight")?, column("perplexity, prose")?);
    let format = |row: &Vec<Cell>| match (&row[name], &row[bits], &row[ppl]) {
        (Cell::Text(name), Cell::Number(bits), Cell::Number(ppl)) => {
            Some((name.clone(), [*bits, *ppl]))
        }
        _ => None,
    };
    let formats: Vec<_> = section.rows.iter().filter_map(format).collect();
    let mut groups: Vec<Group> = Vec::new();
    for (name, at) in &formats {
        let beats = |other: &[f64; 2]| other != at && other[0] <= at[0] && other[1] <= at[1];
        let is_named = name == STORED || !formats.iter().any(|(_, other)| beats(other));
        let point = Point { name: is_named.then(|| name.clone()), at: *at };
        let name = group_of(name);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.points.push(point),
            None => groups.push(Group { name: name.to_owned(), points: vec![point] }),
        }
    }
    let axes = [
        Axis { name: "bits per weight", scale: Scale::Log },
        Axis { name: "perplexity, prose", scale: Scale::Between },
    ];
    let title = "Perplexity against bits per weight; named are the stored weights and formats that none beats with as few bits, errors aside"
        .to_owned();
    let is_empty = groups.is_empty();
    let content = Content::Points { axes, groups };
    (!is_empty).then_some(Chart { name: "perplexity", title, content })
}

/// The row of weights that went through no format.
const STORED: &str = "bf16, as stored";

/// What a format is called without its widths and options.
fn group_of(format: &str) -> &str {
    match format {
        _ if format.starts_with("mx") => "OCP microscaling",
        _ if format.starts_with("smx") => "shared microexponents",
        _ if format.starts_with("int") => "integers",
        _ if format.starts_with("fp8") => "FP8",
        _ if format.starts_with("nvfp4") => "NVFP4",
        _ => format.split([' ', ',', '_']).next().unwrap_or(format),
    }
}

fn table(out: &mut String, section: &Section) {
    let names: Vec<&str> = section.columns.iter().map(|column| column.name.as_str()).collect();
    let is_text = |column: &Column| column.format == Format::Text;
    let rules = section.columns.iter().map(|column| if is_text(column) { "---" } else { "--:" });
    let rules: Vec<&str> = rules.collect();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "\n## {}\n\n{}\n", section.title, section.note);
    let _ = writeln!(out, "| {} |\n|{}|", names.join(" | "), rules.join("|"));
    for row in &section.rows {
        let cells = row.iter().zip(&section.columns).map(|(cell, column)| cell_text(cell, column));
        let _ = writeln!(out, "| {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

fn cell_text(cell: &Cell, column: &Column) -> String {
    match cell {
        Cell::Empty => "—".to_owned(),
        Cell::Text(text) => text.clone(),
        Cell::Number(value) => number(*value, column.format),
        // What is zero for every token has no error but that of rounding.
        Cell::Estimate { value, std_err } if *value == 0.0 && *std_err < 1e-6 => "0".to_owned(),
        Cell::Estimate { value, std_err } => {
            let std_err = match column.format {
                Format::Signed(decimals) => number(*std_err, Format::Fixed(decimals)),
                Format::Scientific => format!("{std_err:.0e}"),
                format => number(*std_err, format),
            };
            format!("{} ± {std_err}", number(*value, column.format))
        }
    }
}

fn number(value: f64, format: Format) -> String {
    match format {
        Format::Signed(_) | Format::Scientific if value == 0.0 => "0".to_owned(),
        Format::Text => value.to_string(),
        Format::Count => format!("{value:.0}"),
        Format::Fixed(decimals) => format!("{value:.decimals$}"),
        Format::Signed(decimals) => {
            let text = format!("{value:+.decimals$}");
            // A sign of what is rounded to zero says nothing.
            if text.contains(|digit: char| ('1'..='9').contains(&digit)) {
                text
            } else {
                format!("{:.decimals$}", 0.0)
            }
        }
        Format::Percent(decimals) => format!("{:.decimals$}", 100.0 * value),
        Format::Scientific => format!("{value:.2e}"),
    }
}

/// Builds and runs the bench, and adds what it does not know.
fn measure(task: Task) -> Outcome<Results> {
    let folder = target_dir().join("squish-bench/evidence");
    let mut command = cargo();
    command.args(["bench", "--package", "squish-model", "--bench", "evidence", "--"]);
    if task == Task::Quick {
        command.arg("--quick");
    }
    pass(command.env("CRITERION_HOME", &folder))?;
    let file: PathBuf = folder.join("squish/evidence.json");
    let evidence = serde_json::from_str(&read(&file)?)
        .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    let build = Build {
        os: format!("{} {}", consts::OS, consts::ARCH),
        rustc: build::rustc_version()?,
        commit: build::commit(),
        date: build::today(),
    };
    Ok(Results { build, evidence })
}

fn json(results: &Results) -> Outcome<String> {
    let text = serde_json::to_string_pretty(results);
    Ok(text.map_err(|error| Failure::new(error.to_string()))? + "\n")
}

fn write_tables(results: &Results) -> Outcome {
    for chart in results.evidence.sections.iter().filter_map(chart) {
        chart.write()?;
    }
    write(&root().join(RENDERED), render(results))?;
    println!("wrote {RENDERED}");
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A table with a cell of every kind, as squish-bench writes it.
    pub(crate) fn results() -> Results {
        use squish_bench::{Cell as C, Format as F, Section as Theirs};
        let mut section = Theirs::new(
            "all",
            "Cells of every kind",
            "What was measured.",
            &[
                ("words", F::Text),
                ("count", F::Count),
                ("fixed", F::Fixed(2)),
                ("signed", F::Signed(3)),
                ("percent", F::Percent(1)),
                ("scientific", F::Scientific),
            ],
        );
        section.push([
            "exact".into(),
            4096_usize.into(),
            16.0.into(),
            C::Estimate { value: 0.0, std_err: 0.0 },
            1.0.into(),
            0.0.into(),
        ]);
        section.push([
            "fp8".into(),
            1030_usize.into(),
            8.104.into(),
            C::Estimate { value: 0.05, std_err: 0.0123 },
            0.98765.into(),
            C::Estimate { value: 1.234e-4, std_err: 5.6e-6 },
        ]);
        let nothing = [C::Empty, C::Empty];
        section.push(
            ["worse".into(), 7.4.into(), 1e6.into(), (-0.25).into()].into_iter().chain(nothing),
        );
        let (hardly, none) = (C::Estimate { value: -1e-5, std_err: 2e-5 }, C::Empty);
        section.push([none.clone(), none.clone(), none.clone(), hardly, none.clone(), none]);
        let theirs = squish_bench::Evidence {
            cpu: "a processor".to_owned(),
            isa: "AVX2".to_owned(),
            sections: vec![section],
        };
        let written = serde_json::to_string(&theirs).unwrap();
        let evidence = serde_json::from_str::<Evidence>(&written).unwrap();
        assert_eq!(serde_json::to_string(&evidence).unwrap(), written);
        let build = Build {
            os: "linux x86_64".to_owned(),
            rustc: "rustc 1.95.0".to_owned(),
            commit: "0123456789ab".to_owned(),
            date: "2026-01-01".to_owned(),
        };
        Results { build, evidence }
    }

    #[test]
    fn every_kind_of_cell_is_rendered() {
        insta::assert_snapshot!(render(&results()));
    }

    #[test]
    fn rendering_survives_the_round_trip_through_json() {
        let again = parse(&json(&results()).unwrap()).unwrap();
        assert_eq!(again, results());
        assert_eq!(render(&again), render(&results()));
        assert!(parse("{}").unwrap_err().to_string().starts_with(RESULTS));
    }

    #[test]
    fn all_is_measured_unless_less_is_asked_for() {
        let task =
            |args: &[&str]| Task::parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(task(&[]), Ok(Task::Full));
        assert_eq!(task(&["--quick"]), Ok(Task::Quick));
        assert_eq!(task(&["--render"]), Ok(Task::Render));
        assert_eq!(task(&["--slow"]).unwrap_err(), "unknown argument `--slow`");
        assert_eq!(task(&["--quick", "--render"]).unwrap_err(), "unknown argument `--render`");
    }
}
