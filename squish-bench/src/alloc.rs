//! An allocator that counts, for the tests which say that a path allocates nothing.
//!
//! A test binary installs it with `#[global_allocator] static ALLOCATOR: CountingAllocator = CountingAllocator;`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

/// The system's allocator with a count per thread.
#[derive(Clone, Copy, Debug)]
pub struct CountingAllocator;

thread_local! {
    // Constant and without destructor, so that touching it neither allocates nor fails while a thread ends.
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

fn count_one() {
    THREAD.with(|count| count.set(count.get() + 1));
}

#[expect(
    unsafe_code,
    reason = "a global allocator is an unsafe trait; each method only counts and forwards"
)]
// SAFETY: every method forwards its arguments unchanged to the system's allocator, which upholds the trait's contract.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count_one();
        // SAFETY: as above; `ptr` came from `System`, as every pointer of this allocator does.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
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
    let count = || THREAD.with(Cell::get);
    let before = count();
    drop(black_box(Box::new(0_u8)));
    assert!(count() > before, "`CountingAllocator` is not the global allocator of this binary");
    let before = count();
    let result = f();
    (result, count() - before)
}
