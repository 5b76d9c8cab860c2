//! The tables, and the cache with its storage, against the obvious models of them.

use proptest::prelude::*;

use crate::{walk::walk, walk_cache::walk_cache};

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
