//! Random operations on tables with a storage behind them, against one vector of tokens per sequence. Shared with the fuzz target.
//!
//! What the storage holds for a token is a digest of the key and of all tokens up to it, as keys and values are in a model: a block that
//! is shared with whom it should not be, or written to by one of several owners, shows when it is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
};

use squish_kv::{
    BlockHash, BlockId, BlockTables, Error, NULL_BLOCK, PrefixKey, Retention, Salt, Scope,
    SequenceId, Slot,
};

/// Decisions read from bytes; zeros behind their end.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choices<'_> {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let (&first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        usize::from(first) % n
    }

    pub(crate) fn tokens(&mut self, n: usize) -> Vec<u32> {
        // Two tokens: prefixes are to agree by chance.
        (0..n).map(|_| self.below(2) as u32).collect()
    }
}

#[derive(Clone, Debug)]
struct Model {
    id: SequenceId,
    tokens: Vec<u32>,
    /// What the storage has to hold for each token.
    digests: Vec<u64>,
    key: Option<usize>,
    n_known: usize,
    window: Option<usize>,
}

impl Model {
    fn push(&mut self, tokens: &[u32]) {
        for &token in tokens {
            let seed = self.key.map_or(7, |key| key as u64);
            self.digests.push(mix(self.digests.last().copied().unwrap_or(seed), token));
            self.tokens.push(token);
        }
    }

    fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.digests.truncate(len);
        self.n_known = self.n_known.min(len);
    }

    /// The first position that the next token reads.
    fn first_read(&self) -> usize {
        self.window.map_or(0, |window| self.tokens.len().saturating_sub(window - 1))
    }
}

pub(crate) fn mix(digest: u64, token: u32) -> u64 {
    (digest ^ u64::from(token) << 1 ^ 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

struct World {
    tables: BlockTables,
    /// `[n_blocks, block_size]`
    storage: Vec<u64>,
    /// What has been in the storage for each hash, forever.
    contents: BTreeMap<[u8; 32], Vec<u64>>,
    keys: [PrefixKey; 3],
    live: Vec<Model>,
    freed: Vec<SequenceId>,
    n_garbage: u64,
}

/// All that a refused or dropped step must leave alone.
#[derive(Debug, PartialEq)]
struct Snapshot {
    free: Vec<BlockId>,
    sequences: Vec<(usize, Vec<BlockId>)>,
    cached: Vec<Option<BlockHash>>,
}

/// Carries out the operations that `bytes` say, and checks everything after each.
pub(crate) fn walk(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let (n_blocks, block_size) = (1 + choices.below(12), 1 + choices.below(4));
    let key = |adapter, salt| Scope { model: b"model", adapter, layer_group: 0, salt }.key();
    let mut world = World {
        tables: BlockTables::new(n_blocks, block_size).unwrap(),
        storage: vec![0; n_blocks * block_size],
        contents: BTreeMap::new(),
        keys: [
            key(None, Salt::Shared),
            key(Some(b"adapter"), Salt::Shared),
            key(None, Salt::Tenant(b"salt")),
        ],
        live: Vec::new(),
        freed: Vec::new(),
        n_garbage: 0,
    };
    while !choices.0.is_empty() {
        world.operate(&mut choices);
        world.check();
    }
    while let Some(model) = world.live.pop() {
        world.tables.free(model.id).unwrap();
        world.check();
    }
    assert_eq!(world.tables.pool().n_free(), n_blocks, "all is free when all are freed");
}

impl World {
    fn operate(&mut self, choices: &mut Choices<'_>) {
        let operation = choices.below(12);
        if operation < 2 || self.live.is_empty() {
            return self.create(choices, operation == 0);
        }
        let at = choices.below(self.live.len());
        match operation {
            2 => {
                let mut child = self.live[at].clone();
                child.id = self.tables.fork(child.id).unwrap();
                self.live.push(child);
            }
            3 => self.truncate(choices, at),
            4 => {
                let model = self.live.swap_remove(at);
                self.tables.free(model.id).unwrap();
                self.freed.push(model.id);
            }
            5 => self.use_stale(choices),
            6 => self.press(),
            _ => self.step(choices),
        }
    }

    fn create(&mut self, choices: &mut Choices<'_>, without_key: bool) {
        let window = Some(choices.below(9)).filter(|&window| window > 0);
        let retention =
            window.and_then(NonZeroUsize::new).map_or(Retention::All, Retention::Window);
        if without_key {
            let id = self.tables.create(retention).unwrap();
            let (tokens, digests) = (Vec::new(), Vec::new());
            return self.live.push(Model { id, tokens, digests, key: None, n_known: 0, window });
        }
        let key = choices.below(self.keys.len());
        let mut prompt = match self.live.get(choices.below(self.live.len() + 1)) {
            Some(model) => model.tokens.clone(),
            None => Vec::new(),
        };
        let n_more = choices.below(6);
        prompt.extend(choices.tokens(n_more));
        // What is surely there: blocks that a sequence which gives none back has filled with known tokens.
        let bs = self.tables.block_size();
        let n_whole = prompt.len().saturating_sub(1) / bs;
        let common = |model: &&Model| {
            let same =
                model.tokens[..model.n_known].iter().zip(&prompt).take_while(|(a, b)| a == b);
            same.count() / bs
        };
        let of_key = |model: &&Model| model.key == Some(key) && model.window.is_none();
        let least = self.live.iter().filter(of_key).map(|model| common(&model)).max();
        let least = least.unwrap_or(0).min(n_whole) * bs;

        let predicted = self.tables.cached_len(&self.keys[key], &prompt, retention);
        let (id, n_cached) =
            self.tables.create_with_prefix(&self.keys[key], &prompt, retention).unwrap();
        assert_eq!(n_cached, predicted);
        assert!(n_cached % bs == 0 && least <= n_cached && n_cached <= n_whole * bs);
        let mut model = Model {
            id,
            tokens: Vec::new(),
            digests: Vec::new(),
            key: Some(key),
            n_known: n_cached,
            window,
        };
        model.push(&prompt[..n_cached]);
        self.live.push(model);
    }

    fn truncate(&mut self, choices: &mut Choices<'_>, at: usize) {
        let model = &mut self.live[at];
        let len = model.tokens.len();
        let to = choices.below(len + 2);
        let table = self.tables.table(model.id).unwrap().to_vec();
        match self.tables.truncate(model.id, to) {
            Ok(()) => {
                model.truncate(to);
                // Where a window has lost the hash of what is before the cut, nothing is known any more.
                let bs = self.tables.block_size();
                let is_null = |at: usize| table.get(at).is_none_or(|&block| block == NULL_BLOCK);
                if to / bs > 0 && is_null(to / bs - 1) && is_null(to / bs) && to / bs < len / bs {
                    model.n_known = 0;
                }
            }
            Err(Error::Truncate { len: had, to: asked }) => {
                assert_eq!((had, asked), (len, to));
                assert!(to > len);
            }
            Err(Error::LeftWindow { .. }) => {
                let bs = self.tables.block_size();
                let first = to.saturating_sub(model.window.unwrap() - 1) / bs;
                assert!(table[first..to.div_ceil(bs)].contains(&NULL_BLOCK));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn use_stale(&mut self, choices: &mut Choices<'_>) {
        if self.freed.is_empty() {
            return;
        }
        let id = self.freed[choices.below(self.freed.len())];
        let stale = Error::StaleSequence { id };
        assert_eq!(self.tables.free(id), Err(stale));
        assert_eq!(self.tables.fork(id), Err(stale));
        assert_eq!(self.tables.truncate(id, 0), Err(stale));
        assert_eq!(self.tables.table(id), Err(stale));
        let alive = self.live[0].id;
        let before = self.snapshot();
        assert_eq!(self.tables.begin(&[(alive, 1), (id, 1)]).err().unwrap(), stale);
        assert_eq!(
            self.tables.begin(&[(alive, 1), (alive, 1)]).err().unwrap(),
            Error::DuplicateSequence { id: alive }
        );
        assert_eq!(self.snapshot(), before);
    }

    /// Somebody takes all that is free, and gives it back.
    fn press(&mut self) {
        let id = self.tables.create(Retention::All).unwrap();
        let n_free = self.tables.pool().n_free();
        let n_slots = n_free * self.tables.block_size();
        let before = self.snapshot();
        let error = self.tables.begin(&[(id, n_slots + 1)]).err();
        assert_eq!(error, Some(Error::PoolExhausted { needed: n_free + 1, free: n_free }));
        assert_eq!(self.snapshot(), before);
        let step = self.tables.begin(&[(id, n_slots)]).unwrap();
        let slots: Vec<Slot> = step.slots(id).unwrap().collect();
        assert_eq!(slots.len(), n_slots);
        step.commit();
        self.scribble(&slots);
        self.tables.free(id).unwrap();
        self.freed.push(id);
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        let n_sequences = 1 + choices.below(self.live.len().min(3));
        let first = choices.below(self.live.len());
        let chosen: Vec<usize> = (0..n_sequences).map(|i| (first + i) % self.live.len()).collect();
        let batch: Vec<(SequenceId, usize)> =
            chosen.iter().map(|&at| (self.live[at].id, choices.below(8))).collect();
        let needed_alone =
            |&(id, n): &(SequenceId, usize)| self.tables.blocks_needed(id, n).unwrap();
        let most: usize = batch.iter().map(needed_alone).sum();
        let n_free = self.tables.pool().n_free();
        let before = self.snapshot();
        let bs = self.tables.block_size();

        let begun = self.tables.begin(&batch);
        if let Some(error) = begun.as_ref().err().copied() {
            drop(begun);
            let Error::PoolExhausted { needed, free } = error else { panic!("{error}") };
            assert!(free == n_free && free < needed && needed <= most);
            assert_eq!(self.snapshot(), before);
            return;
        }
        let mut step = begun.unwrap();
        for copy in step.copies() {
            let (from, to) = (copy.from as usize * bs, copy.to as usize * bs);
            self.storage.copy_within(from..from + copy.n_slots as usize, to);
        }
        let is_dropped = choices.below(4) == 0;
        let mut written = Vec::new();
        let mut committed = Vec::new();
        for (&at, &(id, n_new)) in chosen.iter().zip(&batch) {
            let mut model = self.live[at].clone();
            assert_eq!(step.len(id), Ok(model.tokens.len()));
            assert_eq!(step.len_with_new(id), Ok(model.tokens.len() + n_new));
            // Which of the new tokens stay, and what they are.
            let stay: Vec<usize> = match choices.below(3) {
                0 => (0..n_new).filter(|_| choices.below(2) == 0).collect(),
                _ => (0..n_new).collect(),
            };
            let nodes = choices.tokens(n_new);
            let kept: Vec<u32> = stay.iter().map(|&node| nodes[node]).collect();
            model.push(&kept);
            let slots: Vec<Slot> = step.slots(id).unwrap().collect();
            for (node, slot) in slots.iter().enumerate() {
                let digest = match stay.iter().position(|&kept| kept == node) {
                    Some(i) if !is_dropped => model.digests[model.tokens.len() - kept.len() + i],
                    _ => {
                        self.n_garbage += 1;
                        self.n_garbage
                    }
                };
                self.storage[slot.block as usize * bs + slot.offset as usize] = digest;
            }
            let (is_recorded, is_first) = (choices.below(4) > 0, choices.below(2) == 0);
            if is_recorded && is_first {
                step.record(id, &nodes).unwrap();
            }
            let storage = &mut self.storage;
            for moved in step.accept(id, &stay).unwrap() {
                let index = |slot: Slot| slot.block as usize * bs + slot.offset as usize;
                storage[index(moved.to)] = storage[index(moved.from)];
            }
            if is_recorded && !is_first {
                step.record(id, &kept).unwrap();
            }
            assert_eq!(step.len_with_new(id), Ok(model.tokens.len()));
            let n_before = model.tokens.len() - kept.len();
            if is_recorded && model.key.is_some() && model.n_known == n_before {
                model.n_known = model.tokens.len();
            }
            written.extend(slots);
            committed.push((at, model));
        }
        let n_blocks = |id: SequenceId| step.table(id).unwrap().len();
        let n_more =
            chosen.iter().map(|&at| n_blocks(self.live[at].id) - before.sequences[at].1.len());
        let n_taken = step.copies().len() + n_more.sum::<usize>();
        if is_dropped {
            drop(step);
            let mut after = self.snapshot();
            // Out of the cache is what was taken, and nothing else.
            let taken: BTreeSet<BlockId> = before.free[..n_taken].iter().copied().collect();
            for (block, was) in before.cached.iter().enumerate() {
                if taken.contains(&(block as BlockId)) {
                    assert_eq!(after.cached[block], None);
                    after.cached[block] = *was;
                }
            }
            assert_eq!(after, before);
        } else {
            step.commit();
            for (at, model) in committed {
                self.live[at] = model;
            }
        }
        if batch.len() == 1 {
            assert_eq!(n_taken, most);
        }
    }

    fn scribble(&mut self, slots: &[Slot]) {
        for slot in slots {
            self.n_garbage += 1;
            self.storage[slot.block as usize * self.tables.block_size() + slot.offset as usize] =
                self.n_garbage;
        }
    }

    fn snapshot(&self) -> Snapshot {
        let blocks = 0..self.tables.pool().n_blocks() as BlockId;
        let sequence = |model: &Model| {
            let (len, table) = (self.tables.len(model.id), self.tables.table(model.id));
            (len.unwrap(), table.unwrap().to_vec())
        };
        Snapshot {
            free: self.tables.pool().free_blocks().collect(),
            sequences: self.live.iter().map(sequence).collect(),
            cached: blocks.map(|block| self.tables.cached_block(block).map(|it| it.hash)).collect(),
        }
    }

    fn check(&mut self) {
        let (tables, bs) = (&self.tables, self.tables.block_size());
        let pool = tables.pool();
        assert_eq!(tables.n_sequences(), self.live.len());

        // References and the list of the free.
        let mut n_refs = vec![0; pool.n_blocks()];
        for model in &self.live {
            for &block in tables.table(model.id).unwrap().iter().filter(|&&it| it != NULL_BLOCK) {
                n_refs[block as usize] += 1;
            }
        }
        for (block, n_refs) in n_refs.iter().enumerate() {
            assert_eq!(pool.ref_count(block as BlockId), Ok(*n_refs), "block {block}");
        }
        let free: BTreeSet<BlockId> = pool.free_blocks().collect();
        assert_eq!(free.len(), pool.free_blocks().count(), "a block is free twice");
        assert_eq!(free.len(), pool.n_free());
        assert!(free.iter().all(|&block| n_refs[block as usize] == 0));
        let n_used = n_refs.iter().filter(|&&n_refs| n_refs > 0).count();
        assert_eq!(n_used + pool.n_free(), pool.n_blocks());

        // What sequences read.
        for model in &self.live {
            let (table, len) = (tables.table(model.id).unwrap(), model.tokens.len());
            assert_eq!((tables.len(model.id), table.len()), (Ok(len), len.div_ceil(bs)));
            for (position, digest) in model.digests.iter().enumerate() {
                let block = table[position / bs];
                if block == NULL_BLOCK {
                    assert!(position < model.first_read(), "{model:?} lacks {position}");
                } else {
                    assert_eq!(self.storage[block as usize * bs + position % bs], *digest);
                }
            }
        }

        // Blocks full of known tokens can be found by what they hold and what is before them.
        for model in &self.live {
            let Some(key) = model.key else { continue };
            let mut hash = self.keys[key].root();
            let known = model.tokens[..model.n_known].chunks_exact(bs);
            for (tokens, &block) in known.zip(tables.table(model.id).unwrap()) {
                hash = BlockHash::of(&hash, tokens);
                let found = tables.cached_block(block).map(|cached| cached.hash);
                assert_eq!(found, Some(hash).filter(|_| block != NULL_BLOCK), "{model:?}");
            }
        }

        // What can be found is what its hash says, and is what it was.
        let mut n_cached = 0;
        for block in 0..pool.n_blocks() {
            let Some(cached) = tables.cached_block(block as BlockId) else { continue };
            n_cached += 1;
            assert_eq!(cached.hash, BlockHash::of(&cached.parent, cached.tokens));
            let stored = &self.storage[block * bs..][..bs];
            let first = self.contents.entry(cached.hash.0).or_insert_with(|| stored.to_vec());
            assert_eq!(first, stored, "the content of block {block} has changed");
        }
        assert_eq!(tables.n_cached_blocks(), n_cached);
    }
}
