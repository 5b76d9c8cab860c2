//! Memory for what is read in streams: weights, keys and values.
//!
//! On pages of 4 KiB every 64th line needs a walk of the page tables, and reading from memory is slower by up to a fifth where a
//! hypervisor makes two walks of each. Large buffers therefore ask for huge pages before their first use.

use std::collections::TryReserveError;

/// A huge page of Linux on x86-64 and, with pages of 4 KiB, on AArch64.
#[cfg(any(test, target_os = "linux"))]
const HUGE_PAGE: usize = 2 << 20;

/// `len` times `value` on huge pages, all of them written: memory that the system has not got is missed here, and not later.
///
/// # Errors
///
/// If the allocator has no room for them.
pub fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>, TryReserveError> {
    let mut out = Vec::new();
    out.try_reserve_exact(len)?;
    prefer_huge_pages(&mut out);
    out.resize(len, value);
    Ok(out)
}

/// Asks for huge pages for the whole ones in a vector's memory, best before its first use. Only Linux takes the advice, and only
/// where `transparent_hugepage` is `madvise` or `always`.
pub fn prefer_huge_pages<T>(memory: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    advise(memory);
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(target_os = "linux")]
fn advise<T>(memory: &mut Vec<T>) {
    use rustix::mm::{Advice, madvise};

    let start = memory.as_mut_ptr().cast::<u8>();
    let skipped = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let bytes = memory.capacity().saturating_mul(size_of::<T>());
    let len = bytes.saturating_sub(skipped) / HUGE_PAGE * HUGE_PAGE;
    if len > 0 {
        let first = start.wrapping_add(skipped).cast();
        // SAFETY: the `len` bytes from `first` on lie in the vector's memory. The advice changes no byte and unmaps none.
        let advised = unsafe { madvise(first, len, Advice::LinuxHugepage) };
        // Memory that is not advised is as good, if slower.
        let _ = advised;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_changes_nothing_in_memory() {
        for (first, len) in [(0, 0), (1, 1), (5, HUGE_PAGE), (3, 3 * HUGE_PAGE), (0, 2 * HUGE_PAGE)]
        {
            let bytes = || (0..first + len).map(|i| (i % 251) as u8);
            // The advice falls on what was written, and on what was not.
            let mut memory = Vec::with_capacity(2 * (first + len));
            memory.extend(bytes());
            prefer_huge_pages(&mut memory);
            memory.extend(bytes());
            assert!(memory.iter().copied().eq(bytes().chain(bytes())));
        }
        prefer_huge_pages(&mut vec![(); 3]);
    }

    #[test]
    fn values_are_as_many_as_asked_for_or_an_error() {
        for len in [0, 1, 1000, HUGE_PAGE] {
            assert_eq!(filled(len, 7_u64).unwrap(), vec![7; len]);
        }
        assert!(filled(usize::MAX / 8, 0.0_f32).is_err());
    }
}
