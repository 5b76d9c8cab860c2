//! Steps: reserved, recorded, accepted, committed, dropped.

use squish_kv::{BlockTables, Error, Retention, SequenceId, Slot, SlotMove};

use crate::tables::{append, key, prompt};

/// The free blocks, length and table of each sequence, and how many blocks can be found: what a step must leave alone.
type State = (Vec<u32>, Vec<(usize, Vec<u32>)>, usize);

fn state(tables: &BlockTables, ids: &[SequenceId]) -> State {
    let of = |&id: &SequenceId| (tables.len(id).unwrap(), tables.table(id).unwrap().to_vec());
    let free = tables.pool().free_blocks().collect();
    (free, ids.iter().map(of).collect(), tables.n_cached_blocks())
}

#[test]
fn a_batch_that_does_not_fit_changes_nothing_and_says_what_it_needs() {
    let mut tables = BlockTables::new(6, 2).unwrap();
    let cached = prompt(&mut tables, &[1, 2, 3, 4, 5]);
    tables.free(cached).unwrap();
    let parent = tables.create(Retention::All).unwrap();
    tables.begin(&[(parent, 3)]).unwrap().commit();
    let child = tables.fork(parent).unwrap();
    let other = tables.create(Retention::All).unwrap();
    let ids = [parent, child, other];
    let before = state(&tables, &ids);
    assert_eq!(before.0.len(), 4);
    // A copy for one of parent and child, one more block for each, and three for the other.
    let batch = [(parent, 2), (child, 3), (other, 5)];
    let refused = tables.begin(&batch).err();
    assert_eq!(refused, Some(Error::PoolExhausted { needed: 6, free: 4 }));
    assert_eq!(state(&tables, &ids), before);
    assert_eq!(
        tables.cached_len(&key(), &[1, 2, 3, 4, 5], Retention::All),
        4,
        "nothing is evicted"
    );
    assert!(tables.begin(&[(parent, 2), (child, 3), (other, 1)]).is_ok());
}

#[test]
#[expect(clippy::mem_forget, reason = "what it leaves behind is what is tested")]
fn a_dropped_step_leaves_no_trace_but_in_the_cache() {
    let mut tables = BlockTables::new(5, 2).unwrap();
    let cached = prompt(&mut tables, &[1, 2, 3, 4, 5]);
    tables.free(cached).unwrap();
    let parent = tables.create(Retention::All).unwrap();
    tables.begin(&[(parent, 1)]).unwrap().commit();
    let child = tables.fork(parent).unwrap();
    let before = state(&tables, &[parent, child]);
    let step = tables.begin(&[(parent, 4), (child, 1)]).unwrap();
    assert_eq!((step.copies().len(), step.table(parent).unwrap().len()), (1, 3));
    drop(step);
    let mut after = state(&tables, &[parent, child]);
    // Of the three blocks one held the tail of the prompt; it may have been written to.
    assert_eq!((before.2, after.2), (2, 1));
    after.2 = before.2;
    assert_eq!(after, before);
    // And so does one that is forgotten, at the latest when the tables are used again.
    std::mem::forget(tables.begin(&[(parent, 4), (child, 1)]).unwrap());
    tables.truncate(parent, 1).unwrap();
    let mut after = state(&tables, &[parent, child]);
    after.2 = before.2;
    assert_eq!(after, before);
}

#[test]
fn a_fork_that_was_cut_does_not_write_over_what_a_dropped_step_gives_back() {
    let mut tables = BlockTables::new(8, 4).unwrap();
    let long = tables.create(Retention::All).unwrap();
    tables.begin(&[(long, 3)]).unwrap().commit();
    let short = tables.fork(long).unwrap();
    tables.truncate(short, 1).unwrap();
    // The second of a batch may own the block alone; its slot is a token of the first, unless that one is the shorter.
    for (batch, n_copies) in [([(long, 1), (short, 1)], 2), ([(short, 1), (long, 1)], 1)] {
        let step = tables.begin(&batch).unwrap();
        assert_eq!(step.copies().len(), n_copies);
        let new = |id| step.slots(id).unwrap().next().unwrap();
        assert!(new(short).block != 0 && new(short).offset == 1 && new(long).offset == 3);
        drop(step);
        assert_eq!((tables.table(long), tables.table(short)), (Ok(&[0][..]), Ok(&[0][..])));
        assert_eq!(tables.pool().ref_count(0), Ok(2));
    }
}

#[test]
fn slots_are_those_of_the_new_tokens_in_their_order() {
    let mut tables = BlockTables::new(8, 3).unwrap();
    let id = tables.create(Retention::All).unwrap();
    let mut all = Vec::new();
    for n_new in [0, 1, 2, 3, 4, 1, 0, 5] {
        let step = tables.begin(&[(id, n_new)]).unwrap();
        let slots = step.slots(id).unwrap();
        assert_eq!(slots.len(), n_new);
        all.extend(slots);
        assert_eq!(step.len_with_new(id), Ok(all.len()));
        step.commit();
    }
    let want: Vec<Slot> = (0..16).map(|t| Slot { block: t / 3, offset: t % 3 }).collect();
    assert_eq!(all, want);
}

#[test]
fn an_accepted_path_is_brought_together_and_what_is_rejected_goes_back() {
    let mut tables = BlockTables::new(8, 2).unwrap();
    let (id, _) = tables.create_with_prefix(&key(), &[], Retention::All).unwrap();
    append(&mut tables, id, &[1]);
    // Seven nodes in the slots from 1 on: blocks 0, 1, 2, 3.
    let mut step = tables.begin(&[(id, 7)]).unwrap();
    step.record(id, &[10, 11, 12, 13, 14, 15, 16]).unwrap();
    let moves: Vec<SlotMove> = step.accept(id, &[0, 2, 5]).unwrap().collect();
    let slot = |t: u32| Slot { block: t / 2, offset: t % 2 };
    assert_eq!(
        moves,
        [SlotMove { from: slot(3), to: slot(2) }, SlotMove { from: slot(6), to: slot(3) }]
    );
    assert_eq!(step.len_with_new(id), Ok(4));
    step.commit();
    assert_eq!((tables.len(id), tables.table(id)), (Ok(4), Ok(&[0, 1][..])));
    assert_eq!(tables.pool().free_blocks().next(), Some(2));
    let tokens = |block| tables.cached_block(block).unwrap().tokens.to_vec();
    assert_eq!((tokens(0), tokens(1)), (vec![1, 10], vec![12, 15]));
    assert_eq!(tables.n_cached_blocks(), 2);

    // Nothing is accepted: the sequence is as before.
    let mut step = tables.begin(&[(id, 3)]).unwrap();
    assert_eq!(step.accept(id, &[]).unwrap().count(), 0);
    step.commit();
    assert_eq!((tables.len(id), tables.table(id)), (Ok(4), Ok(&[0, 1][..])));

    // Paths of paths: of the nodes 1, 2, 4 the second and third.
    let mut step = tables.begin(&[(id, 5)]).unwrap();
    assert_eq!(step.accept(id, &[1, 2, 4]).unwrap().count(), 3);
    assert_eq!(step.accept(id, &[1, 2]).unwrap().count(), 2);
    step.record(id, &[20, 21]).unwrap();
    step.commit();
    assert_eq!(tables.cached_len(&key(), &[1, 10, 12, 15, 20, 21, 0], Retention::All), 6);
}

#[test]
fn a_step_refuses_paths_that_do_not_ascend_and_wrong_numbers_of_tokens() {
    let mut tables = BlockTables::new(8, 2).unwrap();
    let id = tables.create(Retention::All).unwrap();
    let other = tables.create(Retention::All).unwrap();
    let mut step = tables.begin(&[(id, 3)]).unwrap();
    for (path, index, node, least) in [
        (&[0, 3][..], 1, 3, 1),
        (&[1, 1], 1, 1, 2),
        (&[2, 0], 1, 0, 3),
        (&[usize::MAX], 0, usize::MAX, 0),
    ] {
        let refused = step.accept(id, path).err();
        assert_eq!(refused, Some(Error::Path { index, node, least, n_new: 3 }));
    }
    assert_eq!(step.record(id, &[1, 2]), Err(Error::TokenCount { expected: 3, actual: 2 }));
    let refused = Error::NotInStep { id: other };
    assert_eq!(step.record(other, &[]), Err(refused));
    assert_eq!(step.slots(other).err(), Some(refused));
    assert_eq!(step.table(other), Err(refused));
    assert_eq!(step.len_with_new(other), Err(refused));
    assert_eq!(step.accept(other, &[]).err(), Some(refused));
    step.commit();
    assert_eq!(tables.len(id), Ok(3));
}

#[test]
fn a_batch_names_each_sequence_once() {
    let mut tables = BlockTables::new(8, 2).unwrap();
    let id = tables.create(Retention::All).unwrap();
    let refused = tables.begin(&[(id, 1), (id, 1)]).err();
    assert_eq!(refused, Some(Error::DuplicateSequence { id }));
    assert_eq!((tables.len(id), tables.pool().n_free()), (Ok(0), 8));
    tables.begin(&[]).unwrap().commit();
}
