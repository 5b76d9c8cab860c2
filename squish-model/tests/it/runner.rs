//! Sequences: whatever is done to them, they are the tokens that they should be, and what is refused changes nothing.

use std::sync::Arc;

use proptest::{prelude::*, sample::Index};
use squish_model::{
    Config, Error, KvLayout, KvOptions, KvType, LayerConfig, LoadOptions, Model, Part, Positions,
    Runner, RunnerOptions, SequenceId, StreamingSinks, Team, Wanted, Windows,
};

use crate::common::MODEL;
use crate::models::{
    VOCAB, WINDOW, assert_same, at_once, bits, bits_of, gemma, llama, load, mistral, options,
    runner, text,
};

const BLOCK: usize = 4;

const RING: Windows = Windows::Ring { sinks: None };

/// Room for little more than 100 tokens in blocks of 4, prompts in pieces of 8.
fn tight(layout: KvLayout, windows: Windows) -> RunnerOptions {
    let kv =
        KvOptions { layout, windows, n_tokens: 120, n_sequences: 4, kv_type: KvType::default() };
    RunnerOptions { kv, n_threads: 1, chunk: 8, ..RunnerOptions::default() }
}

fn blocks() -> RunnerOptions {
    tight(KvLayout::Paged { block_size: BLOCK }, Windows::Paged)
}

fn model_of(config: Config) -> Arc<Model> {
    load(config, LoadOptions::default())
}

/// The window in the second layer.
fn full_layer_first() -> Config {
    let mut config = gemma(16);
    config.layers.reverse();
    config
}

/// Two different windows, and a layer without one.
fn two_windows() -> Config {
    let mut config = llama(16);
    config.layers = [Some(5), None, Some(9)].map(|window| LayerConfig { window, rope: 0 }).to_vec();
    config
}

// What sequences are, against lists of tokens.

#[derive(Clone, Debug)]
enum Op {
    Create,
    /// Create with a prompt, one of a few, under one of two salts.
    Prompt(u64, usize, Option<u8>),
    Extend(Index, Vec<u32>),
    Batch(Vec<(Index, Vec<u32>)>),
    /// Tokens with parents, and the last node of the path that stays; without one the output is dropped.
    Tree(Index, Vec<(u32, Index)>, Option<Index>),
    Drop(Index, Vec<u32>),
    Fork(Index),
    Truncate(Index, Index),
    Free(Index),
}

fn op() -> impl Strategy<Value = Op> {
    let index = || any::<Index>();
    let token = || 0..VOCAB as u32;
    let tokens = |most: usize| prop::collection::vec(token(), 1..=most);
    let nodes = prop::collection::vec((token(), index()), 1..=7);
    prop_oneof![
        2 => Just(Op::Create),
        2 => (0..2_u64, 1..40_usize, prop::option::weighted(0.3, Just(7)))
            .prop_map(|(text, len, salt)| Op::Prompt(text, len, salt)),
        4 => (index(), tokens(20)).prop_map(|(i, tokens)| Op::Extend(i, tokens)),
        4 => prop::collection::vec((index(), tokens(6)), 1..5).prop_map(Op::Batch),
        4 => (index(), nodes, prop::option::weighted(0.8, index()))
            .prop_map(|(i, nodes, last)| Op::Tree(i, nodes, last)),
        1 => (index(), tokens(9)).prop_map(|(i, tokens)| Op::Drop(i, tokens)),
        2 => index().prop_map(Op::Fork),
        2 => (index(), index()).prop_map(|(i, len)| Op::Truncate(i, len)),
        1 => index().prop_map(Op::Free),
    ]
}

/// A runner, and what its sequences should be.
struct Checked {
    model: Arc<Model>,
    runner: Runner,
    live: Vec<(SequenceId, Vec<u32>)>,
    freed: Vec<SequenceId>,
}

impl Checked {
    fn new(model: &Arc<Model>, options: &RunnerOptions) -> Self {
        let runner = runner(model, options);
        Self { model: Arc::clone(model), runner, live: Vec::new(), freed: Vec::new() }
    }

    fn pick(&self, index: Index) -> Option<usize> {
        (!self.live.is_empty()).then(|| index.index(self.live.len()))
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create => {
                let id = self.runner.create().unwrap();
                self.live.push((id, Vec::new()));
            }
            Op::Prompt(seed, len, salt) => {
                let prompt = text(*len, VOCAB, *seed);
                let salt = salt.as_ref().map(std::slice::from_ref);
                let (id, n_cached) = self.runner.create_with_prefix(&prompt, salt).unwrap();
                assert!(n_cached < prompt.len(), "{n_cached} of {} tokens", prompt.len());
                self.live.push((id, prompt[..n_cached].to_vec()));
                self.extend(self.live.len() - 1, &prompt[n_cached..]);
            }
            Op::Extend(index, tokens) => {
                if let Some(i) = self.pick(*index) {
                    self.extend(i, tokens);
                }
            }
            Op::Batch(batch) => self.batch(batch),
            Op::Tree(index, nodes, last) => {
                if let Some(i) = self.pick(*index) {
                    self.tree(i, nodes, *last);
                }
            }
            Op::Drop(index, tokens) => {
                if let Some(i) = self.pick(*index) {
                    let part = Part::new(self.live[i].0, tokens);
                    has_room(&self.runner.forward(&[part]).map(drop));
                }
            }
            Op::Fork(index) => {
                let Some(i) = self.pick(*index) else { return };
                let (id, tokens) = self.live[i].clone();
                match self.runner.fork(id) {
                    Ok(id) => self.live.push((id, tokens)),
                    Err(error) => assert!(matches!(error, Error::NoFork), "{error}"),
                }
            }
            Op::Truncate(index, to) => {
                let Some(i) = self.pick(*index) else { return };
                let (id, tokens) = &mut self.live[i];
                let len = to.index(tokens.len() + 1);
                match self.runner.truncate(*id, len) {
                    Ok(()) => tokens.truncate(len),
                    Err(error) => assert!(
                        matches!(error, Error::Kv(squish_kv::Error::LeftWindow { .. })),
                        "{error}"
                    ),
                }
            }
            Op::Free(index) => {
                let Some(i) = self.pick(*index) else { return };
                let (id, _) = self.live.swap_remove(i);
                self.runner.free(id).unwrap();
                self.freed.push(id);
            }
        }
    }

    /// Pieces that were computed before there was no more room stay.
    fn extend(&mut self, i: usize, tokens: &[u32]) {
        let (id, before) = &mut self.live[i];
        if has_room(&self.runner.extend(*id, tokens).map(drop)) {
            before.extend(tokens);
        } else {
            let n_new = self.runner.len(*id).unwrap() - before.len();
            assert!(n_new < tokens.len() && n_new.is_multiple_of(8), "{n_new} tokens");
            before.extend(&tokens[..n_new]);
        }
    }

    fn batch(&mut self, batch: &[(Index, Vec<u32>)]) {
        let mut chosen: Vec<(usize, &[u32])> = Vec::new();
        for (index, tokens) in batch {
            if let Some(i) = self.pick(*index)
                && chosen.iter().all(|(other, _)| *other != i)
            {
                chosen.push((i, tokens));
            }
        }
        if chosen.is_empty() {
            return;
        }
        let parts: Vec<_> =
            chosen.iter().map(|&(i, tokens)| Part::new(self.live[i].0, tokens)).collect();
        let result = self.runner.forward(&parts).map(|mut output| output.commit().unwrap());
        if has_room(&result) {
            for (i, tokens) in chosen {
                self.live[i].1.extend(tokens);
            }
        }
    }

    fn tree(&mut self, i: usize, nodes: &[(u32, Index)], last: Option<Index>) {
        let tokens: Vec<u32> = nodes.iter().map(|(token, _)| *token).collect();
        let parent = |(node, (_, parent)): (usize, &(u32, Index))| {
            let parent = parent.index(node + 1);
            (parent < node).then_some(parent as u32)
        };
        let parents: Vec<Option<u32>> = nodes.iter().enumerate().map(parent).collect();
        let mut path = Vec::new();
        let mut at = last.map(|last| last.index(nodes.len()));
        while let Some(node) = at {
            path.insert(0, node);
            at = parents[node].map(|parent| parent as usize);
        }
        let result = self.runner.forward(&[Part::tree(self.live[i].0, &tokens, &parents)]);
        let result = result.map(|mut output| {
            if last.is_some() {
                output.accept(0, &path).unwrap();
                output.commit().unwrap();
            }
        });
        if has_room(&result) {
            self.live[i].1.extend(path.into_iter().map(|node| tokens[node]));
        }
    }

    fn check_lens(&self) {
        for (id, tokens) in &self.live {
            assert_eq!(self.runner.len(*id).unwrap(), tokens.len());
        }
        for id in &self.freed {
            assert!(self.runner.len(*id).is_err(), "{id:?} was freed");
        }
    }

    /// The logits behind one more token are those of all tokens in another runner. Sequences are freed one by one, so that there is room in
    /// the end.
    fn check_logits(mut self) {
        let mut n_left = self.live.len();
        while n_left > 0 {
            self.live.retain(|(id, tokens)| {
                let mut all = tokens.clone();
                all.push(3);
                match self.runner.forward(&[Part::new(*id, &all[tokens.len()..])]) {
                    Err(error) => {
                        assert!(is_no_room(&error), "{error}");
                        return true;
                    }
                    Ok(mut output) => {
                        let got = bits_of(output.logits().unwrap());
                        let want = at_once(&self.model, &options(KvType::Bf16), &all);
                        let what = format!("behind {tokens:?}");
                        assert_same(&what, &got, &want[tokens.len()..]);
                    }
                }
                self.runner.free(*id).unwrap();
                false
            });
            if self.live.len() == n_left {
                // They fill the caches, so that there is no room for a token more.
                let (id, tokens) = self.live.pop().unwrap();
                assert!(n_left > 1 || tokens.len() > 110, "no room behind {tokens:?}");
                self.runner.free(id).unwrap();
            }
            n_left = self.live.len();
        }
    }
}

/// Whether a pass was computed; if it was not, there was no room.
fn has_room(result: &Result<(), Error>) -> bool {
    if let Err(error) = result {
        assert!(is_no_room(error), "{error}");
    }
    result.is_ok()
}

fn is_no_room(error: &Error) -> bool {
    matches!(error, Error::Kv(squish_kv::Error::PoolExhausted { .. }))
}

fn check_ops(model: &Arc<Model>, options: &RunnerOptions, ops: &[Op]) {
    let mut checked = Checked::new(model, options);
    for op in ops {
        checked.apply(op);
        checked.check_lens();
    }
    checked.check_logits();
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sequences_in_blocks_are_their_tokens(ops in ops()) {
        check_ops(&model_of(llama(16)), &blocks(), &ops);
    }

    #[test]
    fn sequences_in_pieces_are_their_tokens(ops in ops()) {
        check_ops(&model_of(llama(16)), &tight(KvLayout::Contiguous, Windows::Paged), &ops);
    }

    #[test]
    fn sequences_with_windows_in_blocks_are_their_tokens(ops in ops()) {
        for config in [gemma(16), full_layer_first(), two_windows()] {
            check_ops(&model_of(config), &blocks(), &ops);
        }
    }

    #[test]
    fn sequences_with_windows_in_rings_are_their_tokens(ops in ops()) {
        for config in [gemma(16), full_layer_first(), two_windows(), mistral(16)] {
            check_ops(&model_of(config), &tight(KvLayout::default(), RING), &ops);
        }
    }
}

// What is refused.

/// A runner with two sequences of 10 and 20 tokens, and the bits of their next logits.
struct Pair {
    runner: Runner,
    ids: [SequenceId; 2],
    next: Vec<Vec<u32>>,
}

impl Pair {
    fn new(config: Config, options: &RunnerOptions) -> Self {
        let mut runner = runner(&model_of(config), options);
        let ids = [(); 2].map(|()| runner.create().unwrap());
        runner.extend(ids[0], &text(10, VOCAB, 1)).unwrap();
        runner.extend(ids[1], &text(20, VOCAB, 2)).unwrap();
        let next = next(&mut runner, ids);
        Self { runner, ids, next }
    }

    /// What is said about `parts`, which are refused and change nothing.
    fn refusal(&mut self, parts: &[Part<'_>]) -> String {
        let Err(error) = self.runner.forward(parts) else { panic!("{parts:?} are computed") };
        self.check();
        error.to_string()
    }

    fn check(&mut self) {
        assert_eq!(self.ids.map(|id| self.runner.len(id).unwrap()), [10, 20]);
        assert_same("behind a refusal", &next(&mut self.runner, self.ids), &self.next);
    }
}

/// The logits behind one more token of each sequence, which is not kept.
fn next(runner: &mut Runner, ids: [SequenceId; 2]) -> Vec<Vec<u32>> {
    let mut output = runner.forward(&ids.map(|id| Part::new(id, &[9]))).unwrap();
    bits_of(output.logits().unwrap())
}

#[test]
fn sequences_that_are_not_there_are_refused() {
    let mut pair = Pair::new(llama(16), &blocks());
    let (stale, kept) = (pair.runner.create().unwrap(), pair.ids[0]);
    pair.runner.free(stale).unwrap();
    // Its place has a new owner.
    let owner = pair.runner.create().unwrap();
    assert_ne!(stale, owner);
    let what = "the sequence is not there";
    assert_eq!(pair.refusal(&[Part::new(kept, &[1]), Part::new(stale, &[1])]), what);
    let runner = &mut pair.runner;
    assert_eq!(runner.extend(stale, &[1]).unwrap_err().to_string(), what);
    assert_eq!(runner.fork(stale).unwrap_err().to_string(), what);
    assert_eq!(runner.truncate(stale, 0).unwrap_err().to_string(), what);
    assert_eq!(runner.free(stale).unwrap_err().to_string(), what);
    assert_eq!(runner.len(stale).unwrap_err().to_string(), what);
    assert_eq!(runner.len(owner).unwrap(), 0);
    pair.check();
}

#[test]
fn parts_that_make_no_sense_are_refused() {
    let mut pair = Pair::new(llama(16), &blocks());
    let [a, b] = pair.ids;
    let good = Part::new(b, &[1, 2]);
    for (part, what) in [
        (Part::new(a, &[]), "0 tokens, expected at least 1"),
        (Part::new(a, &[5, 101]), "token 101 at index 1 is outside the vocabulary of 101"),
        (Part::new(b, &[5]), "the sequence is named by two parts"),
        (Part::tree(a, &[1, 2, 3], &[None, Some(0)]), "2 parents for 3 tokens"),
        (
            Part::tree(a, &[1, 2], &[None, Some(1)]),
            "node 1 of the tree has parent 1, expected a node before it",
        ),
        (
            Part::tree(a, &[1, 2, 3], &[Some(7), None, None]),
            "node 0 of the tree has parent 7, expected a node before it",
        ),
    ] {
        assert_eq!(pair.refusal(&[good, part]), what);
        if !what.contains("two parts") {
            assert_eq!(pair.refusal(&[part, good]), what);
        }
    }
    assert_eq!(pair.refusal(&[]), "0 tokens, expected at least 1");
    assert_eq!(
        pair.runner.extend(a, &[]).unwrap_err().to_string(),
        "0 tokens, expected at least 1"
    );
    pair.check();
}

#[test]
fn more_tokens_than_the_model_has_positions_are_refused() {
    let mut config = llama(16);
    config.max_position_embeddings = 24;
    let mut pair = Pair::new(config, &blocks());
    let [a, b] = pair.ids;
    let what = "25 tokens exceed the model's context of 24";
    assert_eq!(pair.refusal(&[Part::new(a, &[1]), Part::new(b, &[1; 5])]), what);
    pair.runner.extend(b, &[1; 4]).unwrap();
    assert_eq!(pair.runner.extend(b, &[1]).unwrap_err().to_string(), what);
    // Of pieces, those before the refusal stay.
    let refused = pair.runner.extend(a, &[1; 20]).unwrap_err().to_string();
    assert_eq!(refused, "26 tokens exceed the model's context of 24");
    assert_eq!(pair.runner.len(a).unwrap(), 18);
}

#[test]
fn a_batch_without_room_is_refused_as_a_whole() {
    for (config, options) in [
        (llama(16), blocks()),
        (gemma(16), blocks()),
        (full_layer_first(), blocks()),
        (llama(16), tight(KvLayout::Contiguous, Windows::Paged)),
    ] {
        let mut pair = Pair::new(config, &options);
        let [a, b] = pair.ids;
        let long = text(200, VOCAB, 3);
        let what = pair.refusal(&[Part::new(a, &[1, 2, 3, 4, 5]), Part::new(b, &long)]);
        assert!(what.ends_with(" are free") && what.contains(" blocks are needed, "), "{what}");
        // What there is room for is computed afterwards.
        pair.runner.extend(b, &long[..9]).unwrap();
    }
    let mut pair = Pair::new(llama(16), &blocks());
    let part = Part::new(pair.ids[0], &[1; 130]);
    // 34 blocks of 4, of which 3 and 5 are taken; the last of the 3 has room for 2.
    assert_eq!(pair.refusal(&[part]), "32 blocks are needed, 26 are free");
}

#[test]
fn sizes_of_zero_are_refused() {
    let model = model_of(llama(16));
    let refusal = |options: RunnerOptions| Runner::new(Arc::clone(&model), &options).unwrap_err();
    let chunk = refusal(RunnerOptions { chunk: 0, ..blocks() });
    assert_eq!(chunk.to_string(), "`chunk` is 0, expected at least 1");
    let block = refusal(tight(KvLayout::Paged { block_size: 0 }, Windows::Paged));
    assert_eq!(block.to_string(), "`block_size` is zero");
    let mut options = tight(KvLayout::Contiguous, Windows::Paged);
    options.kv.n_sequences = 0;
    assert_eq!(refusal(options).to_string(), "`n_blocks` is zero");
}

#[test]
fn rings_are_not_forked() {
    for config in [gemma(16), full_layer_first(), mistral(16)] {
        let mut pair = Pair::new(config, &tight(KvLayout::default(), RING));
        assert_eq!(
            pair.runner.fork(pair.ids[0]).unwrap_err().to_string(),
            "sequences whose windows are rings cannot be forked"
        );
        pair.check();
    }
}

#[test]
fn steps_of_rings_have_64_parts_at_most() {
    let mut pair = Pair::new(mistral(16), &tight(KvLayout::default(), RING));
    let ids: Vec<_> = (0..65).map(|_| pair.runner.create().unwrap()).collect();
    let parts: Vec<_> = ids.iter().map(|&id| Part::new(id, &[1])).collect();
    pair.runner.forward(&parts[..64]).unwrap().commit().unwrap();
    let what = "65 parts in a step of rings, expected at most 64";
    assert_eq!(pair.refusal(&parts), what);
}

/// Attention takes 64 at once.
#[test]
fn steps_of_blocks_have_any_number_of_parts() {
    let model = model_of(gemma(16));
    let kv = KvOptions { n_tokens: 300, n_sequences: 150, ..KvOptions::default() };
    let mut runner = runner(&model, &RunnerOptions { kv, ..blocks() });
    let tokens = text(150, VOCAB, 1);
    let ids: Vec<_> = (0..150).map(|_| runner.create().unwrap()).collect();
    let part = |(i, &id): (usize, &SequenceId)| {
        // One of them longer than the others.
        Part::new(id, &tokens[i..i + 1 + usize::from(i == 70)])
    };
    let parts: Vec<_> = ids.iter().enumerate().map(part).collect();
    let got = bits_of(runner.forward(&parts).unwrap().logits().unwrap());
    for (part, got) in parts.iter().zip(got) {
        let want = at_once(&model, &options(KvType::Bf16), part.tokens);
        assert_same("alone", &[got], &want[want.len() - 1..]);
    }
}

#[test]
fn paths_that_are_none_are_refused() {
    for options in [blocks(), tight(KvLayout::default(), RING)] {
        let mut pair = Pair::new(gemma(16), &options);
        let id = pair.ids[0];
        let tree = Part::tree(id, &[1, 2, 3], &[None, None, Some(0)]);
        for (path, what) in [
            (&[5][..], "node 5 stands at 0 of a path, expected one from 0 on of 3"),
            (&[2, 0], "node 0 stands at 1 of a path, expected one from 3 on of 3"),
        ] {
            let mut output = pair.runner.forward(&[tree]).unwrap();
            assert_eq!(output.accept(0, path).unwrap_err().to_string(), what);
            drop(output);
            pair.check();
        }
    }
}

#[test]
fn a_cut_that_one_layer_cannot_make_is_made_in_none() {
    for config in [gemma(16), full_layer_first(), two_windows()] {
        for options in [blocks(), tight(KvLayout::default(), RING)] {
            let mut pair = Pair::new(config.clone(), &options);
            let id = pair.ids[1];
            let what = pair.runner.truncate(id, 21).unwrap_err().to_string();
            assert_eq!(what, "a sequence of 20 tokens cannot be cut to 21");
            pair.check();
            let what = pair.runner.truncate(id, 13).unwrap_err().to_string();
            assert!(what.starts_with("a cut to 13 tokens needs those from "), "{what}");
            pair.check();
            // A ring holds one token more than the next one sees; blocks may.
            if pair.runner.truncate(id, 19).is_ok() {
                pair.runner.extend(id, &text(20, VOCAB, 2)[19..]).unwrap();
            } else {
                assert_eq!(options.kv.windows, Windows::Paged);
            }
            pair.check();
        }
    }
}

// Prompts that are found.

/// A prompt that is computed from what is cached of it, and how much that was.
fn prompt(runner: &mut Runner, tokens: &[u32], salt: Option<&[u8]>) -> (usize, Vec<u32>) {
    let (id, n_cached) = runner.create_with_prefix(tokens, salt).unwrap();
    assert_eq!(runner.len(id).unwrap(), n_cached);
    let logits = bits(runner.extend(id, &tokens[n_cached..]).unwrap());
    runner.free(id).unwrap();
    (n_cached, logits)
}

#[test]
fn prompts_are_found_by_whole_blocks_and_give_the_same_logits() {
    for config in [llama(16), gemma(16), full_layer_first(), mistral(16), two_windows()] {
        let model = model_of(config);
        let mut runner = runner(&model, &blocks());
        let tokens = text(43, VOCAB, 1);
        let want = at_once(&model, &options(KvType::Bf16), &tokens);
        let last = |len: usize| want[len - 1].clone();
        let mut check = |len: usize, salt: Option<&[u8]>, n_cached: usize| {
            let got = prompt(&mut runner, &tokens[..len], salt);
            assert_eq!(got.0, n_cached, "tokens cached of {len}, salt {salt:?}");
            assert_eq!(got.1, last(len), "behind {len} tokens, of which {n_cached} are cached");
        };
        check(43, None, 0);
        check(43, None, 40);
        // The last token is computed, also if it ends a block.
        check(41, None, 40);
        check(40, None, 36);
        // Others share nothing.
        check(43, Some(b"a"), 0);
        check(43, Some(b"b"), 0);
        check(43, Some(b"a"), 40);
    }
}

#[test]
fn prompts_part_where_their_tokens_do() {
    let model = model_of(llama(16));
    let mut runner = runner(&model, &blocks());
    let a = text(30, VOCAB, 1);
    let b = [&a[..18], &text(12, VOCAB, 2)].concat();
    for (tokens, n_cached) in [(&a, 0), (&b, 16), (&b, 28), (&a, 28)] {
        let want = at_once(&model, &options(KvType::Bf16), tokens);
        let got = prompt(&mut runner, tokens, None);
        assert_eq!(got, (n_cached, want[29].clone()));
    }
}

#[test]
fn an_accepted_path_is_found_once_it_is_recorded() {
    let model = model_of(gemma(16));
    let mut runner = runner(&model, &blocks());
    let tokens = text(20, VOCAB, 1);
    let (id, _) = runner.create_with_prefix(&tokens[..12], None).unwrap();
    runner.extend(id, &tokens[..12]).unwrap();
    let drafts = [tokens[12], 0, tokens[13], tokens[14], tokens[15], 0];
    let parents = [None, None, Some(0), Some(2), Some(3), Some(1)];
    let path = [0, 2, 3, 4];
    for is_recorded in [false, true] {
        let fork = runner.fork(id).unwrap();
        let mut output = runner.forward(&[Part::tree(fork, &drafts, &parents)]).unwrap();
        output.accept(0, &path).unwrap();
        if is_recorded {
            let what = output.record(0, &tokens[12..14]).unwrap_err().to_string();
            assert_eq!(what, "2 tokens were given for the 4 of the step");
            output.record(0, &tokens[12..16]).unwrap();
        }
        output.commit().unwrap();
        drop(output);
        runner.free(fork).unwrap();
        let want = at_once(&model, &options(KvType::Bf16), &tokens);
        let n_cached = if is_recorded { 16 } else { 12 };
        let (found, got) = runner.create_with_prefix(&tokens, None).unwrap();
        assert_eq!(got, n_cached, "recorded: {is_recorded}");
        // Dropped, so that the next one finds nothing of it.
        let mut output = runner.forward(&[Part::new(found, &tokens[n_cached..])]).unwrap();
        assert_eq!(bits_of(output.logits().unwrap()), want[19..]);
        drop(output);
        runner.free(found).unwrap();
    }
}

#[test]
fn rings_find_nothing_and_compute_the_same() {
    let model = model_of(gemma(16));
    let mut runner = runner(&model, &tight(KvLayout::Paged { block_size: BLOCK }, RING));
    let tokens = text(30, VOCAB, 1);
    let want = at_once(&model, &options(KvType::Bf16), &tokens);
    for _ in 0..2 {
        assert_eq!(prompt(&mut runner, &tokens, None), (0, want[29].clone()));
    }
}

// Room.

#[test]
fn windows_have_room_for_any_number_of_tokens() {
    let model = model_of(mistral(16));
    let tokens = [text(700, VOCAB, 1), text(700, VOCAB, 2)];
    let big = KvOptions { n_tokens: 1000, ..KvOptions::default() };
    let big = RunnerOptions { kv: big, n_threads: 1, chunk: 1000, ..RunnerOptions::default() };
    let want = [0, 1].map(|i| at_once(&model, &big, &tokens[i])[699].clone());
    let sinks = Windows::Ring { sinks: Some(StreamingSinks { n_sinks: 0, ..Default::default() }) };
    for windows in [Windows::Paged, RING, sinks] {
        // Four times a window and a piece of a prompt are fewer tokens.
        let mut runner = runner(&model, &tight(KvLayout::Paged { block_size: BLOCK }, windows));
        let ids = [(); 4].map(|()| runner.create().unwrap());
        for (i, id) in ids.into_iter().enumerate() {
            runner.extend(id, &tokens[i % 2][..300]).unwrap();
        }
        for at in (300..699).step_by(7) {
            let part = |(i, &id): (usize, &SequenceId)| {
                Part::new(id, &tokens[i % 2][at..at + 7]).with_logits(Wanted::None)
            };
            let parts: Vec<_> = ids.iter().enumerate().map(part).collect();
            runner.forward(&parts).unwrap().commit().unwrap();
        }
        for (i, id) in ids.into_iter().enumerate() {
            assert_eq!(runner.len(id).unwrap(), 699);
            let got = bits(runner.extend(id, &tokens[i % 2][699..]).unwrap());
            assert_eq!(got, want[i % 2], "{windows:?}, sequence {i}");
        }
    }
}

#[test]
fn layers_without_a_window_have_room_for_as_many_tokens_as_was_said() {
    for (config, layout) in [
        (llama(16), KvLayout::Paged { block_size: BLOCK }),
        (gemma(16), KvLayout::Paged { block_size: 1 }),
        (llama(16), KvLayout::Paged { block_size: 64 }),
        (full_layer_first(), KvLayout::Contiguous),
    ] {
        let mut runner = runner(&model_of(config), &tight(layout, Windows::Paged));
        // Whoever has how many of them; in pieces of the same length each has a share.
        let lens = if layout == KvLayout::Contiguous { [30; 4] } else { [1, 3, 50, 66] };
        for len in lens {
            let id = runner.create().unwrap();
            runner.extend(id, &text(len, VOCAB, 1)).unwrap();
        }
        let id = runner.create().unwrap();
        let result = runner.extend(id, &text(120, VOCAB, 1)).map(drop);
        assert!(is_no_room(&result.unwrap_err()));
    }
}

#[test]
fn room_of_sequences_that_ended_is_had_again() {
    for (config, windows) in
        [(llama(16), Windows::Paged), (gemma(16), Windows::Paged), (gemma(16), RING)]
    {
        let model = model_of(config);
        let mut runner = runner(&model, &tight(KvLayout::Paged { block_size: BLOCK }, windows));
        let tokens = text(2 * WINDOW + 25, VOCAB, 1);
        let want = at_once(&model, &options(KvType::Bf16), &tokens);
        for _ in 0..50 {
            let ids = [(); 2].map(|()| runner.create().unwrap());
            for id in ids {
                assert_eq!(bits(runner.extend(id, &tokens).unwrap()), want[tokens.len() - 1]);
            }
            for id in ids {
                runner.free(id).unwrap();
            }
        }
    }
}

/// With one layer, keys and values depend on the token alone and attention on distances: what a row sees through a window with sinks is what
/// the last token of a text sees that has nothing but the window's tokens.
#[test]
fn sinks_are_as_far_away_as_in_a_text_of_the_window_s_length() {
    let (n_sinks, len) = (3, 60);
    let mut config = mistral(16);
    config.layers.truncate(1);
    let model = load(config, LoadOptions::default());
    let windows = |positions| {
        let windows = Windows::Ring { sinks: Some(StreamingSinks { n_sinks, positions }) };
        let kv = KvOptions { kv_type: KvType::F32, windows, ..KvOptions::default() };
        RunnerOptions { kv, ..RunnerOptions::default() }
    };
    let tokens = text(len, VOCAB, 4);
    let far = |row: &[f32], want: &[f32]| {
        row.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let [mut relative, mut absolute] =
        [Positions::CacheRelative, Positions::Absolute].map(|p| runner(&model, &windows(p)));
    let [in_relative, in_absolute] = [relative.create().unwrap(), absolute.create().unwrap()];
    for end in 1..=len {
        let mut seen = tokens[..end].to_vec();
        if end > WINDOW {
            seen.drain(n_sinks..n_sinks + end - WINDOW);
        }
        let mut fresh = runner(&model, &windows(Positions::Absolute));
        let id = fresh.create().unwrap();
        let want = fresh.extend(id, &seen).unwrap();
        let row = relative.extend(in_relative, &tokens[end - 1..end]).unwrap();
        assert!(far(row, want) < 2e-4, "{end} tokens: {} apart", far(row, want));
        let row = absolute.extend(in_absolute, &tokens[end - 1..end]).unwrap();
        // The test can tell them apart.
        assert!(end < WINDOW + 8 || far(row, want) > 2e-3, "{end} tokens: {}", far(row, want));
    }
}

#[test]
fn what_a_runner_overrides_is_what_its_model_could_have_been_loaded_with() {
    let base = llama(16);
    let mut other = base.clone();
    other.max_position_embeddings = 90;
    other.layers[0].window = Some(9);
    other.ropes[0].base = 1234.0;
    other.ropes.push(other.ropes[0].clone());
    other.ropes[1].base = 77.0;
    other.layers[1].rope = 1;
    let tokens = text(60, VOCAB, 5);
    let want =
        at_once(&load(other.clone(), LoadOptions::default()), &options(KvType::Bf16), &tokens);
    let model = load(base, LoadOptions::default());
    let team = || Arc::new(Team::new(1).unwrap());
    let with =
        |config| Runner::with_config(Arc::clone(&model), config, team(), &options(KvType::Bf16));
    let mut runner = with(other.clone()).unwrap();
    let id = runner.create().unwrap();
    assert_eq!(bits(runner.extend(id, &tokens).unwrap()), want[59]);
    assert_ne!(at_once(&model, &options(KvType::Bf16), &tokens)[59], want[59]);
    let error = runner.extend(id, &tokens).unwrap_err();
    assert_eq!(error.to_string(), "120 tokens exceed the model's context of 90");

    let refused = |config: Config| with(config).unwrap_err();
    let mut elsewhere = other.clone();
    elsewhere.rms_norm_eps = 1.0;
    assert!(matches!(refused(elsewhere), Error::Override));
    let mut fewer = other.clone();
    fewer.layers.truncate(1);
    assert!(matches!(refused(fewer), Error::Override));
    other.layers[0].window = Some(0);
    assert!(matches!(refused(other), Error::ConfigValue { field: "sliding_window", .. }));
}

#[test]
fn an_output_is_committed_once() {
    let mut runner = runner(&MODEL, &options(KvType::Bf16));
    let id = runner.create().unwrap();
    let mut output = runner.forward(&[Part::new(id, &[1, 2])]).unwrap();
    output.commit().unwrap();
    assert!(matches!(output.accept(0, &[0]), Err(Error::Committed)));
    assert!(matches!(output.record(0, &[1, 2]), Err(Error::Committed)));
    assert!(matches!(output.commit(), Err(Error::Committed)));
    assert_eq!(output.logits().unwrap().nrows(), 1);
    drop(output);
    assert_eq!(runner.len(id).unwrap(), 2);
}
