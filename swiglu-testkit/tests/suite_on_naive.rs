//! The suite on the simplest backend there is, with few cases: whether the suite itself is right.

swiglu_testkit::suite! {
    backend: swiglu_testkit::Naive::new(),
    config: swiglu_testkit::Config::cpu("swiglu-testkit", "suite_on_naive"),
}
