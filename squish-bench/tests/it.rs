//! Public behavior: counting allocations, writing the fixture's table.

use squish_bench::{
    Fixture, FixtureRow,
    alloc::{CountingAllocator, count_allocations},
    black_box,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn allocations_of_this_thread_are_counted_and_those_of_others_are_not() {
    let (sum, none) = count_allocations(|| black_box([1_u64, 2, 3]).iter().sum::<u64>());
    assert_eq!((sum, none), (6, 0));

    let (_, two) = count_allocations(|| (black_box(Box::new(1)), black_box(vec![0_u8; 100])));
    assert_eq!(two, 2);

    let (_, grown) = count_allocations(|| {
        let mut values: Vec<u8> = Vec::with_capacity(1);
        values.extend_from_slice(black_box(&[0; 64]));
        values
    });
    assert_eq!(grown, 2, "one allocation and one reallocation");

    let busy = std::thread::spawn(allocate_a_thousand_times);
    let ((), here) = count_allocations(|| while !busy.is_finished() {});
    assert_eq!((here, busy.join().unwrap()), (0, 1000));
}

fn allocate_a_thousand_times() -> u64 {
    for i in 0..1000 {
        drop(black_box(Box::new(i)));
    }
    1000
}

#[test]
fn the_fixture_s_table_leaves_out_what_was_not_measured() {
    let row =
        FixtureRow { format: "bf16".to_owned(), bits_per_weight: 16.0, ..FixtureRow::default() };
    let text = serde_json::to_string(&Fixture {
        rows: vec![row],
        modes: Vec::new(),
        note: "n".to_owned(),
    })
    .unwrap();
    assert!(text.contains("\"snr_db\":null") && !text.contains("decode_gbps"), "{text}");
}
