//! Prefixes that sequences find of each other.

use squish_kv::{BlockTables, NULL_BLOCK, PrefixKey, Retention, Salt, Scope};

use crate::tables::{append, key, prompt, window};

const PROMPT: [u32; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

fn hit(tables: &BlockTables, tokens: &[u32]) -> usize {
    tables.cached_len(&key(), tokens, Retention::All)
}

/// Takes all that is free and gives it back.
fn press(tables: &mut BlockTables) {
    let id = tables.create(Retention::All).unwrap();
    let n = tables.pool().n_free() * tables.block_size();
    tables.begin(&[(id, n)]).unwrap().commit();
    tables.free(id).unwrap();
}

#[test]
fn a_hit_is_whole_blocks_and_leaves_a_token_to_compute() {
    let mut tables = BlockTables::new(16, 2).unwrap();
    let first = prompt(&mut tables, &PROMPT[..8]);
    for (n, want) in [(0, 0), (1, 0), (2, 0), (3, 2), (4, 2), (5, 4), (8, 6), (9, 8)] {
        assert_eq!(hit(&tables, &PROMPT[..n]), want, "{n} tokens");
    }
    assert_eq!(hit(&tables, &[1, 2, 3, 4, 5, 0, 7, 8, 9]), 4);
    assert_eq!(hit(&tables, &PROMPT[2..]), 0, "the same blocks elsewhere are others");
    let (second, n_cached) = tables.create_with_prefix(&key(), &PROMPT, Retention::All).unwrap();
    assert_eq!((n_cached, tables.table(second)), (8, tables.table(first)));
    assert_eq!(tables.pool().ref_count(0), Ok(2));
}

#[test]
fn the_same_scope_hits_and_any_other_never_does() {
    let salts = [Salt::Shared, Salt::Tenant(b""), Salt::Tenant(b"a"), Salt::Tenant(b"b")];
    let adapters: [Option<&[u8]>; 3] = [None, Some(b""), Some(b"a")];
    let mut keys: Vec<PrefixKey> = Vec::new();
    for salt in salts {
        for adapter in adapters {
            for model in [&b"a"[..], b"b"] {
                for layer_group in 0..2 {
                    keys.push(Scope { model, adapter, layer_group, salt }.key());
                }
            }
        }
    }
    let mut tables = BlockTables::new(4 * keys.len(), 2).unwrap();
    for (i, key) in keys.iter().enumerate() {
        let (id, n_cached) = tables.create_with_prefix(key, &PROMPT, Retention::All).unwrap();
        assert_eq!(n_cached, 0, "scope {i} finds what another has left");
        append(&mut tables, id, &PROMPT[..8]);
        tables.free(id).unwrap();
    }
    for key in keys {
        assert_eq!(tables.cached_len(&key, &PROMPT, Retention::All), 8);
    }
}

#[test]
fn a_freed_block_is_a_hit_until_it_is_taken_and_tails_go_before_heads() {
    let mut tables = BlockTables::new(6, 2).unwrap();
    let first = prompt(&mut tables, &PROMPT);
    tables.free(first).unwrap();
    assert_eq!((tables.pool().n_free(), hit(&tables, &PROMPT)), (6, 8));
    // Two blocks hold nothing that can be found, and go first; then the tail.
    for (n_blocks, want) in [(2, 8), (3, 6), (4, 4), (5, 2), (6, 0)] {
        let id = tables.create(Retention::All).unwrap();
        tables.begin(&[(id, 2 * n_blocks)]).unwrap().commit();
        tables.free(id).unwrap();
        assert_eq!(hit(&tables, &PROMPT), want, "after {n_blocks} blocks were taken");
    }
}

#[test]
fn of_two_prefixes_the_one_that_was_used_last_stays() {
    let mut tables = BlockTables::new(4, 2).unwrap();
    let (a, b) = ([1, 2, 3], [4, 5, 6]);
    for tokens in [a, b, a] {
        let id = prompt(&mut tables, &tokens);
        tables.free(id).unwrap();
    }
    let id = tables.create(Retention::All).unwrap();
    tables.begin(&[(id, 6)]).unwrap().commit();
    assert_eq!((hit(&tables, &a), hit(&tables, &b)), (2, 0));
}

#[test]
fn a_hit_takes_blocks_out_of_the_middle_of_the_free_ones() {
    let mut tables = BlockTables::new(6, 2).unwrap();
    let id = prompt(&mut tables, &PROMPT);
    tables.free(id).unwrap();
    let (id, n_cached) = tables.create_with_prefix(&key(), &PROMPT[..5], Retention::All).unwrap();
    assert_eq!((n_cached, tables.pool().n_free()), (4, 4));
    press(&mut tables);
    assert_eq!(hit(&tables, &PROMPT), 4, "what is held is not evicted");
    tables.free(id).unwrap();
}

#[test]
fn twins_are_not_merged_and_one_takes_the_place_of_the_other() {
    let mut tables = BlockTables::new(4, 2).unwrap();
    // Both begin before either has anything to find.
    let key = key();
    let ids: Vec<_> = (0..2)
        .map(|_| tables.create_with_prefix(&key, &PROMPT[..2], Retention::All).unwrap().0)
        .collect();
    for &id in &ids {
        append(&mut tables, id, &PROMPT[..2]);
    }
    assert_eq!((tables.table(ids[0]), tables.table(ids[1])), (Ok(&[0][..]), Ok(&[1][..])));
    assert_eq!(tables.n_cached_blocks(), 2);
    tables.free(ids[0]).unwrap();
    press(&mut tables);
    assert_eq!(tables.n_cached_blocks(), 1);
    let (id, n_cached) = tables.create_with_prefix(&key, &PROMPT[..3], Retention::All).unwrap();
    assert_eq!((n_cached, tables.table(id)), (2, Ok(&[1][..])));
}

#[test]
fn a_window_needs_only_the_blocks_that_the_next_token_reads() {
    let mut tables = BlockTables::new(16, 2).unwrap();
    let key = key();
    // Behind eight tokens a window of five reads 4, 5, 6, 7: two blocks.
    let (first, _) = tables.create_with_prefix(&key, &PROMPT, window(5)).unwrap();
    append(&mut tables, first, &PROMPT[..8]);
    let held = tables.table(first).unwrap().to_vec();
    assert_eq!(held[..2], [NULL_BLOCK; 2]);
    press(&mut tables);
    assert_eq!(tables.cached_len(&key, &PROMPT, window(5)), 8);
    assert_eq!(tables.cached_len(&key, &PROMPT, window(6)), 0, "reads a block that is gone");
    assert_eq!(tables.cached_len(&key, &PROMPT, Retention::All), 0);
    assert_eq!(tables.cached_len(&key, &PROMPT[..8], window(5)), 0, "two blocks that end earlier");
    assert_eq!(tables.cached_len(&key, &PROMPT[..8], window(3)), 6);
    let (second, n_cached) = tables.create_with_prefix(&key, &PROMPT, window(5)).unwrap();
    assert_eq!((n_cached, tables.table(second)), (8, Ok(&held[..])));
    // It goes on where the first one's chain of hashes ends.
    append(&mut tables, second, &[9, 10]);
    assert_eq!(tables.cached_len(&key, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], window(5)), 10);
}

#[test]
fn a_cut_keeps_the_chain_of_a_window_that_has_lost_the_block_before() {
    let key = key();
    // From six tokens the block of the cut is the last one, from eight it is full and cached, from nine it is behind the window's first.
    for (n, is_kept) in [(6, true), (8, true), (9, false)] {
        let mut tables = BlockTables::new(8, 4).unwrap();
        let (id, _) = tables.create_with_prefix(&key, &[], window(2)).unwrap();
        append(&mut tables, id, &PROMPT[..n]);
        assert_eq!(tables.table(id).unwrap()[0], NULL_BLOCK);
        assert_eq!(tables.truncate(id, 5).is_ok(), is_kept);
        if is_kept {
            append(&mut tables, id, &[16, 17, 18]);
            let tokens = [1, 2, 3, 4, 5, 16, 17, 18, 19];
            assert_eq!(tables.cached_len(&key, &tokens, window(2)), 8, "{n}");
        }
    }
}

#[test]
fn layers_of_two_kinds_agree_on_a_hit_by_looking_in_turn() {
    let scope =
        |layer_group| Scope { model: b"model", adapter: None, layer_group, salt: Salt::Shared };
    let groups = [(scope(0).key(), Retention::All), (scope(1).key(), window(3))];
    let mut tables = BlockTables::new(16, 2).unwrap();
    // The layers with full attention have six tokens, those with the window the first four and the last two of eight.
    for ((key, retention), lens) in groups.iter().zip([&[6][..], &[4, 8]]) {
        let (id, _) = tables.create_with_prefix(key, &[], *retention).unwrap();
        let mut len = 0;
        for &to in lens {
            append(&mut tables, id, &PROMPT[len..to]);
            len = to;
            press(&mut tables);
        }
        if lens.len() == 2 {
            assert_eq!(tables.table(id).unwrap()[..3], [NULL_BLOCK; 3]);
            // Somebody else still holds the second block.
            let (other, _) = tables.create_with_prefix(key, &[], *retention).unwrap();
            append(&mut tables, other, &PROMPT[..4]);
        }
    }
    let hits = groups.map(|(key, retention)| tables.cached_len(&key, &PROMPT, retention));
    assert_eq!(hits, [6, 8]);
    let mut agreed = PROMPT.len() - 1;
    loop {
        let before = agreed;
        for (key, retention) in &groups {
            agreed = tables.cached_len(key, &PROMPT[..=agreed], *retention);
        }
        if agreed == before {
            break;
        }
    }
    assert_eq!(agreed, 4);
}

#[test]
fn looking_changes_nothing() {
    let mut tables = BlockTables::new(6, 2).unwrap();
    let id = prompt(&mut tables, &PROMPT);
    tables.free(id).unwrap();
    let before: Vec<u32> = tables.pool().free_blocks().collect();
    assert_eq!(hit(&tables, &PROMPT), 8);
    assert_eq!(tables.pool().free_blocks().collect::<Vec<_>>(), before);
}
