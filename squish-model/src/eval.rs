//! A runner as the model that squish-eval measures.

use squish_eval::{BatchSink, CausalLm, Prompt, RowSink};

use crate::{Error, Part, Runner, SequenceId, Wanted};

/// Windows are computed in pieces of [`Runner::chunk`] tokens; short ones as many at once as fit into a piece.
impl CausalLm for Runner {
    type Error = Error;

    fn vocab_size(&self) -> usize {
        self.model().config().vocab_size
    }

    fn max_seq_len(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn logits(&mut self, prompt: Prompt<'_>, sink: &mut RowSink<'_>) -> Result<(), Error> {
        self.logits_of_batch(&[prompt], &mut |_, row, logits| sink(row, logits))
    }

    fn max_batch(&self) -> usize {
        self.n_sequences()
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
                n_tokens <= self.chunk()
            });
            let n_prompts = fitting.count().clamp(1, self.n_sequences().max(1));
            let prompts = &prompts[first..first + n_prompts];
            let mut ids = Vec::with_capacity(n_prompts);
            let created = (0..n_prompts).try_for_each(|_| self.create().map(|id| ids.push(id)));
            let result = created.and_then(|()| {
                self.rows_of(prompts, &ids, &mut |i, row, logits| sink(first + i, row, logits))
            });
            ids.into_iter().try_for_each(|id| self.free(id))?;
            result?;
            first += n_prompts;
        }
        Ok(())
    }
}

impl Runner {
    /// The wanted rows of prompts that fit into a piece together, or of a single one.
    fn rows_of(
        &mut self,
        prompts: &[Prompt<'_>],
        ids: &[SequenceId],
        sink: &mut BatchSink<'_>,
    ) -> Result<(), Error> {
        let (chunk, longest) = (self.chunk(), prompts.iter().map(|p| p.tokens.len()).max());
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
            let mut output = self.forward(&parts)?;
            output.for_each_logits(|idx, logits| {
                let (i, row) = rows[idx];
                sink(i, row, logits).map_err(Error::from)
            })?;
            output.commit()?;
        }
        Ok(())
    }
}
