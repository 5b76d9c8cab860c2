//! A model at work: sequences, their caches, and forward passes over batches of them.

use std::sync::Arc;

use arrayvec::ArrayVec;
use squish_attn::{LengthRule, RopeMode, RopeOptions, RopeTable};
use squish_kernels::{Team, rms_norm_in_place, soft_cap_in_place};
use squish_kv::{Salt, Scope};
use squish_quant::ndarray::{ArrayView2, ArrayViewMut2};

use crate::{
    Config, Error, Hooks, Model, Part, Projection, Site, Wanted,
    batch::BatchBuffers,
    forward::{Buffers, Caches, Pass, rows},
    kv::{AnyStep, AnyStore, GroupId, Groups, KvOptions, MOST_GROUPS, Sight},
    products::{Live, Products},
};

/// A sequence of a [`Runner`]. That of a sequence that was freed is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId {
    place: u32,
    generation: u32,
}

/// How a model runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunnerOptions {
    /// Keys and values.
    pub kv: KvOptions,
    /// Threads, the calling one included.
    pub n_threads: usize,
    /// Tokens of a prompt that are computed at once by [`Runner::extend`], at least one.
    pub chunk: usize,
    /// How rotary tables are made, and what lengths that depend on a call are pinned to.
    pub rope_mode: RopeMode,
    /// What a rotary embedding that depends on the length of a sequence is made for.
    pub rope_length: RopeLength,
}

/// The length that frequencies are made for, where they depend on one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeLength {
    /// The longest context of the model.
    #[default]
    Longest,
    /// This many tokens.
    Pinned(usize),
}

/// One sequence, all threads that the machine has, prompts in pieces of 512 tokens.
impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            kv: KvOptions::default(),
            n_threads: std::thread::available_parallelism().map_or(1, usize::from),
            chunk: 512,
            rope_mode: RopeMode::default(),
            rope_length: RopeLength::default(),
        }
    }
}

/// A model with caches and threads.
pub struct Runner {
    model: Arc<Model>,
    /// The model's, or what it was overridden with.
    config: Config,
    groups: Groups,
    /// Of each group.
    sights: Vec<Sight>,
    sequences: Vec<Slot>,
    ropes: Vec<RopeTable>,
    attention: squish_attn::Workspace,
    workspace: squish_quant::Workspace,
    chunk: usize,
    n_sequences: usize,
    batch: BatchBuffers,
    lens: Vec<usize>,
    buffers: Buffers,
    live: Live,
}

/// A place for a sequence.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    /// Of each group, while there is a sequence.
    ids: Option<ArrayVec<GroupId, MOST_GROUPS>>,
}

impl Runner {
    /// `model` without sequences.
    ///
    /// # Errors
    ///
    /// [`Error::Kv`] of caches that cannot be made, [`Error::Attention`] of a rotary embedding, [`Error::Threads`]; [`Error::Zero`].
    pub fn new(model: impl Into<Arc<Model>>, options: &RunnerOptions) -> Result<Self, Error> {
        let team = Team::new(options.n_threads).map_err(|source| Error::Threads { source })?;
        Self::with_team(model, Arc::new(team), options)
    }

    /// As [`new`](Self::new), on the threads of `team`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_team(
        model: impl Into<Arc<Model>>,
        team: Arc<Team>,
        options: &RunnerOptions,
    ) -> Result<Self, Error> {
        let model = model.into();
        let config = model.config.clone();
        Self::with_config(model, config, team, options)
    }

    /// As [`with_team`](Self::with_team), with other windows, rotary embeddings or another longest context than the model's own: fields of a
    /// `config` that else is [`Model::config`].
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); those of [`Config::check`], and [`Error::Override`] of a configuration that differs elsewhere.
    pub fn with_config(
        model: impl Into<Arc<Model>>,
        config: Config,
        team: Arc<Team>,
        options: &RunnerOptions,
    ) -> Result<Self, Error> {
        let model = model.into();
        config.check()?;
        let Config { max_position_embeddings, layers, ropes, .. } = &config;
        let same = Config {
            max_position_embeddings: *max_position_embeddings,
            layers: layers.clone(),
            ropes: ropes.clone(),
            ..model.config.clone()
        };
        if same != config || config.n_layers() != model.config.n_layers() {
            return Err(Error::Override);
        }
        if options.chunk == 0 {
            return Err(Error::Zero { what: "chunk" });
        }
        let groups = Groups::new(&config, &options.kv, options.chunk)?;
        let sights = groups.groups.iter().map(|group| group.sight).collect();
        let length = match options.rope_length {
            RopeLength::Longest => LengthRule::Longest,
            RopeLength::Pinned(length) => LengthRule::Pinned(length),
        };
        let rope_options = RopeOptions { mode: options.rope_mode, length };
        let ropes = config.ropes.iter().map(|rope| RopeTable::new(rope.clone(), rope_options));
        let ropes = ropes.collect::<Result<_, _>>()?;
        Ok(Self {
            groups,
            sights,
            sequences: Vec::with_capacity(options.kv.n_sequences),
            ropes,
            attention: squish_attn::Workspace::new(Arc::clone(&team)),
            workspace: squish_quant::Workspace::new(team),
            chunk: options.chunk,
            n_sequences: options.kv.n_sequences,
            batch: BatchBuffers::default(),
            lens: Vec::new(),
            buffers: Buffers::default(),
            live: Live::default(),
            config,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The model's configuration, as far as it was not overridden.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens of a prompt that are computed at once.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Sequences that the caches were made for.
    pub fn n_sequences(&self) -> usize {
        self.n_sequences
    }

    /// A sequence without tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Kv`].
    pub fn create(&mut self) -> Result<SequenceId, Error> {
        self.hold(|_, store| store.create())
    }

    /// A sequence that starts with what is cached of the prompt `tokens`, and how many tokens that is: whole blocks, and fewer than all.
    ///
    /// Prompts are found by who has the same `salt`, or by all who have none. The keys and values of tokens that come in with
    /// [`forward`](Self::forward) can be found by others once they fill blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Kv`].
    pub fn create_with_prefix(
        &mut self,
        tokens: &[u32],
        salt: Option<&[u8]>,
    ) -> Result<(SequenceId, usize), Error> {
        let salt = salt.map_or(Salt::Shared, Salt::Tenant);
        let key = |group: usize| {
            let layer_group = group as u32;
            Scope { model: b"", adapter: None, layer_group, salt }.key()
        };
        // A hit is what all groups have.
        let mut n_cached = tokens.len();
        loop {
            let cut = &tokens[..tokens.len().min(n_cached + 1)];
            let of_groups = self.groups.groups.iter().enumerate();
            let least = of_groups.map(|(i, group)| group.store.cached_len(&key(i), cut)).min();
            let least = least.unwrap_or(0);
            if least == n_cached {
                break;
            }
            n_cached = least;
        }
        let cut = &tokens[..tokens.len().min(n_cached + 1)];
        let id = self.hold(|group, store| Ok(store.create_with_prefix(&key(group), cut)?.0))?;
        Ok((id, n_cached))
    }

    /// A sequence with the tokens of another, which shares its blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Sequence`], [`Error::NoFork`], [`Error::Kv`].
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId, Error> {
        let of_groups = self.ids(id)?.clone();
        self.hold(|group, store| store.fork(of_groups[group]))
    }

    /// Cuts a sequence to its first `len` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Sequence`]; [`Error::Kv`] if it is shorter, or a window has left what would be its last tokens.
    pub fn truncate(&mut self, id: SequenceId, len: usize) -> Result<(), Error> {
        let ids = self.ids(id)?.clone();
        // All groups or none.
        for (group, &id) in self.groups.groups.iter().zip(&ids) {
            group.store.check_truncate(id, len)?;
        }
        for (group, id) in self.groups.groups.iter_mut().zip(ids) {
            group.store.truncate(id, len)?;
        }
        Ok(())
    }

    /// Ends a sequence.
    ///
    /// # Errors
    ///
    /// [`Error::Sequence`].
    pub fn free(&mut self, id: SequenceId) -> Result<(), Error> {
        let ids = self.ids(id)?.clone();
        self.sequences[id.place as usize].ids = None;
        self.give_back(&ids)
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    ///
    /// [`Error::Sequence`].
    pub fn len(&self, id: SequenceId) -> Result<usize, Error> {
        self.groups.groups[0].store.len(self.ids(id)?[0])
    }

    /// Computes the new tokens of `parts`. They belong to their sequences once [`Output::commit`] is called; an output that is dropped leaves
    /// no trace.
    ///
    /// # Errors
    ///
    /// [`Error::Sequence`], also of one that two parts name; [`Error::TooFewTokens`], [`Error::Token`], [`Error::Parents`],
    /// [`Error::Parent`]; [`Error::Context`] of more tokens than the model has positions; [`Error::Kv`] if there is no room for all of them.
    pub fn forward(&mut self, parts: &[Part<'_>]) -> Result<Output<'_>, Error> {
        self.forward_with(parts, &mut Hooks::default())
    }

    /// As [`forward`](Self::forward), with hooks.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    ///
    /// # Panics
    ///
    /// Never: sequences are there once parts are checked.
    pub fn forward_with(
        &mut self,
        parts: &[Part<'_>],
        hooks: &mut Hooks<'_>,
    ) -> Result<Output<'_>, Error> {
        self.check(parts)?;
        let Self { model, config, groups, sights, sequences, ropes, buffers, .. } = self;
        let lens = &self.lens;
        let batch = self.batch.batch(parts, |part| lens[part]);
        let n_positions = batch.positions.iter().max().map_or(0, |last| last + 1);
        for rope in ropes.iter_mut() {
            // In pieces, so that few steps make any.
            if rope.n_positions() < n_positions {
                rope.extend_to(n_positions.next_multiple_of(ROPE_PIECE))?;
            }
        }
        let mut steps = ArrayVec::<_, MOST_GROUPS>::new();
        for (group_idx, group) in groups.groups.iter_mut().enumerate() {
            let ids = parts.iter().map(|part| {
                let slot = &sequences[part.sequence.place as usize];
                let ids = slot.ids.as_ref().expect("parts were checked");
                (ids[group_idx], part.tokens.len())
            });
            steps.push(group.store.begin(ids)?);
        }
        Pass {
            model,
            config,
            batch,
            ropes,
            caches: Caches { places: &groups.places, sights, steps: &mut steps },
            attention: &mut self.attention,
            products: Products {
                workspace: &mut self.workspace,
                part_of: batch.part_of,
                live: &mut self.live,
            },
            buffers,
        }
        .run(hooks)?;
        for step in &mut steps {
            for (idx, part) in parts.iter().enumerate() {
                // Nothing of a tree is found by others before a path of it is accepted.
                if part.parents.is_none() {
                    step.record(idx, part.tokens)?;
                }
            }
        }
        let hidden = model.config.hidden_size;
        let Buffers { x, last, last_part_of, .. } = &mut *buffers;
        last.clear();
        last_part_of.clear();
        for (part, first) in parts.iter().zip(batch.first_rows) {
            let wanted = part.wanted_rows();
            last.extend_from_slice(
                &x[(first + wanted.start) * hidden..(first + wanted.end) * hidden],
            );
            last_part_of
                .extend_from_slice(&batch.part_of[first + wanted.start..first + wanted.end]);
        }
        rms_norm_in_place(last, &model.norm, model.config.rms_norm_eps, model.config.norm);
        Ok(Output { model, steps, buffers, workspace: &mut self.workspace })
    }

    /// Appends tokens to a sequence, in pieces, and returns the logits of the last one, `[vocab_size]`.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward); pieces that were computed before stay.
    pub fn extend(&mut self, id: SequenceId, tokens: &[u32]) -> Result<&[f32], Error> {
        let n_before = tokens.len().saturating_sub(1) / self.chunk * self.chunk;
        for tokens in tokens[..n_before].chunks(self.chunk) {
            self.forward(&[Part::new(id, tokens).with_logits(Wanted::None)])?.commit()?;
        }
        let mut output = self.forward(&[Part::new(id, &tokens[n_before..])])?;
        output.commit()?;
        output.into_logits()
    }

    fn check(&mut self, parts: &[Part<'_>]) -> Result<(), Error> {
        if parts.is_empty() {
            return Err(Error::TooFewTokens { expected: 1, actual: 0 });
        }
        let (config, mut lens) = (&self.config, std::mem::take(&mut self.lens));
        lens.clear();
        let max = config.max_position_embeddings;
        let checked = parts.iter().enumerate().try_for_each(|(idx, part)| {
            part.check(config)?;
            let len = self.len(part.sequence)?;
            lens.push(len);
            let is_double = parts[..idx].iter().any(|other| other.sequence == part.sequence);
            let actual = len + part.tokens.len();
            match () {
                () if is_double => Err(Error::Sequence { what: "named by two parts" }),
                () if actual > max => Err(Error::Context { actual, max }),
                () => Ok(()),
            }
        });
        self.lens = lens;
        checked
    }

    fn ids(&self, id: SequenceId) -> Result<&ArrayVec<GroupId, MOST_GROUPS>, Error> {
        let slot = self.sequences.get(id.place as usize);
        let slot = slot.filter(|slot| slot.generation == id.generation);
        slot.and_then(|slot| slot.ids.as_ref()).ok_or(Error::Sequence { what: "not there" })
    }

    /// A sequence of what `make` gives for the cache of each group: of all or of none.
    fn hold(
        &mut self,
        mut make: impl FnMut(usize, &mut AnyStore) -> Result<GroupId, Error>,
    ) -> Result<SequenceId, Error> {
        let mut ids = ArrayVec::<_, MOST_GROUPS>::new();
        for (idx, group) in self.groups.groups.iter_mut().enumerate() {
            match make(idx, &mut group.store) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    self.give_back(&ids)?;
                    return Err(error);
                }
            }
        }
        let free = self.sequences.iter().position(|slot| slot.ids.is_none());
        let place = free.unwrap_or_else(|| {
            self.sequences.push(Slot::default());
            self.sequences.len() - 1
        });
        let slot = &mut self.sequences[place];
        slot.generation = slot.generation.wrapping_add(1);
        slot.ids = Some(ids);
        Ok(SequenceId { place: place as u32, generation: slot.generation })
    }

    fn give_back(&mut self, ids: &[GroupId]) -> Result<(), Error> {
        for (group, &id) in self.groups.groups.iter_mut().zip(ids) {
            group.store.free(id)?;
        }
        Ok(())
    }
}

/// Positions that a rotary table grows by.
const ROPE_PIECE: usize = 512;

/// What a pass has computed: the last hidden states of the rows that were wanted, logits on request. Dropped before it is committed, it leaves
/// no trace.
#[must_use = "an output that is dropped is undone"]
pub struct Output<'a> {
    model: &'a Model,
    steps: ArrayVec<AnyStep<'a>, MOST_GROUPS>,
    buffers: &'a mut Buffers,
    workspace: &'a mut squish_quant::Workspace,
}

impl<'a> Output<'a> {
    /// Rows that were wanted, those of one part after those of another.
    pub fn n_rows(&self) -> usize {
        self.buffers.last.len() / self.model.config.hidden_size
    }

    /// What the head multiplies: the last hidden states after the final norm, `[wanted, hidden_size]`.
    pub fn hidden(&self) -> ArrayView2<'_, f32> {
        rows(&self.buffers.last, self.model.config.hidden_size)
    }

    /// Logits of the wanted rows, `[wanted, vocab_size]`.
    ///
    /// # Errors
    ///
    /// [`Error::Product`].
    pub fn logits(&mut self) -> Result<ArrayView2<'_, f32>, Error> {
        self.logits_with(&mut Hooks::default())
    }

    /// As [`logits`](Self::logits), with hooks: a recorder sees what the head multiplies, and an adapter adds to what comes of it, before it is
    /// capped. No input of the head is rounded, or left out, whatever the threshold.
    ///
    /// # Errors
    ///
    /// As [`logits`](Self::logits).
    pub fn logits_with(&mut self, hooks: &mut Hooks<'_>) -> Result<ArrayView2<'_, f32>, Error> {
        let n_rows = self.n_rows();
        self.compute(0, n_rows, hooks)?;
        Ok(rows(&self.buffers.logits, self.model.config.vocab_size))
    }

    /// Calls `visit` with the number of each wanted row and its logits, `[vocab_size]`. Not all are in memory at once.
    ///
    /// # Errors
    ///
    /// [`Error::Product`]; the first one of `visit`, which is not called again.
    pub fn for_each_logits<E: From<Error>>(
        &mut self,
        visit: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.for_each_logits_with(&mut Hooks::default(), visit)
    }

    /// As [`for_each_logits`](Self::for_each_logits), with hooks as [`logits_with`](Self::logits_with) has them, which are called for some rows
    /// at a time.
    ///
    /// # Errors
    ///
    /// As [`for_each_logits`](Self::for_each_logits).
    pub fn for_each_logits_with<E: From<Error>>(
        &mut self,
        hooks: &mut Hooks<'_>,
        mut visit: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        for first in (0..self.n_rows()).step_by(ROWS_AT_ONCE) {
            let n_rows = ROWS_AT_ONCE.min(self.n_rows() - first);
            self.compute(first, n_rows, hooks)?;
            for (i, row) in
                self.buffers.logits.chunks_exact(self.model.config.vocab_size).enumerate()
            {
                visit(first + i, row)?;
            }
        }
        Ok(())
    }

    /// Keeps of the new tokens of part number `part` those at the indices `path`, which ascend: a path of a tree from its root on.
    ///
    /// # Errors
    ///
    /// [`Error::Kv`]; [`Error::Committed`].
    pub fn accept(&mut self, part: usize, path: &[usize]) -> Result<(), Error> {
        self.check_open()?;
        self.steps.iter_mut().try_for_each(|step| step.accept(part, path))
    }

    /// Says which tokens of an accepted path are new, so that others can find them.
    ///
    /// # Errors
    ///
    /// [`Error::Kv`] if they are not as many as the path has; [`Error::Committed`].
    pub fn record(&mut self, part: usize, tokens: &[u32]) -> Result<(), Error> {
        self.check_open()?;
        self.steps.iter_mut().try_for_each(|step| step.record(part, tokens))
    }

    /// Makes the new tokens part of their sequences. Logits can be had before and after.
    ///
    /// # Errors
    ///
    /// [`Error::Kv`]; [`Error::Committed`] the second time.
    pub fn commit(&mut self) -> Result<(), Error> {
        self.check_open()?;
        self.steps.drain(..).try_for_each(AnyStep::commit)
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.steps.is_empty() { Err(Error::Committed) } else { Ok(()) }
    }

    /// The logits of the last wanted row, for as long as the runner is not used.
    fn into_logits(mut self) -> Result<&'a [f32], Error> {
        self.compute(self.n_rows() - 1, 1, &mut Hooks::default())?;
        Ok(&self.buffers.logits)
    }

    /// The logits of some wanted rows, into the buffer.
    fn compute(&mut self, first: usize, n_rows: usize, hooks: &mut Hooks<'_>) -> Result<(), Error> {
        let config = &self.model.config;
        let Buffers { last, last_part_of, logits, .. } = &mut *self.buffers;
        let x = &last[first * config.hidden_size..(first + n_rows) * config.hidden_size];
        let [vocab_size, hidden_size] = Projection::Head.shape(config);
        let x = rows(x, hidden_size);
        let site = Site { layer: config.n_layers(), projection: Projection::Head };
        if let Some(recorder) = &mut hooks.recorder {
            recorder.record(site, x);
        }
        logits.resize(n_rows * vocab_size, 0.0);
        let out = ArrayViewMut2::from_shape((n_rows, vocab_size), &mut logits[..]);
        let mut out = out.expect("as many numbers as the shape has");
        self.workspace.products_into(x, &mut [self.model.head.product(out.view_mut())])?;
        if let Some(adapter) = hooks.adapter {
            adapter.add(site, &last_part_of[first..first + n_rows], x, out);
        }
        if let Some(cap) = config.logit_softcap {
            soft_cap_in_place(logits, cap);
        }
        Ok(())
    }
}

/// Rows of logits that are in memory at once: enough for products at their full speed.
const ROWS_AT_ONCE: usize = 64;

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner")
            .field("model", &self.model)
            .field("sights", &self.sights)
            .field("n_sequences", &self.sequences.iter().filter(|s| s.ids.is_some()).count())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("n_rows", &self.n_rows()).finish_non_exhaustive()
    }
}
