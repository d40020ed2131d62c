// What an sm90 block works on, in which order: tiles of C, and blocks of k in each. The file with the kernel's shape comes
// first.
#pragma once
#include "sm90_ptx.cuh"

// The tile that a block works on.
struct Tile {
    u32 product;
    i32 m0;
    i32 n0;
};

// The order of the tiles. `rank` is the block's in its cluster, whose blocks are on neighbouring rows of tiles.
struct Order {
    u32 rows;
    u32 columns;
    u32 total;
    // Of a power of two: products with any other number spill, too.
    u32 group_log2;
    u32 rank;

    __device__ __forceinline__ Order(const Sm90Params& p, u32 rank) : group_log2(p.group_log2), rank(rank) {
        constexpr u32 kRows = kTileM * CLUSTER;
        rows = static_cast<u32>((p.gemm.m + kRows - 1) / kRows);
        columns = static_cast<u32>((p.gemm.n + kColumns - 1) / kColumns);
        total = rows * columns * p.products;
    }

    __device__ __forceinline__ Tile at(u32 index) const {
        // Paired products are alone in a launch. Blocks by themselves need to know that, and pairs must not, or the assembler
        // (of NVRTC 13.5) spills registers of the gate function with erf.
        u32 product = kHalves == 2 && CLUSTER == 1 ? 0 : index / (rows * columns);
        u32 in_product = index - product * rows * columns;
        u32 first = in_product / (columns << group_log2) << group_log2;
        u32 in_group = in_product - first * columns;
        u32 height = min(rows - first, 1u << group_log2);
        u32 row = first + in_group % height;
        return {product, static_cast<i32>((row * CLUSTER + rank) * kTileM),
                static_cast<i32>(in_group / height * kColumns)};
    }
};

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
