//! The CPU backend of fused SwiGLU: tiled, vectorised, rayon-parallel.
