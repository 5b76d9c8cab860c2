//! Advice to the system about memory: the one module of this crate with `unsafe`.

use std::mem::MaybeUninit;

/// A huge page of Linux on x86-64 and, with pages of 4 KiB, on AArch64.
const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages for the whole ones in `memory`, best before its first use: blocks that are read here and there then cost fewer
/// walks of the page tables. Only Linux takes the advice, and only where `transparent_hugepage` is `madvise` or `always`.
pub(super) fn prefer_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    advise(memory);
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a system call that takes a pointer")]
fn advise<T>(memory: &mut [MaybeUninit<T>]) {
    use rustix::mm::{Advice, madvise};

    let start = memory.as_mut_ptr().cast::<u8>();
    let skipped = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let len = size_of_val(memory).saturating_sub(skipped) / HUGE_PAGE * HUGE_PAGE;
    if len > 0 {
        let first = start.wrapping_add(skipped).cast();
        // SAFETY: the `len` bytes from `first` on lie in `memory`. The advice changes no byte and unmaps none.
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
            prefer_huge_pages(memory.spare_capacity_mut());
            memory.extend(bytes());
            assert!(memory.iter().copied().eq(bytes().chain(bytes())));
        }
    }
}
