//! The fixture's tables: what each format, and each mode of its products, does to a trained checkpoint.

use std::{fs, io, path::PathBuf};

use serde::Serialize;

use crate::place::squish_dir;

/// Both tables.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fixture {
    /// One row per format, in the order of printing.
    pub rows: Vec<FixtureRow>,
    /// One row per format and mode of its products; those of a format follow each other.
    pub modes: Vec<FixtureMode>,
    /// What was measured on, in one sentence.
    pub note: String,
}

/// One format.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FixtureRow {
    /// Name of the format with its scales, for example `mxfp4 (floor)`.
    pub format: String,
    /// Bits per weight, scales included.
    pub bits_per_weight: f64,
    /// Signal-to-noise ratio of the weights in dB; `None` where the format is exact.
    pub snr_db: Option<f64>,
    /// Norm of the error over the norm of the weights.
    pub relative_error: f64,
    /// Decoding rate in GB/s of bytes read and written, if measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_gbps: Option<f64>,
    /// Perplexity per token on the held-out prose.
    pub ppl_prose: f64,
    /// Perplexity per token on the held-out code.
    pub ppl_code: f64,
}

/// One mode of the products with the matrices of a format.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FixtureMode {
    /// Name of the format, as in [`FixtureRow`].
    pub format: String,
    /// What inputs are rounded to: `f32`, `bf16` or `q8`.
    pub mode: String,
    /// Bits per weight as packed for products, scales and padding included.
    pub bits_per_weight: f64,
    /// Perplexity per token on the held-out prose.
    pub ppl_prose: f64,
    /// Perplexity per token on the held-out code.
    pub ppl_code: f64,
}

impl Fixture {
    /// Writes the tables to where `cargo xtask bench` looks for it, and returns the path.
    ///
    /// # Errors
    ///
    /// If the folder or the file cannot be written.
    pub fn write(&self) -> io::Result<PathBuf> {
        let folder = squish_dir();
        fs::create_dir_all(&folder)?;
        let path = folder.join("fixture.json");
        fs::write(&path, serde_json::to_vec_pretty(self)?)?;
        Ok(path)
    }
}
