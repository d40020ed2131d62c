// Products of a warpgroup that are turned, and from their sums to C. The file with the kernel's shape comes first.
//
// m of wgmma runs along 64 columns of C, and n along the rows of a tile, of which there may be any multiple of 8: along
// columns that are contiguous in B there would have to be whole boxes of gate and of up.
#pragma once
#include "epilogue.cuh"
#include "pack.cuh"
#include "sm90_tiles.cuh"
#include "sm90_wgmma.cuh"

// Sums of 64 columns and a tile's rows in the registers of a warpgroup: element 4 * j + i of a thread is in column
// 16 * warp + lane / 4 + i / 2 * 8, row 8 * j + lane % 4 * 2 + i % 2.
constexpr u32 kSums = kTileM / 2;
typedef float ColumnSums[kSums];
// Boxes of C, and of a thread's sums how many are one's.
constexpr u32 kBoxes = kTileM / kRowsC;
constexpr u32 kBoxSums = kSums / kBoxes;

// d = d * keep + b^T . a^T for 16 of k, where keep is 0 or 1. `b_across` says that b is contiguous along the columns in place
// of k. The sums are the tensor cores' until wait_for_products.
template <bool b_across>
__device__ __forceinline__ void multiply_turned(ColumnSums& d, u64 b, u64 a, bool keep) {
#if TILE_M == 160
    asm volatile(
        "{\n.reg .pred keep;\nsetp.ne.b32 keep, %82, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k16." WGMMA_TYPES " {" WGMMA_0_63 ", " WGMMA_64_79
        "}, %80, %81, keep, 1, 1, %83, 0;\n}"
        : WGMMA_64(d), WGMMA_16(d, 64)
        : "l"(b), "l"(a), "r"(static_cast<u32>(keep)), "n"(b_across));
#else
    asm volatile(
        "{\n.reg .pred keep;\nsetp.ne.b32 keep, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16." WGMMA_TYPES " {" WGMMA_0_63 ", " WGMMA_64_79 ", " WGMMA_80_95
        "}, %96, %97, keep, 1, 1, %99, 0;\n}"
        : WGMMA_64(d), WGMMA_16(d, 64), WGMMA_16(d, 80)
        : "l"(b), "l"(a), "r"(static_cast<u32>(keep)), "n"(b_across));
#endif
}

// Where a warpgroup writes from, and who in it this thread is.
struct Writer {
    // Two boxes of C take turns: while TMA reads one, the warpgroup fills the other.
    u32 slots;
    u32 slot;
    u32 barrier;
    u32 lane;
    u32 warp;

    __device__ __forceinline__ bool leads() const { return warp == 0 && lane == 0; }

    // The first of this thread's columns, of 64; the other is 8 further.
    __device__ __forceinline__ u32 column() const { return 16 * warp + lane / 4; }

    // Sends a box to (x, y) of C.
    __device__ __forceinline__ void send(const TensorMap& map, i64 x, i64 y, const float* sums) {
        u32 box = slots + slot * kBytesC;
        // In the 128-byte swizzle, 16 bytes c of row r lie at place c ^ (r % 8).
        u32 row = lane / 16 * 8 + lane % 8;
        u32 at = box + row * 128 + ((2 * warp + lane / 8 % 2) ^ (row % 8)) * 16;
#pragma unroll
        for (u32 rows = 0; rows < kRowsC; rows += 16) {
            const float* d = sums + rows / 2;
            store_transposed(at + rows * 128, narrow_pair(d[0], d[1]), narrow_pair(d[2], d[3]), narrow_pair(d[4], d[5]),
                             narrow_pair(d[6], d[7]));
        }
        fence_for_tma();
        // The other slot, which is filled next, has been read.
        if (leads()) wait_for_reads<0>();
        sync_warpgroup(barrier);
        if (leads()) store_box(map, box, static_cast<i32>(x), static_cast<i32>(y));
        slot ^= 1;
    }
};

__device__ __forceinline__ void add_bias(const GemmParams& p, i64 column, const void* bias, ColumnSums& d) {
    if (bias == nullptr) return;
    float of[2] = {};
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        if (column + 8 * i < p.n) of[i] = load_bias(bias, column + 8 * i, false).x;
    }
#pragma unroll
    for (u32 i = 0; i < kSums; ++i) d[i] += of[i / 2 % 2];
}

// Gate sums of a box become z, in place. What an element becomes does not depend on the others: only how the warp gets there
// does.
__device__ __forceinline__ void take_gate(const GemmParams& p, float* gate, const float* up) {
    bool tame = true;
#pragma unroll
    for (u32 i = 0; i < kBoxSums; ++i) tame &= is_tame(gate_argument(gate[i], p.alpha, p.limit));
    if (__all_sync(~0u, tame)) {
#pragma unroll
        for (u32 i = 0; i < kBoxSums; ++i) gate[i] = tame_gate_value(gate[i], up[i], p.alpha, p.limit);
    } else {
#pragma unroll
        for (u32 i = 0; i < kBoxSums; ++i) {
            gate[i] = is_tame(gate_argument(gate[i], p.alpha, p.limit))
                          ? tame_gate_value(gate[i], up[i], p.alpha, p.limit)
                          : gate_value(gate[i], up[i], p.alpha, p.limit);
        }
    }
}

__device__ __forceinline__ void write_tile(const Sm90Params& p, const Tile& tile, ColumnSums (&d)[2], Writer& writer) {
    add_bias(p.gemm, tile.n0 + writer.column(), p.gemm.bias[0], d[0]);
    add_bias(p.gemm, tile.n0 + writer.column(), p.gemm.bias[1], d[1]);
#pragma unroll
    for (u32 box = 0; box < kBoxes; ++box) {
        i64 row = tile.m0 + static_cast<i32>(box * kRowsC);
        if (row >= p.gemm.m) return;
        float* gate = d[0] + box * kBoxSums;
        float* up = d[1] + box * kBoxSums;
        if (p.gemm.pre[0].data != nullptr) {
            writer.send(p.pre[0], tile.n0, row, gate);
            writer.send(p.pre[1], tile.n0, row, up);
        }
        take_gate(p.gemm, gate, up);
        writer.send(p.c[0], tile.n0, row, gate);
    }
}
