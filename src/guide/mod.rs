//! What to know besides the interface: a page for each question that comes up.

#[doc = include_str!("gate_order.md")]
pub mod gate_order {}

#[doc = include_str!("memory.md")]
pub mod memory {}

#[doc = include_str!("numerics.md")]
pub mod numerics {}

#[doc = include_str!("performance.md")]
pub mod performance {}

#[doc = include_str!("porting.md")]
pub mod porting {}
