//! Oracles, error bounds, generators and the suite that every fused SwiGLU backend passes.
#![forbid(unsafe_code)]
