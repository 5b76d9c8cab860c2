//! A runner, alone or with hooks, as the model that squish-eval measures.

use squish_eval::{BatchSink, CausalLm, Prompt, RowSink};

use crate::{Error, Hooks, Part, Runner, SequenceId, Wanted};

/// A runner with hooks in every pass, and in the head.
///
/// # Examples
///
/// ```
/// use squish_eval::{Recipe, perplexity};
/// use squish_model::{Config, Hooked, Hooks, LoadOptions, Model, RandomCheckpoint, Runner, RunnerOptions, Site, Sparsity};
///
/// /// Leaves out small inputs of matrices.
/// struct Small;
///
/// impl Sparsity for Small {
///     fn threshold(&self, _: Site) -> f32 {
///         0.5
///     }
/// }
///
/// let random = RandomCheckpoint { config: Config::llama(64, 96, 2, [4, 2, 16], 100, 32), seed: 7 };
/// let model = Model::load(&random, &random.config, &LoadOptions::default())?;
/// let mut runner = Runner::new(model, &RunnerOptions::default())?;
/// let (tokens, recipe) = ([1, 2, 3, 4], Recipe::Strided { max_len: 32, stride: 32, prefix: None });
/// let all = perplexity(&mut runner, &tokens, recipe)?.value();
/// let hooks = Hooks { sparsity: Some(&Small), ..Hooks::default() };
/// let some = perplexity(&mut Hooked { runner: &mut runner, hooks }, &tokens, recipe)?.value();
/// assert_ne!(some, all);
/// # Ok::<(), squish_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Hooked<'a, 'h> {
    /// Computes.
    pub runner: &'a mut Runner,
    /// Take part.
    pub hooks: Hooks<'h>,
}

/// As [`Hooked`] without hooks.
impl CausalLm for Runner {
    type Error = Error;

    fn vocab_size(&self) -> usize {
        self.model().config().vocab_size
    }

    fn max_seq_len(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn logits(&mut self, prompt: Prompt<'_>, sink: &mut RowSink<'_>) -> Result<(), Error> {
        Hooked { runner: self, hooks: Hooks::default() }.logits(prompt, sink)
    }

    fn max_batch(&self) -> usize {
        self.n_sequences()
    }

    fn logits_of_batch(
        &mut self,
        prompts: &[Prompt<'_>],
        sink: &mut BatchSink<'_>,
    ) -> Result<(), Error> {
        Hooked { runner: self, hooks: Hooks::default() }.logits_of_batch(prompts, sink)
    }
}

/// Windows are computed in pieces of [`Runner::chunk`] tokens; short ones as many at once as fit into a piece.
impl CausalLm for Hooked<'_, '_> {
    type Error = Error;

    fn vocab_size(&self) -> usize {
        self.runner.vocab_size()
    }

    fn max_seq_len(&self) -> usize {
        self.runner.max_seq_len()
    }

    fn logits(&mut self, prompt: Prompt<'_>, sink: &mut RowSink<'_>) -> Result<(), Error> {
        self.logits_of_batch(&[prompt], &mut |_, row, logits| sink(row, logits))
    }

    fn max_batch(&self) -> usize {
        self.runner.max_batch()
    }

    fn logits_of_batch(
        &mut self,
        prompts: &[Prompt<'_>],
        sink: &mut BatchSink<'_>,
    ) -> Result<(), Error> {
        let mut first = 0;
        while first < prompts.len() {
            // As many as fit into a piece, one at least.
            let mut n_tokens = 0;
            let fitting = prompts[first..].iter().take_while(|prompt| {
                n_tokens += prompt.tokens.len();
                n_tokens <= self.runner.chunk()
            });
            let n_prompts = fitting.count().clamp(1, self.runner.n_sequences().max(1));
            let prompts = &prompts[first..first + n_prompts];
            let mut ids = Vec::with_capacity(n_prompts);
            let created =
                (0..n_prompts).try_for_each(|_| self.runner.create().map(|id| ids.push(id)));
            let result = created.and_then(|()| {
                self.rows_of(prompts, &ids, &mut |i, row, logits| sink(first + i, row, logits))
            });
            ids.into_iter().try_for_each(|id| self.runner.free(id))?;
            result?;
            first += n_prompts;
        }
        Ok(())
    }
}

impl Hooked<'_, '_> {
    /// The wanted rows of prompts that fit into a piece together, or of a single one.
    fn rows_of(
        &mut self,
        prompts: &[Prompt<'_>],
        ids: &[SequenceId],
        sink: &mut BatchSink<'_>,
    ) -> Result<(), Error> {
        let (chunk, longest) = (self.runner.chunk(), prompts.iter().map(|p| p.tokens.len()).max());
        for start in (0..longest.unwrap_or(0)).step_by(chunk) {
            let mut rows = Vec::new();
            let parts: Vec<Part<'_>> = prompts
                .iter()
                .zip(ids)
                .enumerate()
                .map(|(i, (prompt, &id))| {
                    let end = prompt.tokens.len().min(start + chunk);
                    let wanted = prompt.wanted.start.clamp(start, end);
                    rows.extend((wanted..end).map(|row| (i, row)));
                    let tokens = &prompt.tokens[start..end];
                    Part::new(id, tokens).with_logits(Wanted::From(wanted - start))
                })
                .collect();
            let mut output = self.runner.forward_with(&parts, &mut self.hooks)?;
            output.for_each_logits_with(&mut self.hooks, |idx, logits| {
                let (i, row) = rows[idx];
                sink(i, row, logits).map_err(Error::from)
            })?;
            output.commit()?;
        }
        Ok(())
    }
}
