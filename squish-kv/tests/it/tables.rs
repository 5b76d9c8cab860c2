//! Sequences: create, fork, truncate, free, windows; and what is refused.

use std::num::NonZeroUsize;

use squish_bench::alloc::count_allocations;
use squish_kv::{
    BlockId, BlockTables, Error, NULL_BLOCK, PrefixKey, Retention, Salt, Scope, SequenceId,
};

pub(crate) fn key() -> PrefixKey {
    Scope { model: b"model", adapter: None, layer_group: 0, salt: Salt::Shared }.key()
}

pub(crate) fn window(n: usize) -> Retention {
    Retention::Window(NonZeroUsize::new(n).unwrap())
}

/// Appends tokens that are known.
pub(crate) fn append(tables: &mut BlockTables, id: SequenceId, tokens: &[u32]) {
    let mut step = tables.begin(&[(id, tokens.len())]).unwrap();
    step.record(id, tokens).unwrap();
    step.commit();
}

/// A sequence of these tokens, whatever of them is cached.
pub(crate) fn prompt(tables: &mut BlockTables, tokens: &[u32]) -> SequenceId {
    let (id, n_cached) = tables.create_with_prefix(&key(), tokens, Retention::All).unwrap();
    append(tables, id, &tokens[n_cached..]);
    id
}

fn grow(tables: &mut BlockTables, id: SequenceId, n: usize) {
    tables.begin(&[(id, n)]).unwrap().commit();
}

fn free_blocks(tables: &BlockTables) -> Vec<BlockId> {
    tables.pool().free_blocks().collect()
}

#[test]
fn a_table_grows_by_a_block_when_the_last_one_is_full() {
    for block_size in [1, 2, 3, 16] {
        let mut tables = BlockTables::new(8, block_size).unwrap();
        let id = tables.create(Retention::All).unwrap();
        for len in 0..=8 * block_size {
            let table: Vec<BlockId> = (0..len.div_ceil(block_size) as BlockId).collect();
            assert_eq!((tables.len(id), tables.table(id)), (Ok(len), Ok(&table[..])));
            if len < 8 * block_size {
                assert_eq!(tables.blocks_needed(id, 1), Ok(usize::from(len % block_size == 0)));
                grow(&mut tables, id, 1);
            }
        }
        let refused = tables.begin(&[(id, 1)]).err();
        assert_eq!(refused, Some(Error::PoolExhausted { needed: 1, free: 0 }));
        tables.free(id).unwrap();
        assert_eq!(free_blocks(&tables), (0..8).collect::<Vec<BlockId>>());
    }
}

#[test]
fn an_id_that_was_freed_is_stale_forever_and_one_of_other_tables_is_unknown() {
    let mut tables = BlockTables::new(2, 4).unwrap();
    let first = tables.create(Retention::All).unwrap();
    tables.free(first).unwrap();
    let stale = Error::StaleSequence { id: first };
    for _ in 0..3 {
        assert_eq!(tables.free(first), Err(stale));
        assert_eq!(tables.len(first), Err(stale));
        assert_eq!(tables.table(first), Err(stale));
        assert_eq!(tables.fork(first), Err(stale));
        assert_eq!(tables.truncate(first, 0), Err(stale));
        assert_eq!(tables.blocks_needed(first, 1), Err(stale));
        assert_eq!(tables.begin(&[(first, 1)]).err(), Some(stale));
        // The place has another owner, and the next time none.
        let second = tables.create(Retention::All).unwrap();
        assert_eq!(tables.len(first), Err(stale));
        tables.free(second).unwrap();
    }
    let (one, two) =
        (tables.create(Retention::All).unwrap(), tables.create(Retention::All).unwrap());
    assert!(one != two && tables.n_sequences() == 2);
    let mut others = BlockTables::new(2, 4).unwrap();
    assert_eq!(others.len(two), Err(Error::UnknownSequence { id: two }));
    let young = others.create(Retention::All).unwrap();
    assert_eq!(others.len(one), Err(Error::UnknownSequence { id: one }));
    assert_eq!(others.len(young), Ok(0));
    assert_eq!(format!("{young} {one:?}"), "0.0 SequenceId(0.4)");
}

#[test]
fn sizes_that_cannot_be_counted_are_refused() {
    let max = u32::MAX as usize - 2;
    assert_eq!(BlockTables::new(1, 0).err(), Some(Error::Zero { what: "block_size" }));
    assert_eq!(BlockTables::new(0, 16).err(), Some(Error::Zero { what: "n_blocks" }));
    for (n_blocks, block_size) in [(1 << 28, 16), (usize::MAX, 2), (1, max + 1)] {
        let refused = BlockTables::new(n_blocks, block_size).err();
        assert_eq!(refused, Some(Error::TooManySlots { n_blocks, block_size, max }));
    }
    let mut tables = BlockTables::new(1, 4).unwrap();
    let id = tables.create(Retention::All).unwrap();
    grow(&mut tables, id, 3);
    let max = u32::MAX as usize;
    for n_new in [max - 2, max + 1, usize::MAX] {
        let refused = tables.begin(&[(id, n_new)]).err();
        assert_eq!(refused, Some(Error::TooLong { len: 3, n_new, max }));
    }
    let refused = tables.begin(&[(id, max - 3)]).err();
    assert_eq!(refused, Some(Error::PoolExhausted { needed: (1 << 30) - 1, free: 0 }));
    assert_eq!(tables.blocks_needed(id, max - 3), Ok((1 << 30) - 1));
}

#[test]
fn forks_share_until_one_writes_and_the_last_owner_writes_in_place() {
    let mut tables = BlockTables::new(8, 4).unwrap();
    let parent = tables.create(Retention::All).unwrap();
    grow(&mut tables, parent, 6);
    let child = tables.fork(parent).unwrap();
    assert_eq!(tables.table(child), Ok(&[0, 1][..]));
    assert_eq!((tables.pool().n_free(), tables.pool().ref_count(1)), (6, Ok(2)));
    assert_eq!(tables.blocks_needed(child, 1), Ok(1));

    // In one step, the first takes a copy and leaves the original to the second.
    let step = tables.begin(&[(child, 1), (parent, 1)]).unwrap();
    let [copy] = *step.copies() else { panic!("{:?}", step.copies()) };
    assert_eq!((copy.from, copy.to, copy.n_slots), (1, 2, 2));
    step.commit();
    assert_eq!(tables.table(child), Ok(&[0, 2][..]));
    assert_eq!(tables.table(parent), Ok(&[0, 1][..]));

    // A fork of full blocks needs no copy.
    grow(&mut tables, parent, 1);
    let third = tables.fork(parent).unwrap();
    let step = tables.begin(&[(third, 1)]).unwrap();
    assert!(step.copies().is_empty());
    step.commit();
    for id in [parent, child, third] {
        tables.free(id).unwrap();
    }
    assert_eq!(tables.pool().n_free(), 8);
}

#[test]
fn a_cut_gives_back_the_last_blocks_first_and_what_is_cached_is_not_written_to() {
    let mut tables = BlockTables::new(8, 2).unwrap();
    let id = prompt(&mut tables, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(tables.truncate(id, 8), Err(Error::Truncate { len: 7, to: 8 }));
    tables.truncate(id, 7).unwrap();
    assert_eq!(tables.table(id), Ok(&[0, 1, 2, 3][..]));
    tables.truncate(id, 3).unwrap();
    // Block 3 was never full, so that nobody can find it; block 2 can still be found.
    assert_eq!(free_blocks(&tables), [3, 4, 5, 6, 7, 2]);
    // The second block holds [3, 4] and is cached: the other end of the conversation may be wanted again.
    let mut step = tables.begin(&[(id, 1)]).unwrap();
    assert_eq!(step.copies().len(), 1);
    step.record(id, &[9]).unwrap();
    step.commit();
    assert_eq!(tables.table(id), Ok(&[0, 3][..]));
    assert_eq!(tables.cached_len(&key(), &[1, 2, 3, 4, 5, 6, 7], Retention::All), 6);
    assert_eq!(tables.cached_len(&key(), &[1, 2, 3, 9, 5], Retention::All), 4);
    tables.truncate(id, 0).unwrap();
    assert_eq!((tables.len(id), tables.pool().n_free()), (Ok(0), 8));
    append(&mut tables, id, &[1, 2]);
    assert_eq!(tables.cached_len(&key(), &[1, 2, 3, 9, 5], Retention::All), 4);
}

#[test]
fn what_is_not_known_is_not_cached_until_a_cut_removes_it() {
    let mut tables = BlockTables::new(8, 2).unwrap();
    let id = prompt(&mut tables, &[1, 2, 3]);
    grow(&mut tables, id, 2);
    append(&mut tables, id, &[6, 7]);
    assert_eq!(tables.n_cached_blocks(), 1);
    tables.truncate(id, 3).unwrap();
    append(&mut tables, id, &[4, 5, 6]);
    assert_eq!(tables.cached_len(&key(), &[1, 2, 3, 4, 5, 6, 7], Retention::All), 6);
    assert_eq!(tables.n_cached_blocks(), 3);
}

#[test]
fn blocks_that_left_the_window_are_given_back() {
    for block_size in [1, 2, 4] {
        for width in 1..10 {
            let mut tables = BlockTables::new(32, block_size).unwrap();
            let id = tables.create(window(width)).unwrap();
            for n_new in [1, 2, 1, 7, 1, 1, 3, 1] {
                // All that the new tokens read is there while they are computed.
                let step = tables.begin(&[(id, n_new)]).unwrap();
                let first = (step.len(id).unwrap() + 1).saturating_sub(width) / block_size;
                assert!(step.table(id).unwrap()[first..].iter().all(|&it| it != NULL_BLOCK));
                step.commit();
                let len = tables.len(id).unwrap();
                let first = (len + 1).saturating_sub(width) / block_size;
                let is_null: Vec<bool> =
                    tables.table(id).unwrap().iter().map(|&it| it == NULL_BLOCK).collect();
                let want: Vec<bool> = (0..len.div_ceil(block_size)).map(|at| at < first).collect();
                assert_eq!(is_null, want, "{len} tokens, window {width}");
                let n_held = want.iter().filter(|&&is_null| !is_null).count();
                assert_eq!(tables.pool().n_free(), 32 - n_held);
            }
            let child = tables.fork(id).unwrap();
            grow(&mut tables, child, 1);
            tables.free(id).unwrap();
            tables.free(child).unwrap();
            assert_eq!(tables.pool().n_free(), 32);
        }
    }
}

#[test]
fn a_cut_to_before_the_window_is_refused() {
    let mut tables = BlockTables::new(16, 2).unwrap();
    let id = tables.create(window(5)).unwrap();
    grow(&mut tables, id, 11);
    // The next token reads 7, 8, 9, 10: block 3 is the first.
    assert_eq!(tables.table(id).unwrap()[..4], [NULL_BLOCK, NULL_BLOCK, NULL_BLOCK, 3]);
    let refused = tables.truncate(id, 9);
    assert_eq!(refused, Err(Error::LeftWindow { to: 9, needed: 4, kept: 6 }));
    tables.truncate(id, 10).unwrap();
    grow(&mut tables, id, 1);
    tables.truncate(id, 0).unwrap();
    assert_eq!(tables.pool().n_free(), 16);
}

#[test]
fn steps_within_what_was_reserved_allocate_nothing() {
    let mut tables = BlockTables::new(256, 4).unwrap();
    tables.reserve(8, 128);
    let tokens: Vec<u32> = (0..100).collect();
    let key = key();
    let mut batch = Vec::with_capacity(8);
    let run = |tables: &mut BlockTables, batch: &mut Vec<(SequenceId, usize)>| {
        for round in 0..3 {
            batch.clear();
            for i in 0..7 {
                let retention = if i % 2 == 0 { Retention::All } else { window(9) };
                let (id, n_cached) =
                    tables.create_with_prefix(&key, &tokens[..40 + i], retention).unwrap();
                batch.push((id, 40 + i - n_cached));
            }
            batch.push((tables.fork(batch[0].0).unwrap(), 3));
            for _ in 0..50 {
                let mut step = tables.begin(batch).unwrap();
                for &(id, n_new) in &*batch {
                    let len = step.len(id).unwrap();
                    step.record(id, &tokens[len..][..n_new]).unwrap();
                    let all = [0, 1, 2];
                    let stay = if n_new == 2 { &all[..1] } else { &all[..n_new.min(3)] };
                    assert_eq!(step.accept(id, stay).unwrap().count(), 0);
                    assert!(step.slots(id).unwrap().len() <= 3);
                }
                step.commit();
                for (_, n_new) in batch.iter_mut() {
                    *n_new = 1 + round % 2;
                }
            }
            drop(tables.begin(batch).unwrap());
            for (i, &(id, _)) in batch.iter().enumerate() {
                if i % 2 == 0 {
                    tables.truncate(id, tables.len(id).unwrap() - 1).unwrap();
                }
                tables.free(id).unwrap();
            }
        }
    };
    let ((), n_allocations) = count_allocations(|| run(&mut tables, &mut batch));
    assert_eq!(n_allocations, 0);
    assert_eq!(tables.pool().n_free(), 256);
}
