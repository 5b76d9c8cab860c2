//! What the rules know about each crate: its floor and how many dependencies it may bring.

/// A crate of the workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    /// Its name, and the name of its folder.
    pub(crate) name: &'static str,
    /// Crates depend on lower floors only; `None` for what is not published and may use everything.
    pub(crate) floor: Option<u8>,
    /// Most transitive normal dependencies on Linux with default features, other crates of the workspace included.
    pub(crate) budget: Option<usize>,
    /// Where `unsafe` may stand.
    pub(crate) unsafe_code: Unsafe,
}

/// Where a crate may use `unsafe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsafe {
    /// Nowhere: its lib.rs forbids it.
    Nowhere,
    /// In every file.
    Everywhere,
    /// In this file.
    File(&'static str),
}

/// Crates whose tests run under emulation.
pub(crate) const NUMERIC: [&str; 6] = [
    "squish-kernels",
    "squish-checkpoint",
    "squish-quant",
    "squish-kv",
    "squish-attn",
    "squish-eval",
];

/// Crates whose modules all stand in STATUS.md: those with code of their own that are published.
pub(crate) const IN_STATUS: [&str; 7] = [
    "squish-kernels",
    "squish-checkpoint",
    "squish-quant",
    "squish-kv",
    "squish-attn",
    "squish-eval",
    "squish-model",
];

const fn member(name: &'static str, floor: u8, budget: usize, unsafe_code: Unsafe) -> Member {
    Member { name, floor: Some(floor), budget: Some(budget), unsafe_code }
}

/// Every crate of the workspace. One that is not listed is a fault.
pub(crate) const MEMBERS: [Member; 11] = [
    member("squish-kernels", 0, 24, Unsafe::Everywhere),
    member("squish-checkpoint", 0, 24, Unsafe::File("squish-checkpoint/src/mapping.rs")),
    member("squish-quant", 1, 27, Unsafe::Nowhere),
    member("squish-kv", 1, 30, Unsafe::Nowhere),
    member("squish-attn", 1, 30, Unsafe::Nowhere),
    member("squish-eval", 1, 24, Unsafe::Nowhere),
    member("squish-model", 3, 110, Unsafe::Nowhere),
    member("squish-llm", 4, 120, Unsafe::Nowhere),
    member("squish-cli", 4, 150, Unsafe::Nowhere),
    Member {
        name: "squish-bench",
        floor: None,
        budget: None,
        unsafe_code: Unsafe::File("squish-bench/src/alloc.rs"),
    },
    Member { name: "xtask", floor: None, budget: Some(16), unsafe_code: Unsafe::Nowhere },
];

/// The member called `name`.
#[must_use]
pub(crate) fn find(name: &str) -> Option<&'static Member> {
    MEMBERS.iter().find(|member| member.name == name)
}

/// Crates with a budget.
pub(crate) fn budgets() -> impl Iterator<Item = (&'static str, usize)> {
    MEMBERS.iter().filter_map(|member| Some((member.name, member.budget?)))
}
