//! What techniques cost and save on the trained checkpoint: the tables of EVIDENCE.md.
//!
//! | module | asks |
//! |---|---|
//! | `weights` | what do packed weights and rounded inputs do to likelihoods? |
//! | `formats` | what does each granularity and scale rule of squish-quant do to weights and likelihoods? |
//! | `calibration` | what do scales cost and save that are made from what passes through the model? |
//! | `sparsity` | what does a model lose whose feed-forward networks leave inputs out, and what do they save? |
//! | `kv` | what do types of keys and values do to likelihoods, and what do fewer heads of them save? |
//! | `paged` | how much memory stays unused with blocks, and with a piece for each sequence? |
//! | `sinks` | what does a model foresee that reads on and on with the cache of a window? |
//! | `memory` | how much does a process hold beside weights and caches? |
//! | `rope` | what do scalings of rotary embeddings do beyond the trained length, without further training? |
//!
//! `cargo xtask evidence` runs it and renders the file; `--quick` after `--` takes fewer and shorter texts. Without `--bench`, as under
//! `cargo test --benches`, short pieces run through everything, and nothing is written. Nothing here is timed, and no number depends on
//! how many threads there are; sums round differently on different SIMD levels.

#![expect(clippy::print_stderr, reason = "a program of minutes says how far it is")]

mod calibration;
#[path = "../common/mod.rs"]
mod common;
mod formats;
mod kv;
mod memory;
mod paged;
mod rope;
mod setup;
mod sinks;
mod sparsity;
mod weights;

use std::time::Instant;

use setup::{Effort, Setup};
use squish_bench::{Evidence, Section, alloc::CountingAllocator};

/// Counts the bytes of caches.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    if has("--list") {
        return;
    }
    if let [argument, format] = &args[..]
        && argument == memory::ARGUMENT
    {
        return memory::print(format);
    }
    let effort = match (has("--bench") && !has("--test"), has("--quick")) {
        (false, _) => Effort::TEST,
        (true, true) => Effort::QUICK,
        (true, false) => Effort::FULL,
    };
    let clock = Instant::now();
    let setup = Setup::new(effort);
    let mut sections: Vec<Section> = Vec::new();
    for (name, of) in [
        ("memory", memory::sections as fn(&Setup) -> Vec<Section>),
        ("weights", weights::sections),
        ("formats", formats::sections),
        ("calibration", calibration::sections),
        ("sparsity", sparsity::sections),
        ("kv", kv::sections),
        ("paged", paged::sections),
        ("sinks", sinks::sections),
        ("rope", rope::sections),
    ] {
        eprintln!("[{:>4} s] {name}", clock.elapsed().as_secs());
        sections.extend(of(&setup));
    }
    eprintln!("[{:>4} s] done", clock.elapsed().as_secs());
    if effort != Effort::TEST {
        Evidence::new(sections).write().expect("the folder of results can be written");
    }
}
