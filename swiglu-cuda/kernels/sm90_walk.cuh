// The blocks of k that make a tile, in which order. The file with the kernel's shape comes first.
#pragma once
#include "params.cuh"

// k blocks of each segment, and how many more there are of zeros, outside the matrices, to make as many as a kernel needs.
struct Blocks {
    u32 each;
    u32 segments;
    u32 total;

    __device__ __forceinline__ Blocks(const GemmParams& p) : segments(p.segments) {
        each = static_cast<u32>((p.k + kTileK - 1) / kTileK);
        total = each * segments;
        if (total < kLeastBlocks) total = kLeastBlocks;
    }
};

// The order of k blocks: segments take turns, kTurn blocks each.
struct Walk {
    u32 segment = 0;
    u32 block = 0;

    __device__ __forceinline__ void advance(const Blocks& blocks) {
        ++block;
        if (block % kTurn != 0 && block != blocks.each) return;
        if (++segment == blocks.segments) {
            segment = 0;
        } else {
            block = (block - 1) / kTurn * kTurn;
        }
    }
};
