//! Tables of blocks: what a token and a prompt cost in accounting. One thread.

use sha2::{Digest, Sha256};
use squish_bench::{Checked, Row, Suite, Target, Unchecked, black_box};
use squish_kv::{BlockTables, PrefixKey, Retention, Salt, Scope, SequenceId};

const BLOCK: usize = 16;

/// The blocks of a prompt of a few pages.
const N_BLOCKS: usize = 128;

static APPEND: Row = Row {
    id: "kv/append_accounting",
    module: "BlockTables",
    operation: "begin(), slots(), commit() of one token",
    shape: "1",
    note: "`indexed`: its id is recorded and its block hashed when full. Blocks of 16, the mean over 4096 tokens",
    ..Row::LLM
};

static APPEND_BATCH: Row = Row {
    operation: "begin(), slots(), commit() of one token of each of 64 sequences",
    shape: "64",
    note: "",
    ..APPEND
};

static LOOKUP: Row = Row {
    id: "kv/prefix_lookup",
    module: "BlockTables",
    operation: "cached_len() of 128 cached blocks of 16",
    shape: "128x16",
    targets: &[Target::AtMostTimesProbe { probe: "sha256", times: 1.5 }],
    note: "the probe is the chain of SHA-256 alone; at most 150 ns a block are wanted",
    ..Row::LLM
};

fn main() {
    let mut suite = Suite::new();
    suite.row(&APPEND, append);
    suite.row(&APPEND_BATCH, append_batch);
    suite.row(&LOOKUP, lookup);
    suite.finish();
}

fn key() -> PrefixKey {
    Scope { model: b"model", adapter: None, layer_group: 0, salt: Salt::Tenant(b"tenant") }.key()
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 15).collect()
}

/// Tables in which these tokens are cached, and held by nobody.
fn cached(tokens: &[u32]) -> BlockTables {
    let mut tables = BlockTables::new(4096, BLOCK).expect("few blocks");
    tables.reserve(4, tokens.len());
    let (id, _) = tables.create_with_prefix(&key(), tokens, Retention::All).expect("a sequence");
    let mut step = tables.begin(&[(id, tokens.len())]).expect("blocks enough");
    step.record(id, tokens).expect("all of them");
    step.commit();
    tables.free(id).expect("alive");
    tables
}

/// Tokens of a sequence before another one takes its place.
const LONG: usize = 4096;

/// Sequences that grow by a token a step, and begin anew when they are long.
struct Growing {
    tables: BlockTables,
    batch: Vec<(SequenceId, usize)>,
    key: Option<PrefixKey>,
    token: u32,
}

impl Growing {
    fn new(n_sequences: usize, key: Option<PrefixKey>) -> Self {
        let n_blocks = n_sequences * LONG / BLOCK;
        let mut tables = BlockTables::new(n_blocks, BLOCK).expect("few blocks");
        tables.reserve(n_sequences, LONG);
        let mut growing = Self { tables, batch: Vec::new(), key, token: 0 };
        growing.batch = (0..n_sequences).map(|_| (growing.create(), 1)).collect();
        growing
    }

    fn create(&mut self) -> SequenceId {
        match &self.key {
            None => self.tables.create(Retention::All).expect("a sequence"),
            Some(key) => {
                self.tables.create_with_prefix(key, &[], Retention::All).expect("a sequence").0
            }
        }
    }

    /// One step; returns something of the slots.
    fn step(&mut self) -> u32 {
        let mut step = self.tables.begin(black_box(&self.batch)).expect("blocks enough");
        let mut sum = 0;
        for &(id, _) in &self.batch {
            for slot in step.slots(id).expect("in the batch") {
                sum += slot.block + slot.offset;
            }
            if self.key.is_some() {
                self.token = self.token.wrapping_add(1);
                step.record(id, &[self.token]).expect("one token");
            }
        }
        step.commit();
        if self.tables.len(self.batch[0].0).expect("alive") == LONG {
            for at in 0..self.batch.len() {
                self.tables.free(self.batch[at].0).expect("alive");
                self.batch[at].0 = self.create();
            }
        }
        sum
    }

    fn check(&mut self) {
        for at in 1..=2 * LONG + 40 {
            self.step();
            let table = self.tables.table(self.batch[0].0).expect("alive");
            assert_eq!(table.len(), (at % LONG).div_ceil(BLOCK));
        }
        assert_eq!(self.tables.n_cached_blocks() > 0, self.key.is_some());
    }
}

fn append(row: Unchecked<'_>) -> Checked<'_> {
    let (mut plain, mut indexed) = (Growing::new(1, None), Growing::new(1, Some(key())));
    row.check(|| {
        plain.check();
        indexed.check();
    })
    .ours(|bencher| bencher.iter(|| plain.step()))
    .variant("indexed", |bencher| bencher.iter(|| indexed.step()))
}

fn append_batch(row: Unchecked<'_>) -> Checked<'_> {
    let (mut plain, mut indexed) = (Growing::new(64, None), Growing::new(64, Some(key())));
    row.check(|| {
        plain.check();
        indexed.check();
    })
    .ours(|bencher| bencher.iter(|| plain.step()))
    .variant("indexed", |bencher| bencher.iter(|| indexed.step()))
}

fn lookup(row: Unchecked<'_>) -> Checked<'_> {
    let (prompt, key) = (tokens(N_BLOCKS * BLOCK + 1), key());
    let tables = cached(&prompt);
    let hash_all = || {
        let mut parent = [0; 32];
        for tokens in prompt.as_chunks::<BLOCK>().0 {
            let mut hasher = Sha256::new();
            hasher.update(b"squish-kv/1");
            hasher.update(parent);
            hasher.update(bytemuck::cast_slice(tokens));
            parent = hasher.finalize().into();
        }
        parent
    };
    row.check(|| {
        assert_eq!(tables.cached_len(&key, &prompt, Retention::All), N_BLOCKS * BLOCK);
        assert_ne!(hash_all(), [0; 32]);
    })
    .ours_and_probe(
        "sha256",
        (4 * N_BLOCKS * BLOCK) as u64,
        || tables.cached_len(black_box(&key), black_box(&prompt), Retention::All),
        hash_all,
    )
}
