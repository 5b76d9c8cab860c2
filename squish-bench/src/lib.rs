#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod aligned;
pub mod alloc;
pub mod evidence;
pub mod golden;
mod in_turn;
pub mod input;
pub mod place;
pub mod probe;
pub mod row;
pub mod suite;

pub use aligned::Aligned;
pub use criterion::Bencher;
pub use evidence::{Cell, Column, Evidence, Format, Section};
pub use golden::Golden;
pub use row::{Limit, Residency, Row, Table, Target, Work};
pub use std::hint::black_box;
pub use suite::{Checked, Suite, Unchecked};
