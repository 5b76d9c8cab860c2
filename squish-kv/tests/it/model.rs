//! The tables, and the caches with their storage, against the obvious models of them.

use proptest::prelude::*;

use crate::{walk::walk, walk_cache::walk_cache, walk_ring::walk_ring};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn random_operations_leave_what_the_model_says(bytes in prop::collection::vec(any::<u8>(), 2..400)) {
        walk(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn random_operations_leave_the_rows_that_the_model_says(bytes in prop::collection::vec(any::<u8>(), 2..300)) {
        walk_cache(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn random_operations_leave_in_a_ring_what_the_model_says(bytes in prop::collection::vec(any::<u8>(), 2..300)) {
        walk_ring(&bytes);
    }
}
