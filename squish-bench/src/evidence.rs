//! The tables of EVIDENCE.md: what techniques cost and save on the trained checkpoint.
//!
//! A table says how each of its columns is printed, and its cells hold whole numbers, so that who reads the file needs no program that
//! measures, and may do more with it than print.

use std::{fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{place::squish_dir, probe::cpu_name};

/// All tables, and where they were made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Name of the processor.
    pub cpu: String,
    /// SIMD level and extensions, on which the last bits of sums depend.
    pub isa: String,
    /// The tables, in the order of printing.
    pub sections: Vec<Section>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// A word that names it.
    pub id: String,
    /// Its heading.
    pub title: String,
    /// What was measured, on what, and how.
    pub note: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows, each with a cell for every column.
    pub rows: Vec<Vec<Cell>>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Its head.
    pub name: String,
    /// How its numbers are printed.
    pub format: Format,
}

/// How a number is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
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
pub enum Cell {
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

impl Evidence {
    /// These tables, made by this process.
    #[must_use]
    pub fn new(sections: Vec<Section>) -> Self {
        let isa = format!("{:?}", squish_kernels::Isa::detect());
        Self { cpu: cpu_name(), isa, sections }
    }

    /// Writes the tables to where `cargo xtask evidence` looks for them, and returns the path.
    ///
    /// # Errors
    ///
    /// If the folder or the file cannot be written.
    pub fn write(&self) -> io::Result<PathBuf> {
        let folder = squish_dir();
        fs::create_dir_all(&folder)?;
        let path = folder.join("evidence.json");
        fs::write(&path, serde_json::to_vec_pretty(self)?)?;
        Ok(path)
    }
}

impl Section {
    /// A table without rows.
    #[must_use]
    pub fn new(id: &str, title: &str, note: impl Into<String>, columns: &[(&str, Format)]) -> Self {
        let columns = columns
            .iter()
            .map(|&(name, format)| Column { name: name.to_owned(), format })
            .collect();
        let (id, title, note) = (id.to_owned(), title.to_owned(), note.into());
        Self { id, title, note, columns, rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    ///
    /// If it has not as many cells as there are columns, words under numbers, numbers under words, or a number that is not finite.
    pub fn push(&mut self, row: impl IntoIterator<Item = Cell>) {
        let row: Vec<Cell> = row.into_iter().collect();
        assert_eq!(row.len(), self.columns.len(), "`{}`: cells of {row:?}", self.id);
        for (cell, column) in row.iter().zip(&self.columns) {
            let fits = match cell {
                Cell::Empty => true,
                Cell::Text(_) => column.format == Format::Text,
                Cell::Number(value) => column.format != Format::Text && value.is_finite(),
                Cell::Estimate { value, std_err } => {
                    column.format != Format::Text && value.is_finite() && std_err.is_finite()
                }
            };
            assert!(fits, "`{}`: {cell:?} under `{}`", self.id, column.name);
        }
        self.rows.push(row);
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl From<usize> for Cell {
    fn from(value: usize) -> Self {
        Self::Number(value as f64)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Empty, Into::into)
    }
}
