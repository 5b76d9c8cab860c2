//! The tables against the obvious model of them.

use proptest::prelude::*;

use crate::walk::walk;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn random_operations_leave_what_the_model_says(bytes in prop::collection::vec(any::<u8>(), 2..400)) {
        walk(&bytes);
    }
}
