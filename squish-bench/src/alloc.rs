//! An allocator that counts, for the tests which say that a path allocates nothing, and for the bytes that something holds.
//!
//! A test binary installs it with `#[global_allocator] static ALLOCATOR: CountingAllocator = CountingAllocator;`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

/// The system's allocator with counts per thread.
#[derive(Clone, Copy, Debug)]
pub struct CountingAllocator;

thread_local! {
    // Constant and without destructor, so that touching it neither allocates nor fails while a thread ends.
    static THREAD: Cell<u64> = const { Cell::new(0) };
    /// Bytes that were allocated less those that were given back, which may be another thread's.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn count_one() {
    THREAD.with(|count| count.set(count.get() + 1));
}

fn count_bytes(taken: usize, given_back: usize) {
    HELD.with(|held| held.set(held.get() + taken as i64 - given_back as i64));
}

#[expect(
    unsafe_code,
    reason = "a global allocator is an unsafe trait; each method only counts and forwards"
)]
// SAFETY: every method forwards its arguments unchanged to the system's allocator, which upholds the trait's contract.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        count_bytes(layout.size(), 0);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_one();
        count_bytes(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count_one();
        count_bytes(new_size, layout.size());
        // SAFETY: as above; `ptr` came from `System`, as every pointer of this allocator does.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count_bytes(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// The result of `f` and how many allocations and reallocations this thread made in it.
///
/// # Panics
///
/// If [`CountingAllocator`] is not the global allocator, where every count would be zero.
pub fn count_allocations<R>(f: impl FnOnce() -> R) -> (R, u64) {
    let before = checked_count();
    let result = f();
    (result, THREAD.with(Cell::get) - before)
}

/// The result of `f` and how many bytes more this thread holds after it: those of the result, and of what `f` left elsewhere.
///
/// Negative if less is held. Bytes are those that were asked for, and not what the system made of that.
///
/// # Panics
///
/// As [`count_allocations`].
pub fn held_bytes<R>(f: impl FnOnce() -> R) -> (R, i64) {
    checked_count();
    let before = HELD.with(Cell::get);
    let result = f();
    (result, HELD.with(Cell::get) - before)
}

/// The count of this thread's allocations, which has to have changed with one of them.
fn checked_count() -> u64 {
    let count = || THREAD.with(Cell::get);
    let before = count();
    drop(black_box(Box::new(0_u8)));
    assert!(count() > before, "`CountingAllocator` is not the global allocator of this binary");
    count()
}
