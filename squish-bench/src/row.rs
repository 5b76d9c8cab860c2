//! Rows of the published tables, declared beside the bench that measures them.
//!
//! A row says what is computed, how much data it moves, which limit of the machine binds it and what it must reach. Its bench writes
//! it as JSON next to the samples, so that the tables need no list of their own.

use serde::Serialize;

/// One line of a table.
///
/// Written as a constant on top of one of the bases, for example `Row { id: "fp8/…", module: …, ..Row::SEED }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `module/operation` in `[a-z0-9_.=-]`, at most 60 bytes; for [`Table::Seed`] the id in `bench/seed/rows.csv`.
    pub id: &'static str,
    /// The type or module that is measured, as the tables print it.
    pub module: &'static str,
    /// What is called, in a few words.
    pub operation: &'static str,
    /// Sizes, for example `128x128`, in `[a-z0-9_.=-]`; the last part of the criterion id.
    pub shape: &'static str,
    /// Where the row is printed.
    pub table: Table,
    /// What one call moves and computes.
    pub work: Work,
    /// Which limit of the machine binds it, on so many threads.
    pub limit: Limit,
    /// Threads that one call runs on.
    pub threads: usize,
    /// What the measurement must reach.
    pub targets: &'static [Target],
    /// One remark for the reader of the table, or nothing.
    pub note: &'static str,
    /// Whether the row is measured again at cargo's default release profile (no LTO, 16 codegen units).
    pub release_profile: bool,
}

impl Row {
    /// Base of the rows whose id stands in `bench/seed/rows.csv`.
    pub const SEED: Self = Self {
        id: "",
        module: "",
        operation: "",
        shape: "",
        table: Table::Seed,
        work: Work::bytes(0, 0),
        limit: Limit::None,
        threads: 1,
        targets: &[],
        note: "",
        release_profile: false,
    };

    /// Base of the rows with shapes of real models.
    pub const LLM: Self = Self { table: Table::Llm, ..Self::SEED };

    /// Base of products with packed weights, whose shapes are `m{rows}_{outputs}x{inputs}`, with `_t{threads}` of several.
    pub const PRODUCT: Self = Self { table: Table::Product, ..Self::SEED };

    /// Base of grid points that stand in no published table and run under `--sweep` alone.
    pub const SWEEP: Self = Self { table: Table::Sweep, ..Self::SEED };

    /// What is wrong with the row as declared, if anything.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.=-".contains(&b))
        };
        let id_is_plain = self.id.split_once('/').is_some_and(|(module, op)| {
            !module.is_empty() && !op.is_empty() && plain(module) && plain(op)
        });
        if !id_is_plain || self.id.len() > 60 {
            return Some(format!(
                "id `{}` is not `module/operation` in at most 60 of [a-z0-9_.=-]",
                self.id
            ));
        }
        if self.shape.is_empty() || self.shape.len() > 60 || !plain(self.shape) {
            return Some(format!("shape `{}` of `{}` is not in [a-z0-9_.=-]", self.shape, self.id));
        }
        if self.module.is_empty() || self.operation.is_empty() {
            return Some(format!("`{}` has no module or no operation", self.id));
        }
        let wanted = match self.limit {
            Limit::Read(_) => self.work.read,
            Limit::Copy(_) => self.work.read + self.work.written,
            Limit::Fma | Limit::Bf16Dot | Limit::Int8Dot => self.work.flops,
            Limit::None => 1,
        };
        (wanted == 0).then(|| {
            format!("`{}` is bound by {:?} and declares no such work", self.id, self.limit)
        })
    }
}

/// Where a row is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Among the seed's 61 rows.
    Seed,
    /// Among the rows with shapes of real models.
    Llm,
    /// Among the products with packed weights.
    Product,
    /// Nowhere: a grid point, run under `--sweep` and printed to the terminal.
    Sweep,
}

/// What one call moves and computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Bytes read, each buffer once.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Floating-point or integer operations; a multiply-add counts as two.
    pub flops: u64,
}

impl Work {
    /// Work that is data movement alone.
    #[must_use]
    pub const fn bytes(read: u64, written: u64) -> Self {
        Self { read, written, flops: 0 }
    }

    /// The same work with `flops` operations.
    #[must_use]
    pub const fn with_flops(self, flops: u64) -> Self {
        Self { flops, ..self }
    }

    /// Bytes read and written.
    #[must_use]
    pub const fn moved(self) -> u64 {
        self.read + self.written
    }
}

/// Which level of the memory holds the working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// First-level data cache.
    L1,
    /// Second-level cache.
    L2,
    /// Third-level cache.
    L3,
    /// Main memory.
    Dram,
}

/// The limit of the machine that binds an operation, from the probe of the same run on as many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "residency", rename_all = "snake_case")]
pub enum Limit {
    /// Bytes read over the read bandwidth.
    Read(Residency),
    /// Bytes read and written over the copy bandwidth.
    Copy(Residency),
    /// Operations over the f32 multiply-add peak.
    Fma,
    /// Operations over the peak of bf16 dot products, or of f32 multiply-adds where it is higher.
    Bf16Dot,
    /// Operations over the int8 dot-product peak.
    Int8Dot,
    /// None that the probe measures, such as the latency of a table look-up.
    None,
}

/// What the measurement of a row must reach: the minimum over samples and launches of variant `ours`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Target {
    /// `limit time / time >= share`.
    AtLeastShareOfLimit {
        /// For example 0.8.
        share: f64,
    },
    /// Bytes per second of ours over those of variant `probe-{probe}` in the same group.
    AtLeastShareOfProbe {
        /// For example `memcpy`.
        probe: &'static str,
        /// For example 0.8.
        share: f64,
    },
    /// `time <= times * time of probe-{probe}` in the same group.
    AtMostTimesProbe {
        /// For example `memcpy`.
        probe: &'static str,
        /// For example 4.2.
        times: f64,
    },
    /// `time <= times * time of ours` at another shape of the same row, such as that of a single row of inputs.
    AtMostTimesShape {
        /// For example `m1_4096x4096`.
        shape: &'static str,
        /// For example 1.6.
        times: f64,
    },
    /// `time of the peer >= times * time`; the peer's name without its version.
    AtLeastTimesPeer {
        /// For example `torch`.
        peer: &'static str,
        /// For example 3.0.
        times: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Row = Row {
        id: "fp8/decode",
        module: "Fp8Quantizer",
        operation: "decode",
        shape: "128x128",
        work: Work::bytes(1, 4),
        limit: Limit::Copy(Residency::L2),
        ..Row::SEED
    };

    #[test]
    fn a_row_that_cannot_be_rendered_is_refused() {
        assert_eq!(GOOD.fault(), None);
        for bad in [
            Row { id: "fp8", ..GOOD },
            Row { id: "fp8/a/b", ..GOOD },
            Row { id: "fp8/Decode", ..GOOD },
            Row { shape: "128 x 128", ..GOOD },
            Row { module: "", ..GOOD },
            Row { work: Work::bytes(0, 0), ..GOOD },
            Row { limit: Limit::Fma, ..GOOD },
        ] {
            assert!(bad.fault().is_some(), "{bad:?}");
        }
    }
}
