//! A text in the making: a prompt, tokens chosen one after the other, and what of their text can be shown.

use crate::{
    Error, Runner, Sampler, Sampling, SequenceId, StopStrings, TextStream, Tokenizer,
    sampler::{Context, uniform},
};

/// How a text is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct GenerateOptions<'a> {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What draws depend on, besides the position of a token.
    pub seed: u64,
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// Tokens that end the text, and are not part of it.
    pub eos_token_ids: &'a [u32],
    /// Texts that end the text, and are not part of it.
    pub stop: &'a [String],
}

/// Why a text has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By a token that ends texts.
    Eos,
    /// Before the stop string of this index.
    Stop(usize),
    /// It has as many tokens as were wanted, or as the model has positions.
    Length,
}

/// A text in the making. Its sequence is freed when it is dropped.
///
/// A token depends on the tokens before it, the options and the position: not on what else the runner computes.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use squish_model::{GenerateOptions, Generation, LoadOptions, Model, Runner, RunnerOptions, Sampling, Tokenizer};
///
/// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");
/// let tokenizer = Tokenizer::from_file(format!("{folder}/tokenizer.json"))?;
/// let mut runner = Runner::new(Model::open(folder, &LoadOptions::default())?, &RunnerOptions::default())?;
///
/// let options = GenerateOptions { sampling: Sampling::greedy(), max_new_tokens: 8, ..Default::default() };
/// let mut generation = Generation::new(&mut runner, &tokenizer, &tokenizer.encode("impl Iterator for")?, &options)?;
/// let mut text = String::new();
/// while generation.step(&mut text)?.is_some() {}
/// assert_eq!(generation.tokens().len(), 8);
/// # Ok::<(), squish_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Generation<'r> {
    runner: &'r mut Runner,
    id: SequenceId,
    sampler: Sampler,
    sampling: Sampling,
    seed: u64,
    max_new_tokens: usize,
    eos_token_ids: Vec<u32>,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    /// Until the text has ended.
    stream: Option<TextStream>,
    stops: StopStrings,
    finish: Option<Finish>,
}

impl<'r> Generation<'r> {
    /// What follows the tokens of `prompt`, one at least. Computes nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewTokens`], [`Error::Token`], [`Error::Context`] of the prompt; [`Error::Sampling`] of options out of their ranges;
    /// [`Error::StopString`]; those of [`Runner::create`].
    pub fn new(
        runner: &'r mut Runner,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &GenerateOptions<'_>,
    ) -> Result<Self, Error> {
        let config = runner.config();
        let (vocab_size, max) = (config.vocab_size, config.max_position_embeddings);
        if prompt.is_empty() {
            return Err(Error::TooFewTokens { expected: 1, actual: 0 });
        }
        if prompt.len() > max {
            return Err(Error::Context { actual: prompt.len(), max });
        }
        options.sampling.check()?;
        let stops = StopStrings::new(options.stop)?;
        let stream = TextStream::after(tokenizer, prompt)?;
        let id = runner.create()?;
        let mut generation = Self {
            runner,
            id,
            sampler: Sampler::new(vocab_size),
            sampling: options.sampling,
            seed: options.seed,
            max_new_tokens: options.max_new_tokens,
            eos_token_ids: options.eos_token_ids.to_vec(),
            prompt: prompt.to_vec(),
            tokens: Vec::with_capacity(options.max_new_tokens.min(max)),
            stream: Some(stream),
            stops,
            finish: None,
        };
        if options.max_new_tokens == 0 {
            generation.finish = Some(Finish::Length);
        }
        Ok(generation)
    }

    /// The next token, and at the end of `text` what can be shown now that it is there; `None` once the text has ended.
    ///
    /// The first call computes the prompt. Incomplete characters, and what may become a stop string, are held back until it
    /// is clear what they are; the step that ends the text shows the rest.
    ///
    /// # Errors
    ///
    /// Those of [`Runner::extend`] and [`Sampler::sample`].
    pub fn step(&mut self, text: &mut String) -> Result<Option<u32>, Error> {
        if self.finish.is_some() {
            return Ok(None);
        }
        let new = match self.tokens.last() {
            None => &self.prompt[..],
            Some(last) => std::slice::from_ref(last),
        };
        let logits = self.runner.extend(self.id, new)?;
        let context =
            Context { prompt: &self.prompt, generated: &self.tokens, ..Context::default() };
        let position = self.prompt.len() + self.tokens.len();
        let draw = uniform(self.seed, position);
        let token = self.sampler.sample(logits, context, draw, self.sampling)?.token;
        self.tokens.push(token);
        if self.eos_token_ids.contains(&token) {
            return self.end(Finish::Eos, text).map(|()| Some(token));
        }
        if let Some(stream) = &mut self.stream
            && let Some(stop) = self.stops.push(stream.push(token)?, text)
        {
            self.finish = Some(Finish::Stop(stop));
            return Ok(Some(token));
        }
        let is_full = position + 1 >= self.runner.config().max_position_embeddings;
        if self.tokens.len() >= self.max_new_tokens || is_full {
            self.end(Finish::Length, text)?;
        }
        Ok(Some(token))
    }

    /// Why the text has ended, once it has.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// The tokens of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The tokens that were generated, one that ends the text included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Shows what was held back.
    fn end(&mut self, finish: Finish, text: &mut String) -> Result<(), Error> {
        self.finish = Some(finish);
        let rest = self.stream.take().map(TextStream::finish).transpose()?.unwrap_or_default();
        if let Some(stop) = self.stops.push(&rest, text) {
            self.finish = Some(Finish::Stop(stop));
        } else {
            self.stops.finish(text);
        }
        Ok(())
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        // It fails for a sequence alone that is not there, and this one is.
        let _ = self.runner.free(self.id);
    }
}
