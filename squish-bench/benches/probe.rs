//! Prints the limits of this machine as JSON. Under `cargo test --benches` it takes one short pass.

use std::io::Write;

use squish_bench::probe::{Effort, measure};

fn main() -> std::io::Result<()> {
    let times = std::env::args().any(|arg| arg == "--bench");
    let quick = std::env::args().any(|arg| arg == "--quick");
    let effort = match (times, quick) {
        (true, false) => Effort::Full,
        (true, true) => Effort::Quick,
        (false, _) => Effort::Touch,
    };
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &measure(effort))?;
    writeln!(out)
}
