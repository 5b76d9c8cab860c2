//! The block pool alone.

use squish_kv::{BlockPool, Error, Reuse};

fn free(pool: &BlockPool) -> Vec<u32> {
    pool.free_blocks().collect()
}

#[test]
fn blocks_are_taken_in_the_order_in_which_they_stand() {
    let mut pool = BlockPool::new(4).unwrap();
    assert_eq!(free(&pool), [0, 1, 2, 3]);
    assert_eq!((pool.take(), pool.take(), pool.take()), (Some(0), Some(1), Some(2)));
    pool.release(1, Reuse::Last).unwrap();
    pool.release(2, Reuse::First).unwrap();
    pool.release(0, Reuse::Last).unwrap();
    assert_eq!(free(&pool), [2, 3, 1, 0]);
    assert_eq!((pool.n_free(), pool.n_blocks()), (4, 4));
}

#[test]
fn a_free_block_can_be_held_again_from_wherever_it_stands() {
    for block in 0..3 {
        let mut pool = BlockPool::new(3).unwrap();
        pool.retain(block).unwrap();
        let others: Vec<u32> = (0..3).filter(|&other| other != block).collect();
        assert_eq!((pool.ref_count(block), free(&pool)), (Ok(1), others.clone()));
        pool.retain(block).unwrap();
        pool.release(block, Reuse::First).unwrap();
        assert_eq!((pool.ref_count(block), free(&pool)), (Ok(1), others));
        pool.release(block, Reuse::First).unwrap();
        assert_eq!((pool.take(), pool.n_free()), (Some(block), 2));
    }
}

#[test]
fn an_exhausted_pool_gives_nothing_until_something_is_released() {
    let mut pool = BlockPool::new(1).unwrap();
    assert_eq!((pool.take(), pool.take(), pool.n_free()), (Some(0), None, 0));
    assert!(free(&pool).is_empty());
    pool.release(0, Reuse::Last).unwrap();
    assert_eq!(pool.take(), Some(0));
}

#[test]
fn what_is_free_cannot_be_released_and_what_does_not_exist_cannot_be_named() {
    let mut pool = BlockPool::new(2).unwrap();
    assert_eq!(pool.release(0, Reuse::Last), Err(Error::DoubleFree { block: 0 }));
    assert_eq!(pool.take(), Some(0));
    pool.release(0, Reuse::Last).unwrap();
    assert_eq!(pool.release(0, Reuse::Last), Err(Error::DoubleFree { block: 0 }));
    assert_eq!(free(&pool), [1, 0]);
    let unknown = Error::UnknownBlock { block: 2, n_blocks: 2 };
    assert_eq!(pool.retain(2), Err(unknown));
    assert_eq!(pool.release(2, Reuse::First), Err(unknown));
    assert_eq!(pool.ref_count(u32::MAX), Err(Error::UnknownBlock { block: u32::MAX, n_blocks: 2 }));
}

#[test]
fn sizes_that_ids_cannot_count_are_refused() {
    assert_eq!(BlockPool::new(0).err(), Some(Error::Zero { what: "n_blocks" }));
    let n_blocks = u32::MAX as usize;
    let max = n_blocks - 2;
    let refused = BlockPool::new(n_blocks).err();
    assert_eq!(refused, Some(Error::TooManySlots { n_blocks, block_size: 1, max }));
}
