//! What a person sees: tables, sizes, complaints, progress.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::Error;

/// One line on the error stream.
pub(crate) fn complain(error: &Error) {
    let mut stderr = io::stderr().lock();
    // There is nobody left to tell if this fails.
    let _ = writeln!(stderr, "error: {}", error.to_string().replace('\n', " "));
}

/// A table that fits the terminal, with numbers to the right.
pub(crate) fn table<const N: usize>(header: [&str; N], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if !io::stdout().is_terminal() {
        table.force_no_tty();
    }
    table.set_header(header);
    for &column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A line of the output.
pub(crate) fn print(line: impl Display) -> Result<(), Error> {
    writeln!(io::stdout().lock(), "{line}").map_err(Error::Output)
}

/// The object of `--json`.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Error> {
    print(serde_json::to_string_pretty(value).expect("numbers and text are JSON"))
}

/// Bytes in the largest unit that leaves a number of at least one.
pub(crate) fn bytes(n: usize) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut x, mut unit) = (n as f64, 0);
    while x >= 999.5 && unit + 1 < UNITS.len() {
        (x, unit) = (x / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{n} B") } else { format!("{x:.0$} {1}", digits(x), UNITS[unit]) }
}

/// A count with separators.
pub(crate) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Digits behind the point that make three in all.
fn digits(x: f64) -> usize {
    if x >= 99.95 { 0 } else { 1 + usize::from(x < 9.995) }
}

/// A bar on the error stream, if that is a terminal.
pub(crate) fn progress(what: &'static str, n: u64) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(n), target);
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}")
        .expect("a template of known keys");
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_counts_separators() {
        let shown = [0, 999, 1000, 9_995, 123_456, 999_600, 9_515_400, 2_471_000_000].map(bytes);
        let expected =
            ["0 B", "999 B", "1.00 kB", "10.0 kB", "123 kB", "1.00 MB", "9.52 MB", "2.47 GB"];
        assert_eq!(shown, expected);
        assert_eq!([0, 999, 1000, 4_754_688].map(count), ["0", "999", "1,000", "4,754,688"]);
    }
}
