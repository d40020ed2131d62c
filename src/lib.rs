//! Fused SwiGLU for Rust.
