//! A wrong order of the five steps does not compile, and a right one does.
//!
//! Each file beside this one is a program that `cargo` compiles against the crate. What the compiler must say to the wrong ones is
//! in the `.stderr` file of the same name; `TRYBUILD=overwrite cargo test -p disk --test wrong_order` writes those anew for another compiler.

#[test]
fn a_wrong_order_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/wrong_order/right_order.rs");
    cases.compile_fail("tests/wrong_order/link_*.rs");
    cases.compile_fail("tests/wrong_order/free_*.rs");
    cases.compile_fail("tests/wrong_order/leave_out_*.rs");
    cases.compile_fail("tests/wrong_order/forge_*.rs");
}
