//! What ends the program.

use std::{io, path::PathBuf};

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The model refuses.
    #[error(transparent)]
    Model(#[from] squish_model::Error),
    /// The checkpoint's files refuse.
    #[error(transparent)]
    Checkpoint(#[from] squish_checkpoint::Error),
    /// An evaluation refuses.
    #[error(transparent)]
    Eval(#[from] squish_eval::EvalError),
    /// A file cannot be read or written.
    #[error("cannot {what} `{path}`: {source}", path = path.display())]
    File {
        /// What was to be done with it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line of a file of texts is none.
    #[error("`{path}`, line {line}: {reason}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to do.
    #[error("`{path}` has no text of at least {n_tokens} tokens", path = path.display())]
    NoText {
        /// The file.
        path: PathBuf,
        /// As many as the recipe needs.
        n_tokens: usize,
    },
    /// Two models cannot be compared.
    #[error("the base has a vocabulary of {base}, the model one of {model}")]
    Vocabulary {
        /// Tokens of the base.
        base: usize,
        /// Tokens of the model.
        model: usize,
    },
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path: path.into(), source }
    }
}
