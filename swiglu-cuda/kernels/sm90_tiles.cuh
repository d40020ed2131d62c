// The tiles of C that an sm90 block works on, in which order. The file with the kernel's shape comes first.
#pragma once
#include "sm90_ptx.cuh"

// The tile that a block works on.
struct Tile {
    u32 product;
    i32 m0;
    i32 n0;
};

// The order of the tiles. `rank` is the block's in its cluster, whose blocks are on neighbouring rows of tiles, or columns.
struct Order {
    u32 rows;
    u32 columns;
    u32 total;
    // Of a power of two: products with any other number spill, too.
    u32 group_log2;
    u32 rank;

    __device__ __forceinline__ Order(const Sm90Params& p, u32 rank) : group_log2(p.group_log2), rank(rank) {
        constexpr u32 kRows = kTileM * kClusterRows;
        constexpr u32 kCols = kColumns * kClusterColumns;
        rows = static_cast<u32>((p.gemm.m + kRows - 1) / kRows);
        columns = static_cast<u32>((p.gemm.n + kCols - 1) / kCols);
        total = rows * columns * p.products;
    }

    __device__ __forceinline__ Tile at(u32 index) const {
        u32 product = kOneProduct ? 0 : index / (rows * columns);
        u32 in_product = index - product * rows * columns;
        u32 first = in_product / (columns << group_log2) << group_log2;
        u32 in_group = in_product - first * columns;
        u32 height = min(rows - first, 1u << group_log2);
        u32 row = first + in_group % height;
        u32 column = in_group / height;
        if (kClusterRows > 1) row = row * kClusterRows + rank;
        if (kClusterColumns > 1) column = column * kClusterColumns + rank;
        return {product, static_cast<i32>(row * kTileM), static_cast<i32>(column * kColumns)};
    }
};
