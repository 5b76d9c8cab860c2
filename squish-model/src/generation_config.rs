//! How a model wants to be sampled, from its `generation_config.json`.
//!
//! | field | meaning | where neither it nor the caller says |
//! |---|---|---|
//! | `do_sample` | whether tokens are drawn | false: the largest logit is taken |
//! | `temperature`, `top_p`, `min_p`, `repetition_penalty` | as in [`Sampling`] | 1, 1, 0, 1 |
//! | `top_k` | as in [`Sampling`] | 50 |
//! | `eos_token_id` (a number or a list), `bos_token_id`, `pad_token_id` | token ids | those of `config.json`, or none |
//! | `max_new_tokens`, `max_length` | lengths, in tokens | none |
//!
//! The defaults are those that transformers 5.23 fills in when it generates (`GenerationConfig._get_default_generation_params`),
//! **`top_k` of 50 among them**: a file that says `do_sample` and nothing of `top_k` draws from 50 tokens. What the caller sets
//! comes first, then the file, then the defaults. Unlike there, a caller's temperature says whether tokens are drawn at all: above 0
//! they are, whatever `do_sample` says in the file.
//!
//! Other fields (beams, assistants, watermarks) are ignored. A negative token id stands for none, as in old files.

use std::path::Path;

use serde::Deserialize;

use crate::{
    Error, Sampling,
    error::{clip, read},
};

/// What `generation_config.json` and `config.json` say of generation. Fields that they lack are `None` or empty.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The token that fills a batch.
    pub pad_token_id: Option<u32>,
    /// Whether tokens are drawn.
    pub do_sample: Option<bool>,
    /// [`Sampling::temperature`].
    pub temperature: Option<f64>,
    /// [`Sampling::top_k`].
    pub top_k: Option<usize>,
    /// [`Sampling::top_p`].
    pub top_p: Option<f64>,
    /// [`Sampling::min_p`].
    pub min_p: Option<f64>,
    /// [`Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
    /// Tokens of prompt and generation at most.
    pub max_length: Option<usize>,
}

/// What a caller wants otherwise than the model's configuration; the default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingOverrides {
    /// [`Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// [`Sampling::presence_penalty`].
    pub presence_penalty: Option<f64>,
    /// [`Sampling::frequency_penalty`].
    pub frequency_penalty: Option<f64>,
    /// [`Sampling::temperature`]. Above 0 it turns sampling on, 0 turns it off.
    pub temperature: Option<f64>,
    /// [`Sampling::top_k`].
    pub top_k: Option<usize>,
    /// [`Sampling::top_p`].
    pub top_p: Option<f64>,
    /// [`Sampling::min_p`].
    pub min_p: Option<f64>,
}

/// `top_k` where nobody says.
const DEFAULT_TOP_K: usize = 50;

impl GenerationConfig {
    /// The configuration of the checkpoint in `folder`: its `generation_config.json`, if it has one, and the token ids of its
    /// `config.json`, if it has one, where the former lacks them.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file is there and cannot be read; [`Error::InFile`] with those of [`from_json`](Self::from_json).
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let file = |name: &str| {
            let path = folder.as_ref().join(name);
            if !path.exists() {
                return Ok(Self::default());
            }
            Self::from_json(&read(&path)?).map_err(Error::in_file(&path))
        };
        let config = file("generation_config.json")?;
        Ok(config.or_tokens_of(file("config.json")?))
    }

    /// The configuration in the bytes of a `generation_config.json`; also of a `config.json`, for its token ids.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigJson`] of what is no JSON object, or has a field of another type; [`Error::ConfigValue`] of a token id beyond `u32`.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_model::GenerationConfig;
    ///
    /// let config = GenerationConfig::from_json(br#"{"eos_token_id": [2, 7], "do_sample": true, "temperature": 0.6}"#)?;
    /// assert_eq!(config.eos_token_ids, [2, 7]);
    /// let sampling = config.sampling();
    /// assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.6, 50, 1.0));
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|error| Error::ConfigJson { reason: clip(&error.to_string()) })?;
        let mut eos_token_ids = Vec::new();
        for id in raw.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default() {
            eos_token_ids.extend(token_id("eos_token_id", Some(id))?);
        }
        Ok(Self {
            eos_token_ids,
            bos_token_id: token_id("bos_token_id", raw.bos_token_id)?,
            pad_token_id: token_id("pad_token_id", raw.pad_token_id)?,
            do_sample: raw.do_sample,
            temperature: raw.temperature,
            top_k: raw.top_k,
            top_p: raw.top_p,
            min_p: raw.min_p,
            repetition_penalty: raw.repetition_penalty,
            max_new_tokens: raw.max_new_tokens,
            max_length: raw.max_length,
        })
    }

    /// This, with the token ids of `other` where it has none.
    #[must_use]
    pub fn or_tokens_of(mut self, other: Self) -> Self {
        if self.eos_token_ids.is_empty() {
            self.eos_token_ids = other.eos_token_ids;
        }
        self.bos_token_id = self.bos_token_id.or(other.bos_token_id);
        self.pad_token_id = self.pad_token_id.or(other.pad_token_id);
        self
    }

    /// How the model wants to be sampled.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        self.sampling_with(SamplingOverrides::default())
    }

    /// How the model is sampled where the caller has wishes. [`Sampling::check`] says whether all numbers are in their ranges.
    ///
    /// ```
    /// use squish_model::{GenerationConfig, SamplingOverrides};
    ///
    /// let config = GenerationConfig::from_json(br#"{"do_sample": true, "top_k": 20, "temperature": 0.6}"#)?;
    /// let overrides = SamplingOverrides { top_k: Some(5), ..SamplingOverrides::default() };
    /// let sampling = config.sampling_with(overrides);
    /// assert_eq!((sampling.temperature, sampling.top_k), (0.6, 5));
    ///
    /// let greedy = SamplingOverrides { temperature: Some(0.0), ..overrides };
    /// assert!(config.sampling_with(greedy).is_greedy());
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    #[must_use]
    pub fn sampling_with(&self, overrides: SamplingOverrides) -> Sampling {
        let drawn = self.do_sample == Some(true);
        let own_temperature = if drawn { self.temperature.unwrap_or(1.0) } else { 0.0 };
        let default = Sampling::default();
        Sampling {
            repetition_penalty: overrides
                .repetition_penalty
                .or(self.repetition_penalty)
                .unwrap_or(default.repetition_penalty),
            presence_penalty: overrides.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: overrides.frequency_penalty.unwrap_or(default.frequency_penalty),
            temperature: overrides.temperature.unwrap_or(own_temperature),
            top_k: overrides.top_k.or(self.top_k).unwrap_or(DEFAULT_TOP_K),
            top_p: overrides.top_p.or(self.top_p).unwrap_or(default.top_p),
            min_p: overrides.min_p.or(self.min_p).unwrap_or(default.min_p),
        }
    }
}

/// The fields as they stand in the file.
#[derive(Deserialize)]
struct Raw {
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<i64>,
    pad_token_id: Option<i64>,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    max_new_tokens: Option<usize>,
    max_length: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(i64),
    Many(Vec<i64>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<i64> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// The id, unless it is negative.
fn token_id(field: &'static str, id: Option<i64>) -> Result<Option<u32>, Error> {
    match id {
        Some(id) if id >= 0 => u32::try_from(id).map(Some).map_err(|_| Error::ConfigValue {
            field,
            actual: id as f64,
            expected: "a token id below 2^32",
        }),
        _ => Ok(None),
    }
}
