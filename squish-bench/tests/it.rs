//! Public behavior: counting allocations and bytes, writing tables of evidence.

use squish_bench::{
    Cell, Evidence, Format, Section,
    alloc::{CountingAllocator, count_allocations, held_bytes},
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
fn held_bytes_are_those_of_the_result() {
    let (kept, held) = held_bytes(|| {
        drop(black_box(vec![0_u8; 1000]));
        let mut kept: Vec<u8> = Vec::with_capacity(10);
        kept.reserve_exact(black_box(300));
        kept
    });
    assert_eq!(held, 300);
    assert_eq!(held_bytes(|| drop(kept)).1, -300);
}

#[test]
fn a_table_is_read_as_it_was_written() {
    let columns =
        [("format", Format::Text), ("bits", Format::Fixed(2)), ("kl", Format::Scientific)];
    let mut section = Section::new("weights", "Formats", "A note.", &columns);
    section.push(["bf16".into(), 16.0.into(), Cell::Empty]);
    section.push(["fp8".into(), 8.1.into(), Cell::Estimate { value: 0.25, std_err: 0.5 }]);
    section.push(["int4".into(), Cell::from(5_usize), Cell::from(None::<f64>)]);
    let evidence = Evidence::new(vec![section]);
    assert!(!evidence.cpu.is_empty() && !evidence.isa.is_empty());
    let text = serde_json::to_string(&evidence).unwrap();
    assert!(
        text.contains(r#"["bf16",16.0,null],["fp8",8.1,{"value":0.25,"std_err":0.5}]"#),
        "{text}"
    );
    assert!(text.contains(r#"{"name":"bits","format":{"fixed":2}}"#), "{text}");
    assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
}

#[test]
#[should_panic(expected = "under `bits`")]
fn words_do_not_stand_under_numbers() {
    Section::new("a", "A", "", &[("bits", Format::Count)]).push(["many".into()]);
}

#[test]
#[should_panic(expected = "cells of")]
fn a_row_has_a_cell_for_every_column() {
    Section::new("a", "A", "", &[("bits", Format::Count)]).push([1.0.into(), 2.0.into()]);
}
