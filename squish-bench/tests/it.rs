//! Public behaviour: counting allocations, writing the fixture's table, describing rows.

use squish_bench::{
    Fixture, FixtureRow, Limit, Residency, Row, Target, Work,
    alloc::{CountingAllocator, count_allocations, count_allocations_of_all_threads},
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
fn allocations_of_all_threads_include_those_of_a_worker() {
    let (_, count) = count_allocations_of_all_threads(|| {
        std::thread::spawn(allocate_a_thousand_times).join().unwrap()
    });
    assert!(count >= 1000, "{count}");
}

#[test]
fn a_row_is_described_as_the_tables_read_it() {
    const ROW: Row = Row {
        id: "fp8/encode_e4m3_channel",
        module: "Fp8Quantizer",
        operation: "encode E4M3, one scale per channel",
        shape: "128x128",
        work: Work::bytes(65_536, 16_896),
        limit: Limit::Copy(Residency::L2),
        targets: &[
            Target::AtMostTimesProbe { probe: "memcpy", times: 4.2 },
            Target::AtLeastTimesPeer { peer: "torch", times: 3.0 },
            Target::AtLeastShareOfProbe { probe: "memcpy", share: 0.5 },
            Target::AtLeastShareOfLimit { share: 0.25 },
        ],
        release_profile: true,
        ..Row::SEED
    };
    let text = serde_json::to_string_pretty(&ROW).unwrap() + "\n";
    assert_eq!(text, include_str!("row.json"), "xtask reads this form");
}

#[test]
fn the_fixture_s_table_leaves_out_what_was_not_measured() {
    let row =
        FixtureRow { format: "bf16".to_owned(), bits_per_weight: 16.0, ..FixtureRow::default() };
    let text = serde_json::to_string(&Fixture { rows: vec![row], note: "n".to_owned() }).unwrap();
    assert!(text.contains("\"snr_db\":null") && !text.contains("decode_gbps"), "{text}");
}
