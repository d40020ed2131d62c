// Products with fewer tiles than multiprocessors: the blocks of a cluster share a tile, each with a part of its k blocks.
//
// Sums are 64 x 64 boxes, which are dealt to the blocks. Each block sends the others what it has of theirs, into the shared
// memory where the ring was; each then adds the parts of its boxes in the order of k, and writes them. The order follows from
// k and SLICES alone.
#pragma once
#include "sm90_epilogue.cuh"

static_assert(CLUSTER == 1 && PRODUCT == STORE && !FORM_COTANGENTS, "gate functions need both halves of whole sums");

// What one thread of a warpgroup has of a box.
typedef float BoxSums[32];

constexpr u32 kStrips = kTileN / 64;
constexpr u32 kTileBoxes = kStrips * kConsumers;
constexpr u32 kMostBoxes = (kTileBoxes + SLICES - 1) / SLICES;
// 16 bytes of each thread side by side, so that a warp's accesses are whole lines.
constexpr u32 kVectorsBytes = kWarpgroup * 16;
constexpr u32 kVectors = sizeof(BoxSums) / 16;
constexpr u32 kPartBytes = kVectors * kVectorsBytes;
static_assert(kMostBoxes * SLICES * kPartBytes <= kRingBytes, "parts take the place of the ring");

// A box of the tile: which block of the cluster writes it, as which of its boxes.
struct Dealt {
    u32 owner;
    u32 number;

    __device__ __forceinline__ Dealt(u32 strip, u32 consumer) {
        u32 box = strip * kConsumers + consumer;
        owner = box * SLICES / kTileBoxes;
        number = box - (owner * kTileBoxes + SLICES - 1) / SLICES;
    }

    // Where this thread's sums from one slice of k are, in shared memory of the owner.
    __device__ __forceinline__ u32 part(u32 base, u32 slice, u32 thread) const {
        return base + (number * SLICES + slice) * kPartBytes + thread * 16;
    }
};

__device__ __forceinline__ void send_parts(u32 base, u32 slice, u32 consumer, u32 thread, const Sums (&d)[kTileHalves]) {
#pragma unroll
    for (u32 strip = 0; strip < kStrips; ++strip) {
        Dealt box(strip, consumer);
        u32 to;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(box.part(base, slice, thread)), "r"(box.owner));
        const float* sums = &d[strip / 2][strip % 2 * 32];
#pragma unroll
        for (u32 i = 0; i < kVectors; ++i) {
            asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to + i * kVectorsBytes),
                         "f"(sums[4 * i]), "f"(sums[4 * i + 1]), "f"(sums[4 * i + 2]), "f"(sums[4 * i + 3])
                         : "memory");
        }
    }
}

__device__ __forceinline__ void add_parts(BoxSums& sums, u32 base, const Dealt& box, u32 thread) {
#pragma unroll
    for (u32 slice = 0; slice < SLICES; ++slice) {
        u32 from = box.part(base, slice, thread);
#pragma unroll
        for (u32 i = 0; i < kVectors; ++i) {
            float v[4];
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                         : "r"(from + i * kVectorsBytes)
                         : "memory");
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sums[4 * i + j] = slice == 0 ? v[j] : sums[4 * i + j] + v[j];
        }
    }
}

// The boxes that are this block's, of the 64 rows of one warpgroup.
__device__ __forceinline__ void write_own(const Sm90Params& p, u32 base, const Tile& tile, u32 slice, u32 consumer,
                                          Boxes& boxes) {
    u32 thread = boxes.warp * 32 + boxes.lane;
#pragma unroll 1
    for (u32 strip = 0; strip < kStrips; ++strip) {
        Dealt box(strip, consumer);
        Place place = {tile.product, tile.m0 + 64 * consumer, tile.n0 + 64 * strip, boxes.lane, boxes.warp};
        if (box.owner != slice || place.column0 >= p.gemm.n) continue;
        BoxSums sums;
        add_parts(sums, base, box, thread);
        send_sums<0>(p.gemm, {p.c[place.product], p.gemm.c[place.product]}, place, sums, boxes);
    }
}
