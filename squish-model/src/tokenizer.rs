//! Text to tokens and back, by the `tokenizer.json` of a checkpoint.
//!
//! A thin cover of the [tokenizers](https://docs.rs/tokenizers) crate, which is what trained the tokenizer, so that
//! no type of that crate is part of this one's interface.

use std::{fmt, path::Path, sync::Arc};

use tokenizers::DecoderWrapper;

use crate::{Error, TextStream, error::read};

/// A checkpoint's tokenizer. Clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<tokenizers::Tokenizer>);

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
        Self::from_json(&read(path)?).map_err(Error::in_file(path))
    }

    /// The tokenizer in the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_model::Tokenizer;
    ///
    /// let tokenizer = Tokenizer::from_json(br#"{
    ///     "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
    ///     "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
    ///     "added_tokens": [{"id": 2, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
    ///         "normalized": false, "special": true}],
    ///     "model": {"type": "WordLevel", "vocab": {"hello": 0, "world": 1, "<eos>": 2}, "unk_token": "<eos>"}
    /// }"#)?;
    /// assert_eq!(tokenizer.encode("hello world<eos>")?, [0, 1, 2]);
    /// assert_eq!(tokenizer.decode(&[0, 1, 2])?, "hello world");
    /// assert_eq!(tokenizer.token_of(1).as_deref(), Some("world"));
    /// assert_eq!(tokenizer.special_tokens(), [(2, "<eos>".to_owned())]);
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        tokenizers::Tokenizer::from_bytes(json).map(|t| Self(Arc::new(t))).map_err(|e| error(&e))
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

    /// Tokens of `text` alone, without those that the post-processor adds: for a chat that was rendered by a template, which
    /// writes the BOS token itself.
    ///
    /// Special tokens spelled out in `text` become those tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, Error> {
        Ok(self.0.encode_fast(text, false).map_err(|e| error(&e))?.get_ids().to_vec())
    }

    /// The text of `tokens`, special tokens left out. Bytes that are no UTF-8 become replacement characters, as at the
    /// end of a text that was cut inside of a character.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        // Not every decoder of the library takes an empty list.
        let has_text =
            |&id: &u32| self.token_of(id).is_some_and(|piece| !self.is_special_piece(&piece));
        if !tokens.iter().any(has_text) {
            return Ok(String::new());
        }
        self.0.decode(tokens, true).map_err(|e| error(&e))
    }

    /// The decoding of a text that comes token by token.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self)
    }

    /// The token that is written `token` in the vocabulary, special ones included.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    /// How the token `id` is written in the vocabulary; this is not its text, which [`decode`](Self::decode) tells.
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    /// Whether `id` is a special token, which is no part of a decoded text.
    pub fn is_special(&self, id: u32) -> bool {
        self.token_of(id).is_some_and(|token| self.is_special_piece(&token))
    }

    /// All special tokens, by id.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let added = self.0.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| self.is_special_piece(&token.content));
        let mut special: Vec<_> = special.map(|(id, token)| (id, token.content)).collect();
        special.sort_unstable();
        special
    }

    pub(crate) fn is_special_piece(&self, token: &str) -> bool {
        self.0.get_added_vocabulary().is_special_token(token)
    }

    /// What turns tokens into text.
    pub(crate) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.0.get_decoder()
    }
}

fn error(error: &tokenizers::Error) -> Error {
    Error::Tokenizer { reason: error.to_string() }
}
