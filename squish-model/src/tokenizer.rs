//! Text to tokens and back, by the `tokenizer.json` of a checkpoint.
//!
//! A thin cover of the [tokenizers](https://docs.rs/tokenizers) crate, which is what trained the tokenizer, so that
//! no type of that crate is part of this one's interface.

use std::{fmt, path::Path};

use crate::{Error, error::read};

/// A checkpoint's tokenizer.
#[derive(Clone)]
pub struct Tokenizer(tokenizers::Tokenizer);

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer in the file `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read; [`Error::InFile`] with [`Error::Tokenizer`] if it holds no tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let tokenizer = tokenizers::Tokenizer::from_bytes(read(path)?).map_err(|e| error(&e));
        tokenizer.map(Self).map_err(Error::in_file(path))
    }

    /// The number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// Tokens of `text`, with those that the tokenizer's post-processor adds: a BOS token, with most models.
    ///
    /// Special tokens spelled out in `text` become those tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        Ok(self.0.encode_fast(text, true).map_err(|e| error(&e))?.get_ids().to_vec())
    }

    /// The text of `tokens`, special tokens left out. Bytes that are no UTF-8 become replacement characters, as at the
    /// end of a text that was cut inside of a character.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.0.decode(tokens, true).map_err(|e| error(&e))
    }
}

fn error(error: &tokenizers::Error) -> Error {
    Error::Tokenizer { reason: error.to_string() }
}
